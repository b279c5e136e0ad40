"""Commands of batch systems against recorded answers.

Those of PBS and Grid Engine are answers of OpenPBS 23.06 and Son of Grid Engine 8.1.9, shortened. Those of LSF follow
the formats in the command reference of IBM Spectrum LSF 10.1: there was none to record them from.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from spoolpool import LsfBatch, PbsBatch, Sbatch, SgeBatch, settings
from spoolpool.batch_backends import batch_backend
from spoolpool.errors import BadRequest, LauncherError
from spoolpool.options import backend_of
from spoolpool.pool import batch_system
from spoolpool.pool.batch_system import Job, active_jobs, cancel, ended_job

NAME = "spool-worker-0123456789abcdef"

PBS_JOBS = f"""\
Job Id: 12.ctl
    Job_Name = {NAME}
    Job_Owner = root@ctl
    job_state = Q
    queue = workq
    Output_Path = ctl:/spool/jobs/a b,c:d.out
    Resource_List.walltime = 00:05:00
    Variable_List = PBS_O_HOME=/root,X=two
    Job_Name = other,
	PBS_O_WORKDIR=/tmp
    comment = Can Never Run: Not enough total nodes available

Job Id: 13.ctl
    Job_Name = {NAME[:-1]}0
    job_state = R
    comment = Job run at Sat Nov 28 at 10:19 on (n2:ncpus=4)+(n1:ncpus=4)

Job Id: 14.ctl
    Job_Name = held
    job_state = H
    comment = job held, too many failed attempts to run

Job Id: 15.ctl
    Job_Name = waits
    job_state = Q
    comment = Not Running: Insufficient amount of resource: ncpus
"""
PBS_ENDED = """\
Job Id: 6.ctl
    Job_Name = NAME
    resources_used.walltime = 00:00:10
    job_state = F
    Output_Path = ctl:/spool/jobs/x.out
    substate = SUBSTATE
    comment = COMMENT
    Exit_status = STATUS
"""
PBS_NODES = """\
n1
     Mom = n1
     ntype = PBS
     state = free
     resources_available.host = n1
     resources_available.ncpus = 4
     comment = ncpus is fine

n2
     Mom = n2
     state = job-exclusive
     resources_available.host = n2
     resources_available.ncpus = 4

n3
     Mom = n3
     state = state-unknown,down
     resources_available.host = n3
     resources_available.ncpus = 64

"""
SGE_QUEUES = """\
<?xml version='1.0'?>
<job_info  xmlns:xsd="http://arc.liv.ac.uk/repos/darcs/sge/source/dist/util/resources/schemas/qstat/qstat.xsd">
  <queue_info>
    <Queue-List>
      <name>all.q@n1</name><qtype>BIP</qtype><slots_used>0</slots_used><slots_resv>0</slots_resv>
      <slots_total>4</slots_total><load_avg>0.60</load_avg><arch>lx-amd64</arch>
    </Queue-List>
    <Queue-List><name>short.q@n1</name><slots_total>1</slots_total></Queue-List>
    <Queue-List><name>all.q@n2</name><slots_total>4</slots_total><state>d</state></Queue-List>
    <Queue-List><name>all.q@n3</name><slots_total>8</slots_total><state>au</state></Queue-List>
  </queue_info>
  <job_info>
  </job_info>
</job_info>
"""
SGE_JOBS = f"""\
<?xml version='1.0'?>
<job_info  xmlns:xsd="http://arc.liv.ac.uk/repos/darcs/sge/source/dist/util/resources/schemas/qstat/qstat.xsd">
  <queue_info>
    <job_list state="running">
      <JB_job_number>1</JB_job_number>
      <JB_name>{NAME}</JB_name>
      <state>r</state>
      <queue_name>all.q@n1</queue_name>
    </job_list>
  </queue_info>
  <job_info>
    <job_list state="pending">
      <JB_job_number>2</JB_job_number>
      <JB_name>waits</JB_name>
      <state>hqw</state>
    </job_list>
    <job_list state="pending">
      <JB_job_number>3</JB_job_number>
      <JB_name>bad</JB_name>
      <state>Eqw</state>
    </job_list>
  </job_info>
