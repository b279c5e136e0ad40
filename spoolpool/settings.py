"""Names of environment variables, and all default values."""

from __future__ import annotations

import sys

ENV_SPOOL = "SPOOLPOOL_DIR"
"""Spool of commands and executors without an explicit one."""

ENV_KEY = "SPOOLPOOL_KEY"
"""File with the keys of a signed spool; by default it is in the configuration directory."""

ENV_CONFIG = "SPOOLPOOL_CONFIG"
"""File with defaults of the site, used before ``/etc/spoolpool.toml``."""

ENV_LAUNCHER = "SPOOLPOOL_LAUNCHER"
"""Launcher of supervisors and executors without an explicit one."""

ENV_PARTITION = "SPOOLPOOL_PARTITION"
"""Partition of batch jobs of Slurm."""

ENV_ACCOUNT = "SPOOLPOOL_ACCOUNT"
"""Account or project that batch jobs are charged to."""

ENV_QUEUE = "SPOOLPOOL_QUEUE"
"""Queue of batch jobs of systems that have queues."""

ENV_LEASE = "SPOOLPOOL_LEASE"
"""Lease of new spools."""

ENV_CACHES = "SPOOLPOOL_CACHES"
"""Time for which clients of the filesystem of new spools may see removed names."""

ENV_PARENTS = "SPOOLPOOL_PARENTS"
"""Directories, separated by colons, that count as protected although other accounts can write to them."""

ENV_PREVIEW = "SPOOLPOOL_PREVIEW"
"""Whether headers of tasks get a preview of their arguments: ``true`` or ``false``."""

ENV_KNOWN = "SPOOLPOOL_KNOWN"
"""Identity (JSON) of the spool of the process that started this one, which has checked it."""

ENV_WORKER = "SPOOLPOOL_WORKER"
"""Worker id that the supervisor assigns to a group that it starts (at most 24 hex digits)."""

ENV_NUMBER = "SPOOLPOOL_NUMBER"
"""Number, from 0, of a group among the live groups of its supervisor."""

ENV_RENEWALS = "SPOOLPOOL_RENEWALS"
"""Number of groups in a row before this one that were replaced because of what their tasks had left."""

ENV_LIMITS = "SPOOLPOOL_LIMITS"
"""Limits of a worker that has started itself again: the tasks that are left, and its end by the monotonic clock."""

ENV_OWNER = "SPOOLPOOL_OWNER"
"""Identity (JSON) of the process that owns the group; the group ends when that process has died."""

ENV_OWNER_ENTRY = "SPOOLPOOL_OWNER_ENTRY"
"""Id of the entry with the heartbeat of that process, for groups that may run on other hosts."""

ENV_JOB = "SPOOLPOOL_JOB"
"""Name of the batch job around a group, as in ``jobs/`` of its spool; set by the job script."""

ENV_MPIEXEC = "SPOOLPOOL_MPIEXEC"
"""The mpiexec to use instead of the one beside the interpreter or on ``PATH``."""

ENV_SRUN_MPI = "SPOOLPOOL_SRUN_MPI"
"""Value of ``--mpi=`` for srun, if it cannot be detected or is detected wrongly."""

ENV_FLUX_PMI = "SPOOLPOOL_FLUX_PMI"
"""Value of the shell option ``pmi`` of Flux jobs, if it cannot be detected or is detected wrongly."""

ENV_JSRUN_SMT = "SPOOLPOOL_JSRUN_SMT"
"""Hardware threads of a core by which jsrun numbers cpus, if they are not those of this host's architecture."""

ENV_DEVICES = "SPOOLPOOL_DEVICES"
"""Name of the variable that lists the GPUs of a whole group; each rank takes its share of them."""

ENV_SHM = "SPOOLPOOL_SHM"
"""Directory in memory for temporary spools, instead of ``/dev/shm``; empty: they lie in the temporary directory."""

ENV_OUTPUT = "SPOOLPOOL_OUTPUT"
"""Directory with a pipe for the output of each rank of a group that mpiexec starts."""

PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
"""Python minor version. It is part of a lane, since pickled code depends on it."""

LEASE = 60.0
"""Seconds that a claim outlives the last heartbeat of its worker."""

LONGEST_LEASE = 21600.0
"""Longest lease in seconds; a greater number is probably meant in milliseconds."""

BEATS_PER_LEASE = 6
"""Heartbeats within one lease: five may be lost or late before the worker is suspected."""

SILENT_BEATS = 3
"""Heartbeats in a row that a group misses before it is shown as silent."""

GONE_LEASES = 10
"""Leases without a heartbeat after which a worker is dead even if its lock is still held.

The lock of a host that lost power stays held for 24 h on MooseFS and for ever on NFS 3, so a held lock proves life
only for a limited time.
"""

CACHE_SECONDS = 120.0
"""Seconds after which a repeated look-up with the same answer is reliable: longer than the attribute caches of NFS
(``acdirmax``, 60 s)."""

LAUNCHERS = ("auto", "local", "mpiexec", "srun", "jsrun", "flux")
"""Names of launchers."""

MAX_ATTEMPTS = 3
"""Limit of claims of a task that end with the death of the worker."""

GRACE = 5.0
"""Seconds in which the ranks of a group must report after one of them failed."""

DRAIN = 20.0
"""Seconds for running tasks to finish at the end of their group."""

OUTPUT = 8 << 20
"""Limit in bytes of the captured output of one rank of a task."""

JOURNAL = 1 << 30
"""Limit in bytes of all journals of a spool: about 1.4 million tasks."""
LEAST_JOURNAL = 1 << 20
"""Least limit in bytes of all journals of a spool."""

BUCKET_SIZE = 1000
"""Names that one submitter puts into one bucket."""

PRIORITY = 0
"""Default priority of a task, from -499 to 499; a greater priority runs sooner."""

RENEWAL_SECONDS = 1200.0
"""Seconds of a group after which its replacement is the first one again, and comes without a pause."""

EXIT_UNEXPECTED = 70
"""Exit code of a command after an unexpected error (EX_SOFTWARE of sysexits.h)."""

EXIT_RENEW = 75
"""Exit code of a group that is to be replaced immediately (EX_TEMPFAIL of sysexits.h)."""

EXIT_START = 78
"""Exit code of a group that was started with unsuitable options (EX_CONFIG of sysexits.h)."""

NUMBER_OF_THREADS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
"""Variables with the number of threads that a library may start."""

SHARE_FROM = 1 << 20
"""Size in bytes from which a function or an argument is stored once when it is sent repeatedly."""
