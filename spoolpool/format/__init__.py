"""Names and bytes on disk; ``docs/format.md`` describes them.

A *name* is the name of a file or directory and contains the state of a task; the *layout* gives the paths. The
*envelope* is the frame of task, outcome, object and cache files: a *header* in JSON, a pickle, the *buffers* of that
pickle, and a checksum. A *record* is the decoded header. The *config* is ``spool.json``. An *output log* holds the
captured output of tasks, each after an *output header*.

This room imports ``security``, ``system``, ``errors`` and ``settings``. It unpickles nothing and imports none of the
rooms above: the rules by which files are made and moved are in ``protocol``.
"""
