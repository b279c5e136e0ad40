"""Read-only views of a spool: no module of this room changes a spool, and none unpickles anything.

A *scan* lists the names in a spool; its result is a *snapshot*. The *location* of a task is the directory of its file, a
*place*, and the name. A *view* is a task at a location with the content of its files; its *state* is its place, divided
by the kind of the outcome. A *query* selects views. On them rest the *inventory* of a session, the *status* of the
whole spool, the *graph* of dependencies, the *waiter* for the ends of tasks, and the *follower* of captured output. The
*report* is made from journals instead. All of it may be used while the spool changes, so each module says what it
concludes from a name that it did not see.

Modules of this room import ``protocol`` and the rooms below it. They import neither ``maintenance``, ``launch``,
``pool``, ``worker`` and ``client``, which import them, nor ``cli``.
"""
