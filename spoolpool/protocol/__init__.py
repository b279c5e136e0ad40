"""A spool and the steps of a task in it; ``docs/protocol.md`` has their rules.

A *spool* is a directory tree that is the whole queue. A *task file* is one submitted call; it is written once and then
only renamed, and the directory in which it stands is the state of the task. Ready tasks with the same requirements
share a *lane*; in it each submitter fills *buckets*, directories of about a thousand task files. A *claim* is the
exclusive right of one worker to run a task: a task file in ``claimed/`` under a name that holds the worker's id. It
lasts for a *lease* after the last *heartbeat* of that worker; then a *recoverer* commits or requeues the claims of the
worker. An *outcome* is the file that holds the result or the error of one claim; the *commit* renames the task file
into the inbox of its *session*, from which one submitter collects. A dependency *link* keeps an outcome while another
task needs it. An *object* is a large argument that is stored once, and an object *lease* keeps it while a session uses
it.

This room imports ``wire``, ``calls``, ``format``, ``security`` and ``system``. It does not import the rooms that use a
spool: ``monitor``, ``maintenance``, ``launch``, ``worker``, ``pool``, ``client`` and ``cli``.
"""