</job_info>
"""
SGE_ERROR = """\
job_number:                 3
job_name:                   bad
error reason          1:      11/28/2026 10:15:14 [0:214]: error: can't open output file "/nonexistent/x"
scheduling info:            Job is in error state
"""
SGE_ENDED = """\
==============================================================
qname        all.q
hostname     n1
jobname      NAME
jobnumber    9
start_time   Sat Nov 28 10:15:10 2026
failed       FAILED
exit_status  STATUS
==============================================================
qname        all.q
jobname      NAME
jobnumber    10
failed       FAILED
exit_status  STATUS
"""
LSF_HOSTS = """\
HOST_NAME          STATUS          JL/U    MAX  NJOBS    RUN  SSUSP  USUSP    RSV
h1                 ok              -       16      0      0      0      0      0
h2                 closed_Full     -       16     16     16      0      0      0
h3                 unavail         -       64      0      0      0      0      0
master             ok              -        -      0      0      0      0      0
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Directory of programs that stand for those of a batch system."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path


def program(site: Path, name: str, answers: Mapping[str, str] | str, status: int = 0, error: str = "") -> None:
    """Add a program that gives the answer for the first key in its arguments, and notes the arguments."""
    answers = {"": answers} if isinstance(answers, str) else answers
    cases = []
    for number, (key, answer) in enumerate(answers.items()):
        (site / f"{name}-{number}.txt").write_text(answer)
        cases.append(f'  *"{key}"*) cat {site}/{name}-{number}.txt;;')
    lines = ["#!/bin/sh", f'echo "$*" >> {site}/{name}.log', 'case "$*" in', *cases, "esac"]
    path = site / name
    path.write_text("\n".join([*lines, f"printf '%s' '{error}' >&2", f"exit {status}"]) + "\n")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)


def script(backend: Any, output: str = "/spool/jobs/x.out", **options: Any) -> list[str]:
    return Job(backend=backend, spool="/spool", **options).script(NAME, output).splitlines()


# -- scripts


def test_script_of_pbs_requests_whole_nodes_with_all_their_cores(site: Path):
    program(site, "pbsnodes", PBS_NODES)
    lines = script(PbsBatch(nodes=2, time="90m", directives=["-q long"]))
    assert lines[0] == "#!/bin/bash"
    assert lines[-2] == 'cd "$PBS_O_WORKDIR" || exit'
    assert lines[-1].startswith(f"exec env {settings.ENV_JOB}={NAME} ")
    assert set(lines[1:-2]) == {
        "#PBS -l select=2:ncpus=4:mpiprocs=4",
        "#PBS -l place=scatter:excl",
        "#PBS -l walltime=1:30:00",
        "#PBS -V",
        "#PBS -j oe",
        "#PBS -k oed",
        "#PBS -o /spool/jobs/x.out",
        "#PBS -q long",
    }


@pytest.mark.parametrize(
    ("backend", "given", "replaced"),
    [
        (PbsBatch, "-l select=1:ncpus=2", ["-l select=1:ncpus=4:mpiprocs=4"]),
        (PbsBatch, "-l walltime=60,place=free", ["-l place=scatter:excl", "-l walltime=1:00:00"]),
        (PbsBatch, "-k oe", ["-k oed"]),
        (SgeBatch, "-l h_rt=60", ["-l h_rt=1:00:00"]),
        (SgeBatch, "-pe orte 12", ["-pe mpi 4"]),
        (SgeBatch, "-S /bin/sh", ["-S /bin/bash"]),
        (LsfBatch, "-n 4", ["-n 4", '-R "span[ptile=4]"']),
        (LsfBatch, "-nnodes 2", ["-n 4", '-R "span[ptile=4]"']),
        (LsfBatch, "-W 10", ["-W 1:00"]),
    ],
)
def test_option_of_the_user_replaces_the_same_one(backend: Any, given: str, replaced: list[str]):
    options = {"cores": 4, **({"parallel_environment": "mpi"} if backend is SgeBatch else {})}
    before = [line.partition(" ")[2] for line in script(backend(**options, directives=["-q long"]))]
    after = [line.partition(" ")[2] for line in script(backend(**options, directives=[given, "-q long"]))]
    after.remove(given)
    assert [line for line in before if line not in after] == replaced


