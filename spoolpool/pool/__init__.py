"""Pools of worker groups, on this host, in an allocation, or in batch jobs.

A *pool* keeps a number of groups of each shape alive. A *slot* is the room for one group in a pool: when the group
dies, another one is started there, until the slot is exhausted. A *supervisor* is the process ``spool-worker`` in an
allocation that fills it with a pool. A *batch job* is a job of Slurm or Flux whose script is a supervisor; each is
recorded in its spool. The *autoscaler* submits and cancels batch jobs as the lanes of a spool need; a *batch pool* does
so for one executor. *Launcher*, *group*, *rank* and *allocation* are terms of :mod:`spoolpool.launch`.

This room does not import ``worker``: a group is another process, started by :mod:`spoolpool.launch`.
"""
