"""Names of environment variables and every default in one place."""

from __future__ import annotations

import sys

ENV_SPOOL = "SPOOLPOOL_DIR"
"""Spool used where a command or an executor is given none."""

ENV_KEY = "SPOOLPOOL_KEY"
"""File with the keys of a signed spool; without it they are looked for in the configuration directory."""

ENV_PARENTS = "SPOOLPOOL_PARENTS"
"""Directories, with colons between, below which spools may lie although others can write to them."""

ENV_WORKER = "SPOOLPOOL_WORKER"
"""Worker id that the supervisor chose for the group it starts (24 hex digits at most)."""

ENV_OWNER = "SPOOLPOOL_OWNER"
"""Identity (JSON) of the process for which the group works; without it the group ends."""

ENV_JOB = "SPOOLPOOL_JOB"
"""Name of the batch job around a group, as its spool's ``jobs/`` has it; set by the job's script."""

ENV_MPIEXEC = "SPOOLPOOL_MPIEXEC"
"""The mpiexec to use, where the one beside the interpreter or on ``PATH`` is the wrong one."""

ENV_SRUN_MPI = "SPOOLPOOL_SRUN_MPI"
"""What to give to srun as ``--mpi=``, where it cannot be found out or is wrong."""

ENV_FLUX_PMI = "SPOOLPOOL_FLUX_PMI"
"""The shell option ``pmi`` of Flux jobs, where it cannot be found out or is wrong."""

ENV_DEVICES = "SPOOLPOOL_DEVICES"
"""Name of the variable that lists the GPUs of a whole group, of which each rank takes its share."""

ENV_OUTPUT = "SPOOLPOOL_OUTPUT"
"""Where the ranks of a group that mpiexec starts find pipes of their own for what they print."""

PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
"""The Python minor version: part of a lane, since pickled code does not travel between them."""

LEASE = 60.0
"""Seconds that a claim outlives the last sign of life of its worker."""

BEATS_PER_LEASE = 6
"""Signs of life within one lease: five may be lost or late before anybody worries."""

GONE_LEASES = 10
"""Leases without a sign of life after which a worker is dead whatever its lock says.

A lock of a host that lost power stays taken for 24 h on MooseFS and for ever on NFS 3, so a lock
that cannot be taken is no proof of life without end.
"""

CACHE_SECONDS = 120.0
"""Longer than the attribute caches of NFS (``acdirmax``, 60 s): what was looked up twice, this far
apart, with the same answer, is so."""

MAX_ATTEMPTS = 3
"""Claims of a task that may end with the death of the worker."""

GRACE = 5.0
"""Seconds that the ranks of a group have to report after one of them failed."""

OUTPUT = 8 << 20
"""Bytes that are kept of what one rank of a task prints."""

BUCKET_SIZE = 1000
"""Names that one submitter puts into one directory."""

PRIORITY = 0
"""Priority of a task that asks for none; greater is sooner, from -499 to 499."""

OBJECT_LIMIT = 1 << 62
"""Bytes; a length field beyond it is nonsense and is not believed."""

EXIT_UNEXPECTED = 70
"""Exit code of a command that met an error which nobody had thought of (EX_SOFTWARE of sysexits.h)."""

EXIT_RENEW = 75
"""Exit code of a group that wants to be replaced by a new one at once (EX_TEMPFAIL of sysexits.h)."""

EXIT_START = 78
"""Exit code of a group that cannot work as it was started (EX_CONFIG of sysexits.h)."""

NUMBER_OF_THREADS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
"""Variables by which libraries learn how many threads they may start."""

SHARE_FROM = 1 << 20
"""Bytes of a function or an argument from which it is stored once, where it is sent again and again."""
