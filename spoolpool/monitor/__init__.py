"""Read-only views of a spool: no module of this room writes or moves a file of a spool, and none unpickles anything.

A *scan* lists the names in a spool; its result is a *snapshot*. The *location* of a task is the directory in which its
file was seen, a *place*. A *view* is a task at a location with the content of its files; its *state* is the place,
divided by the kind of the outcome. A *query* selects views. The other modules are made of these: the *inventory* of a
session, the *status* of the whole spool, the *graph* of dependencies, the *waiter* for the ends of tasks, and the
*follower* of captured output. The *report* is made from journals instead. A spool may be in use meanwhile.

Modules of this room import ``protocol`` and the rooms below it, and no room above: ``maintenance``, ``pool``,
``client`` and ``cli`` import them.
"""