def test_script_of_grid_engine_names_shell_slots_and_warning(site: Path):
    program(site, "qstat", SGE_QUEUES)
    program(site, "qconf", {"-spl": "mpi\nsmp\n", "-sp mpi": "pe_name mpi\nallocation_rule    $round_robin\n",
                            "-sp smp": "pe_name smp\nallocation_rule    $pe_slots\n"})  # fmt: skip
    lines = script(SgeBatch(time="1:00:00"))
    assert set(lines[1:-1]) == {
        "#$ -S /bin/bash",
        "#$ -V",
        "#$ -cwd",
        "#$ -notify",
        "#$ -j y",
        "#$ -l h_rt=1:00:00",
        "#$ -pe smp 4",
        "#$ -o /spool/jobs/x.out",
    }
    with pytest.raises(LauncherError, match=r"4 slots on each of 2 node\(s\): there are mpi, smp. Name one by --pe"):
        script(SgeBatch(nodes=2))
    assert "#$ -pe mpi 8" in script(SgeBatch(nodes=2, parallel_environment="mpi"))
    assert not [line for line in script(SgeBatch(cores=1)) if "-pe" in line]


def test_script_of_lsf_fills_hosts(site: Path):
    program(site, "bhosts", LSF_HOSTS)
    lines = script(LsfBatch(nodes=2, time="90s"))
    assert lines[1:-1] == ["#BSUB -n 32", '#BSUB -R "span[ptile=16]"', "#BSUB -W 0:02", "#BSUB -o /spool/jobs/x.out"]


@pytest.mark.parametrize("backend", [PbsBatch, SgeBatch, LsfBatch])
def test_template_of_the_site_may_do_without_questions(site: Path, backend: Any):
    lines = script(backend(nodes=3), template="#!/bin/sh\n# $nodes $time\n$directives\n$worker\n")
    assert lines[1] in ("# 3 1:00:00", "# 3 1:00")
    with pytest.raises(LauncherError, match="Cannot ask for the"):
        script(backend(), template="$resources\n$worker\n")


@pytest.mark.parametrize(
    ("backend", "path"), [(SgeBatch, "/a:b"), (SgeBatch, "/a,b"), (SgeBatch, "/a$b"), (LsfBatch, "/%J")]
)
def test_path_that_a_batch_system_would_change_is_an_error(backend: Any, path: str):
    with pytest.raises(LauncherError, match="takes no output file with a"):
        script(backend(cores=1), path)


def test_nodes_of_different_sizes_need_a_number_of_cores(site: Path):
    program(site, "pbsnodes", PBS_NODES.replace("ncpus = 4", "ncpus = 8", 1))
    with pytest.raises(LauncherError, match=r"pbsnodes lists 1 with 4, 1 with 8.*--cores-per-node"):
        script(PbsBatch())
    assert "#PBS -l select=1:ncpus=2:mpiprocs=2" in script(PbsBatch(cores=2))


# -- submission, lists and ends


@pytest.mark.parametrize(
    ("backend", "command", "answer", "job", "words"),
    [
        (PbsBatch, "qsub", "12.ctl\n", "12.ctl", f"-N {NAME}"),
        (SgeBatch, "qsub", "12\n", "12", f"-terse -N {NAME}"),
        (SgeBatch, "qsub", "Warning: no suitable queues\n12.1-3:1\n", "12", f"-terse -N {NAME}"),
        (LsfBatch, "bsub", "Job <12> is submitted to default queue <normal>.\n", "12", f"-J {NAME}"),
    ],
)
def test_submission_returns_the_id(site: Path, backend: Any, command: str, answer: str, job: str, words: str):
    program(site, command, answer)
    assert Job(backend=backend(cores=1), spool="/spool").submit(NAME, "/o") == job
    assert (site / f"{command}.log").read_text().strip() == words


def test_answer_of_bsub_without_an_id_is_an_error(site: Path):
    program(site, "bsub", "Request aborted by esub.\n")
    with pytest.raises(LauncherError, match="bsub says: Request aborted by esub"):
        Job(backend=LsfBatch(cores=1), spool="/spool").submit(NAME, "/o")


