"""The submitter's side of a spool: calls become tasks, and the outcomes of tasks become results of futures.

A *session* is the named inbox of one submitter. A *prepared call* is pickled; its *references* are the futures and
objects among its arguments. A *pending task* has no outcome yet. The *collector* is the thread that delivers outcomes
to futures; in *direct collection* the waiting thread does. *Starvation* means that no worker group can run a pending
task. *Retention* decides when a delivered outcome is removed. The *runtime* of an executor has its session, worker
groups and threads. The *packer* puts several short calls into one task, a *pack*; ``map`` does so with *chunks*. A
*memoizer* finds calls in a *result cache*, and the *replay* of a named session finds the tasks that an earlier run of
the script submitted.

This room imports ``pool``, ``launch``, ``monitor`` and the rooms below them. It imports neither ``worker``, since a
submitter runs no task, nor ``executor``, ``programs``, ``joblib`` and ``cli``, which import it.
"""
