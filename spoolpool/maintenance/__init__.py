"""Maintenance of a spool: check and repair it, remove garbage, examine its filesystem.

A *finding* is an inconsistency of a spool, for example a claim of a dead worker; a *repair* removes it by the rules of
the protocol. *Garbage* is consistent data that no process will ask for any more, by the *retention policy* of the
spool. The *doctor* examines a filesystem before a spool is made there: it gives *orders* to a *peer*, a process of this
or another host, through files in a *rendezvous* directory, and grades the effects in its *answers*.

Modules of this room import ``monitor``, ``protocol`` and the rooms below it. Only ``cli`` imports them: no task needs
maintenance to run.
"""