def test_jobs_of_pbs_are_listed_with_the_reason_for_which_one_cannot_run(site: Path):
    program(site, "qselect", "12.ctl\n13.ctl\n14.ctl\n15.ctl\n99.ctl\n")
    program(site, "qstat", PBS_JOBS, status=153, error="qstat: Unknown Job Id 99.ctl")
    jobs = active_jobs("pbs")
    assert {name: job[:2] for name, job in jobs.items()} == {
        NAME: ("12.ctl", "pending"),
        f"{NAME[:-1]}0": ("13.ctl", "running"),
        "held": ("14.ctl", "pending"),
        "waits": ("15.ctl", "pending"),
    }
    assert jobs[NAME].problem == "Can Never Run: Not enough total nodes available"
    assert jobs["held"].problem == "job held, too many failed attempts to run"
    assert not jobs["waits"].problem
    program(site, "qselect", "")
    assert active_jobs("pbs") == {}


@pytest.mark.parametrize(
    ("status", "substate", "comment", "end"),
    [
        ("0", "92", "Job run and finished", ("done", 0)),
        ("3", "93", "Job run and failed", ("failed", 3)),
        ("265", "93", "Job run and failed", ("failed", -9)),
        ("-3", "93", "Job could not be started", ("failed", None)),
        ("-29", "93", "Job run and exceeded resou\n\trce walltime", ("timeout", None)),
        ("0", "91", "Job run and terminated", ("cancelled", None)),
        ("", "91", "Can Never Run: Insufficient amount of resource: ncpus", ("cancelled", None)),
    ],
)
def test_ends_of_pbs(site: Path, status: str, substate: str, comment: str, end: tuple[str, int | None]):
    program(site, "qselect", "6.ctl\n")
    answer = PBS_ENDED.replace("SUBSTATE", substate).replace("STATUS", status).replace("COMMENT", comment)
    program(site, "qstat", answer)
    found = ended_job("pbs", NAME)
    assert found is not None
    assert (found.id, found[1:3], found.output) == ("6.ctl", end, "/spool/jobs/x.out")
    assert (comment.replace("\n\t", "") in found.reason) == (found.state != "done")
    program(site, "qselect", "")
    assert ended_job("pbs", NAME) is None


def test_jobs_of_grid_engine_are_listed_with_the_reason_of_an_error_state(site: Path):
    program(site, "qstat", {"-xml": SGE_JOBS, "-j 3": SGE_ERROR})
    jobs = active_jobs("sge")
    assert {name: job[:2] for name, job in jobs.items()} == {
        NAME: ("1", "running"),
        "waits": ("2", "pending"),
        "bad": ("3", "pending"),
    }
    assert [job.problem for job in jobs.values()][:2] == ["", ""]
    assert 'can\'t open output file "/nonexistent/x"' in jobs["bad"].problem
    program(site, "qstat", "no XML")
    with pytest.raises(LauncherError, match="no XML"):
        active_jobs("sge")


@pytest.mark.parametrize(
    ("failed", "status", "end", "reason"),
    [
        ("0", "0", ("done", 0), ""),
        ("0", "3", ("failed", 3), ""),
        (
            "37  : qmaster enforced h_rt, h_cpu, or h_vmem limit",
            "137     (Killed)",
            ("timeout", -9),
            "enforced h_rt",
        ),
        ("100 : assumedly after job", "138     (User defined signal 1)", ("failed", -10), "assumedly after job"),
        ("26  : opening input/output file", "0", ("failed", None), "opening input/output file"),
    ],
)
def test_ends_of_grid_engine(site: Path, failed: str, status: str, end: tuple[str, int | None], reason: str):
    program(site, "qacct", SGE_ENDED.replace("FAILED", failed).replace("STATUS", status))
    found = ended_job("sge", NAME)
    assert found is not None
    assert (found.id, found[1:3]) == ("10", end)
    assert reason in found.reason
    program(site, "qacct", "", status=1, error="error: job name not found")
    assert ended_job("sge", NAME) is None


