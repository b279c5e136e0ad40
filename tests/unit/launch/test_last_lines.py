"""Cause of a failed start, found in recorded output of launchers."""

from __future__ import annotations

import pytest

from spoolpool import settings
from spoolpool.launch.last_lines import find_cause, find_own, is_mistake

WRONG_MPI = """\
srun: error: Couldn't find the specified plugin name for mpi/tea looking at all files
srun: error: cannot find mpi plugin for mpi/tea
srun: error: MPI: Cannot create context for mpi/tea
srun: error: MPI: Unable to load any plugin
srun: error: Invalid MPI type 'tea', --mpi=list for acceptable types
"""

RANK_ENDED = """\
srun: cluster configuration lacks support for cpu binding
srun: Job 2 step creation temporarily disabled, retrying (Requested nodes are busy)
srun: Step created for job 2
Traceback (most recent call last):
  File "<string>", line 1, in <module>
    import tea
ModuleNotFoundError: No module named 'tea'
Traceback (most recent call last):
  File "<string>", line 1, in <module>
    import tea
ModuleNotFoundError: No module named 'tea'
srun: error: n1: tasks 0-1: Exited with exit code 1
slurmstepd-n1: error: *** STEP 19.0 ON n1 CANCELLED AT 2026-11-28T10:53:34 ***
srun: Job step aborted: Waiting up to 7 seconds for job step to finish.
"""

KILLED = "srun: error: n1: task 0: Out Of Memory\n"

HYDRA = """\
[proxy:0@vm] HYDU_create_process (launch.c:73): execvp error on file /nonexistent/python (No such file or directory)
[proxy:0@vm] HYDU_create_process (launch.c:73): execvp error on file /nonexistent/python (No such file or directory)

===================================================================================
=   BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES
=   PID 22 RUNNING AT vm
=   EXIT CODE: 255
=   CLEANING UP REMAINING PROCESSES
===================================================================================
YOUR APPLICATION TERMINATED WITH THE EXIT STRING: Hangup (signal 1)
This typically refers to a problem with your application.
Please see the FAQ page for debugging suggestions
"""

SLOTS = """\
[vm:1] mca_base_component_repository_open: unable to open mca_x: libnl-3.so.200: not found (ignored)
--------------------------------------------------------------------------
There are not enough slots available in the system to satisfy the 9
slots that were requested by the application:

  hostname

Either request fewer slots for your application, or make more slots
available for use.
--------------------------------------------------------------------------
"""

SSH = """\
ssh: connect to host n2 port 22: Connection refused
--------------------------------------------------------------------------
ORTE was unable to reliably start one or more daemons.
This usually is caused by:

* not finding the required libraries and/or binaries on
  one or more nodes. Please check your PATH and LD_LIBRARY_PATH
  settings, or configure OMPI with --enable-orterun-prefix-by-default

* lack of authority to execute on one or more specified nodes.
--------------------------------------------------------------------------
"""

SSH_5 = """\
ssh: connect to host n2 port 22: Connection refused
------------------------------------------------------------
A daemon failed to report back after being spawned. This could
be due to several factors, including inability to find the
daemon executable, or the executable was unable to find its
libraries.
------------------------------------------------------------
"""

UNHAPPY = """\
Something happened
--------------------------------------------------------------------------
Primary job  terminated normally, but 1 process returned
a non-zero exit code. Per user-direction, the job has been aborted.
--------------------------------------------------------------------------
--------------------------------------------------------------------------
mpiexec detected that one or more processes exited with non-zero status, thus causing
the job to be terminated. The first process to do so was:

  Process name: [[1,1],0]
  Exit code:    1
--------------------------------------------------------------------------
"""


@pytest.mark.parametrize(
    ("output", "cause"),
    [
        ("", ""),
        ("srun: fatal: --mem and --mem-per-cpu are mutually exclusive.\n", None),
        (
            RANK_ENDED,
            "step creation temporarily disabled, retrying (Requested nodes are busy) | ModuleNotFoundError: No",
        ),
        (KILLED, "srun: error: n1: task 0: Out Of Memory"),
        (HYDRA, "[proxy:0@vm] HYDU_create_process (launch.c:73): execvp error on file /nonexistent/python"),
        (SLOTS, "There are not enough slots available in the system to satisfy the 9 slots that were requested by the"),
        (UNHAPPY, "Something happened"),
        ("x" * 1000, "x" * 300),
    ],
)
def test_cause_is_among_the_last_lines_without_consequences_and_noise(output: str, cause: str | None) -> None:
    found = find_cause(output.splitlines())
    assert (output.strip() if cause is None else cause) in found
    assert found.count("ModuleNotFoundError") < 2 and found.count("HYDU") < 2
    for noise in (
        "BAD TERMINATION",
        "Exited with",
        "Step created",
        "cpu binding",
        "Primary job",
        "detected",
        "Exit code",
    ):
        assert noise not in found
    assert len(found) < 1500


def test_type_of_mpi_that_srun_does_not_know_is_told_with_the_setting() -> None:
    found = find_cause(WRONG_MPI.splitlines())
    assert "srun: error: Invalid MPI type 'tea', --mpi=list for acceptable types" in found
    assert settings.ENV_SRUN_MPI in found and "srun --mpi=list" in found
    assert is_mistake(WRONG_MPI.splitlines())
    assert is_mistake(["srun: unrecognized option '--tea'", 'Try "srun --help" for more information'])
    assert not is_mistake(RANK_ENDED.splitlines())


def test_ssh_of_open_mpi_is_told_with_the_setting() -> None:
    found = find_cause(SSH.splitlines())
    assert "ssh: connect to host n2 port 22: Connection refused" in found
    assert "ORTE was unable to reliably start one or more daemons." in found
    assert "OMPI_MCA_plm_rsh_agent" in found and "PRTE_MCA_plm_ssh_agent" in found
    assert "lack of authority" not in found
    assert "OMPI_MCA_plm_rsh_agent" in find_cause(SSH_5.splitlines()[1:])


def test_death_of_a_group_is_told_with_lines_of_the_launcher_alone() -> None:
    assert find_own(RANK_ENDED.splitlines()).endswith("srun: error: n1: tasks 0-1: Exited with exit code 1")
    assert "ModuleNotFoundError" not in find_own(RANK_ENDED.splitlines())
    assert find_own(["text of a task", *KILLED.splitlines()]) == "srun: error: n1: task 0: Out Of Memory"
    assert find_own(["text of a task"]) == ""
