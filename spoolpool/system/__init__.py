"""The operating system: files, locks, waiting, processes, accounts and hardware.

``files`` has the only system calls that change the disk, ``locks`` the only file locks, ``backoff`` the only sleep. A
*process id* (:class:`~spoolpool.system.processes.ProcessId`) identifies one process on one boot of one host, so that
its death can be proven. A *watcher* waits for changes of directories. A *mount* is the filesystem that contains a path.

This room imports ``errors`` and ``settings`` alone. It knows no spool: a path here has no meaning.
"""
