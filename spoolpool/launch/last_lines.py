"""Cause of a failed start among the last lines that a launcher and the ranks of a group wrote."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from spoolpool import settings
from spoolpool.system.patterns import lazy_pattern

_MOST = 3
_WIDTH = 400
_SSH = lazy_pattern(
    r"^ssh: |Host key verification failed|Permission denied \(publickey|[rs]sh[_ ]agent|"
    r"(ORTE|PRTE) (was unable to reliably start|daemon has unexpectedly failed)|A daemon failed to report back"
)
SSH_SETTING = (
    "set OMPI_MCA_plm_rsh_agent (Open MPI 5: PRTE_MCA_plm_ssh_agent) to the command by which this system starts a "
    "process on a node, such as blaunch, pbs_tmrsh or qrsh, or use groups that fit on one node"
)
"""What to do if Open MPI does not reach another node by ssh."""
_SSH_REMARK = f"Open MPI starts daemons on other nodes by ssh if it was not built for the batch system: {SSH_SETTING}"
_PMI = lazy_pattern(r"Invalid MPI type|plugin name for mpi/|cannot find mpi plugin")
_PMI_REMARK = (
    f"the type comes from {settings.ENV_SRUN_MPI}, from a default of the site or user, or from a launcher option; "
    "'srun --mpi=list' lists the possible ones"
)
_REMARKS = ((_SSH, _SSH_REMARK), (_PMI, _PMI_REMARK))
"""Remarks by what one of the lines says."""

_RULE = lazy_pattern(r"[-=*]{10,}|\s*")
_NOISE = lazy_pattern(
    r"srun: (Step created|Job step aborted|Force Terminat|Terminating StepId|First task exited|job \d+ has been|"
    r"launch/slurm:|cluster configuration lacks support)|"
    r"\[\S+:\d+\] mca_base_component_repository_open:.*\(ignored\)|"
    r"srun: error: (Required nodelist includes more|Timed out waiting for job step)|"
    r"slurmstepd.*: \*\*\* (STEP|JOB) |"
    r"=   |YOUR APPLICATION TERMINATED|This typically refers to a problem|Please see the FAQ|"
    r"Primary job +terminated|a non-zero exit code|.* detected that one or more processes exited|"
    r"the job to be terminated|"
    r"  Process name: |  Exit code: |\S* *has been aborted"
)
_CONSEQUENCE = lazy_pattern(
    r"srun: error: \S+: tasks? [\d,-]+: |\[(mpiexec|proxy)\S*\] |\[[\w.-]+:\d+\] \d+ more process|"
    r"MPI_ABORT was invoked|with errorcode|Abort\(\d+\)"
)
"""Lines that say that a rank has ended, of which the rank itself may have given the cause."""
_MISTAKE = lazy_pattern(r"^srun: (error: Invalid MPI type|unrecognized option|invalid option|fatal: )")
_OWN = lazy_pattern(
    r"(srun|slurmstepd[\w.-]*|mpiexec|mpirun|prterun|orterun|flux\S*): |\[(mpiexec|proxy|prterun)\S*\] "
)


def find_cause(lines: Sequence[str]) -> str:
    """Return the last lines that can name the cause, without repetitions; empty if there are none.

    Tracebacks are shortened to their last lines, and texts of Open MPI to their first paragraphs. A remark says what to
    do where that is known.
    """
    texts = [line.rstrip() for line in _paragraphs(_without_stacks(lines)) if not _NOISE.match(line)]
    causes = [text for text in texts if not _CONSEQUENCE.match(text)] or texts
    cause = _join(causes)
    remark = next((advice for pattern, advice in _REMARKS if any(map(pattern.search, causes))), "")
    return f"{cause} ({remark})" if remark else cause


def is_mistake(lines: Sequence[str]) -> bool:
    """Return whether the launcher rejects its options, so that another try ends in the same way."""
    return any(map(_MISTAKE.search, lines))


def find_own(lines: Sequence[str]) -> str:
    """Return the last lines of a launcher itself, which say how it ended a group; empty if there are none."""
    return _join([line.rstrip() for line in lines if _OWN.match(line) and not _NOISE.match(line)])


def _join(texts: Iterable[str]) -> str:
    last = list(dict.fromkeys(text.strip() for text in texts))[-_MOST:]
    return " | ".join(text if len(text) <= _WIDTH else f"{text[: _WIDTH - 1]}\u2026" for text in last)


def _without_stacks(lines: Iterable[str]) -> Iterable[str]:
    inside = False
    for line in lines:
        if line.startswith("Traceback (most recent call last)"):
            inside = True
        elif not (inside and line.startswith((" ", "\t"))):
            inside = False
            yield line


def _paragraphs(lines: Iterable[str]) -> Iterable[str]:
    """Join the first paragraph after a rule of dashes, and leave out the others up to the next one."""
    framed, joined = False, ""
    wait = False
    for line in lines:
        if _RULE.fullmatch(line):
            if joined:
                yield joined
                joined, wait = "", framed
            if line.strip():
                framed, wait = not framed, False
        elif framed and not wait:
            joined = f"{joined} {line.strip()}".strip()
        elif not framed:
            yield line
    if joined:
        yield joined