def test_jobs_of_lsf_are_listed(site: Path):
    program(site, "bjobs", f"1|0|RUN|{NAME}\n2|0|PEND|a\n3|4|PSUSP|b\n4|0|USUSP|c\n5|0|DONE|d\n6|0|UNKWN|e\n")
    assert {name: job[:2] for name, job in active_jobs("lsf").items()} == {
        NAME: ("1", "running"),
        "a": ("2", "pending"),
        "b": ("3[4]", "pending"),
        "c": ("4", "running"),
        "e": ("6", "running"),
    }
    program(site, "bjobs", "", status=255, error="No unfinished job found")
    assert active_jobs("lsf") == {}


@pytest.mark.parametrize(
    ("line", "end", "reason"),
    [
        ("7|DONE|-|-|/spool/jobs/x.out", ("done", 0), ""),
        ("7|EXIT|3|-|/spool/jobs/x.out", ("failed", 3), ""),
        (
            "7|EXIT|140|TERM_RUNLIMIT: job killed after reaching LSF run time limit|/spool/jobs/x.out",
            ("timeout", -12),
            "TERM_RUNLIMIT",
        ),
        ("7|EXIT|-|TERM_OWNER: job killed by owner|/spool/jobs/x.out", ("cancelled", None), "TERM_OWNER"),
    ],
)
def test_ends_of_lsf(site: Path, line: str, end: tuple[str, int | None], reason: str):
    program(site, "bjobs", line + "\n")
    found = ended_job("lsf", NAME)
    assert found is not None
    assert (found.id, found[1:3], found.output) == ("7", end, "/spool/jobs/x.out")
    assert reason in found.reason


@pytest.mark.parametrize(
    ("system", "command", "words"),
    [("pbs", "qdel", "12.ctl"), ("sge", "qdel", NAME), ("lsf", "bkill", f"-J {NAME} 0")],
)
def test_job_is_cancelled(site: Path, system: Any, command: str, words: str):
    program(site, command, "")
    cancel(system, "12.ctl", NAME)
    assert (site / f"{command}.log").read_text().strip() == words


def test_name_of_the_cluster(site: Path):
    batch_system.cluster.cache_clear()
    program(site, "qstat", "Server: ctl\n    server_state = Active\n    server_host = ctl\n")
    program(site, "qconf", "master.site.org\n")
    program(site, "lsid", "IBM Spectrum LSF Standard 10.1.0.13\n\nMy cluster name is blue\nMy master name is m1\n")
    names = [batch_system.cluster(system) for system in ("pbs", "sge", "lsf")]
    assert names == ["ctl", "master.site.org", "blue"]
    batch_system.cluster.cache_clear()


# -- names of backends


@pytest.mark.parametrize(
    ("answers", "backend"),
    [
        ({"--version": "pbs_version = 23.06.06\n"}, PbsBatch),
        ({"--version": "", "-help": "SGE 8.1.9\nusage: qsub [options]\n"}, SgeBatch),
        ({"--version": "", "-help": "UGE 8.6.18\nusage: qsub [options]\n"}, SgeBatch),
        ({"--version": "", "-help": "GE 6.2u5\nusage: qsub [options]\n"}, SgeBatch),
    ],
)
def test_qsub_is_known_by_its_answer(site: Path, answers: dict[str, str], backend: Any):
    program(site, "qsub", answers)
    assert batch_backend("qsub") is backend
    assert type(backend_of("qsub")) is backend


def test_qsub_of_another_system_and_missing_qsub_are_errors(site: Path, monkeypatch: pytest.MonkeyPatch):
    program(site, "qsub", {"--version": "Version: 6.1.2\nCommit: 661e092\n"})
    with pytest.raises(LauncherError, match=r"neither that of PBS.*it says 'Version: 6.1.2"):
        backend_of("qsub")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(LauncherError, match="no command qsub on PATH"):
        backend_of("qsub")


def test_names_of_backends_and_their_fields_are_checked():
    assert backend_of("bsub") == backend_of("lsf") == LsfBatch()
    assert (backend_of("pbs"), backend_of("sge"), batch_backend("slurm")) == (PbsBatch(), SgeBatch(), Sbatch)
    for wrong in (
        lambda: PbsBatch(cores=0),
        lambda: SgeBatch(parallel_environment="a b"),
        lambda: backend_of("torque"),
    ):
        with pytest.raises(BadRequest):
            wrong()
