"""Defaults of a site and of a user: their order, their mistakes, and the commands that use or show them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click.testing
import pytest

from spoolpool import Executor, FluxBatch, LsfBatch, PbsBatch, Sbatch, SgeBatch, settings
from spoolpool.cli.spool import main
from spoolpool.cli.worker import main as worker
from spoolpool.client import executor_runtime
from spoolpool.errors import BadRequest, LauncherError
from spoolpool.launch import jsrun, mpiexec, selection
from spoolpool.launch.allocation import Allocation
from spoolpool.launch.local import LocalLauncher
from spoolpool.pool.batch_system import Job
from spoolpool.protocol.spool import Spool
from spoolpool.security.permissions import why_replaceable
from spoolpool.system import defaults
from tests.support.accounts import unused_id

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="files of other accounts need root")


class Files:
    """Files of defaults in a directory of the test."""

    def __init__(self, directory: Path) -> None:
        self.user = directory / "config" / "spoolpool" / "config.toml"
        self.named = directory / "named.toml"
        self.site = directory / "etc.toml"
        self.user.parent.mkdir(parents=True)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    found = Files(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(defaults, "SITE_FILE", str(found.site))
    return found


def run(*words: object) -> click.testing.Result:
    return click.testing.CliRunner().invoke(main, [*map(str, words)])


# -- order


def test_each_source_wins_over_the_ones_after_it(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    assert defaults.find("lease") == (settings.LEASE, defaults.BUILT_IN)
    files.site.write_text("lease = 10\ncaches = 5\n")
    assert defaults.find("lease") == (10, str(files.site))
    files.named.write_text('lease = "20s"\n')
    monkeypatch.setenv(settings.ENV_CONFIG, str(files.named))
    assert defaults.find("lease") == (20, str(files.named))
    assert defaults.find("caches") == (5, str(files.site)), "each key by itself"
    files.user.write_text("lease = 30.0\n")
    assert defaults.find("lease") == (30, str(files.user))
    monkeypatch.setenv(settings.ENV_LEASE, "40")
    assert defaults.find("lease") == (40, settings.ENV_LEASE)
    monkeypatch.setenv(settings.ENV_LEASE, "")
    assert defaults.find("lease") == (settings.LEASE, settings.ENV_LEASE), "an empty variable stands for that value"


def test_an_option_of_a_command_wins_over_all_defaults(files: Files, tmp_path: Path) -> None:
    files.site.write_text('lease = "2m"\ncaches = 7\n')
    assert run("init", tmp_path / "a").exit_code == 0
    assert run("init", tmp_path / "b", "--lease=3").exit_code == 0
    assert [Spool(tmp_path / name).config.lease for name in "ab"] == [120, 3]
    assert [Spool(tmp_path / name).config.caches for name in "ab"] == [7, 7]
    assert Spool.create(tmp_path / "c").config.lease == 120
    assert Spool.create(tmp_path / "d", lease=4, caches=1).config.caches == 1


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("launcher", '"srun"', "srun"),
        ("mpi", '"pmix_v4"', "pmix_v4"),
        ("partition", '"gpu,cpu-long"', "gpu,cpu-long"),
        ("account", '"project@site"', "project@site"),
        ("queue", '"normal"', "normal"),
        ("lease", '"1:30:00"', 5400.0),
        ("caches", "0", 0.0),
        ("preview", "false", False),
        ("parents", '["/project", "/scratch/shared"]', ("/project", "/scratch/shared")),
    ],
)
def test_every_key_has_a_value_in_a_file_and_in_a_variable(
    files: Files, monkeypatch: pytest.MonkeyPatch, key: str, text: str, value: Any
) -> None:
    files.site.write_text(f"{key} = {text}\n")
    assert defaults.find(key) == (value, str(files.site))
    files.site.unlink()
    variable = defaults.KEYS[key].variable
    monkeypatch.setenv(variable, ":".join(value) if isinstance(value, tuple) else text.strip('"'))
    assert defaults.find(key) == (value, variable)


def test_all_keys_are_tested() -> None:
    [mark] = test_every_key_has_a_value_in_a_file_and_in_a_variable.pytestmark
    assert {key for key, *_ in mark.args[1]} == set(defaults.KEYS)
    assert selection.NAMES == settings.LAUNCHERS


# -- mistakes


MISTAKES = [
    ("leese = 60", "has the unknown key 'leese'; the keys are launcher, mpi,"),
    ("[site]\nlease = 60", "has the unknown key 'site'"),
    ('launcher = "slurm"', f"launcher is 'slurm'; it must be one of {', '.join(settings.LAUNCHERS)}"),
    ("launcher = 3", "launcher is 3; it must be one of"),
    ("launcher = []", "launcher is .*; it must be one of"),
    ('partition = "a b"', "partition is 'a b'; it must be a text"),
    ('partition = "a\\n#SBATCH --uid=0"', "partition is .*; it must be a text"),
    ('account = "-x"', "account is '-x'; it must be a text"),
    ('queue = ""', "queue is ''; it must be a text"),
    ("mpi = true", "mpi is True; it must be a text"),
    ("lease = 0", "lease is 0; it must be more than 0 s"),
    ("lease = -1", "lease is -1; it must be"),
    ("lease = nan", "lease is nan; it must be"),
    ("lease = true", "lease is True; it must be"),
    ('lease = "1:30"', "lease is '1:30', which can mean .* '1:30:00' or '0:01:30'"),
    ("lease = 60000", "lease is 60000: .* milliseconds are written as '60s'"),
    ("lease = 00:01:00", "lease is .*; it must be"),
    ('caches = "soon"', "caches is 'soon'; it must be a number of seconds"),
    ('parents = "/project"', "parents is '/project'; it must be a list of absolute paths"),
    ('parents = ["project"]', "parents is .*; it must be a list of absolute paths"),
    ("lease 60", r"is not TOML: .*line 1"),
    ("lease = 60\nlease = 61", r"is not TOML"),
    ("lease = " + "[" * 5000, "is not TOML"),
    ("#" + "x" * 70_000, "has more than 65536 bytes"),
]


@pytest.mark.parametrize(("text", "message"), MISTAKES, ids=range(len(MISTAKES)))
def test_a_mistake_is_an_error_with_file_and_key_for_what_needs_the_file(
    files: Files, tmp_path: Path, text: str, message: str
) -> None:
    files.site.write_text(text)
    with pytest.raises(BadRequest, match=f"(?s){re.escape(str(files.site))}.* {message}.*until then, give lease as"):
        defaults.find("lease")
    done = run("init", tmp_path / "spool")
    assert done.exit_code not in (0, settings.EXIT_UNEXPECTED)
    assert str(files.site) in done.stderr
    assert not (tmp_path / "spool").exists()


def test_text_that_is_not_unicode_is_a_mistake(files: Files) -> None:
    files.site.write_bytes(b'account = "\xff"\n')
    with pytest.raises(BadRequest, match="is not TOML"):
        defaults.find("account")


def test_a_mistake_does_not_concern_what_an_option_or_variable_or_earlier_file_decides(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.site.write_text("leese = 60\n")
    assert run("init", tmp_path / "a", "--lease=3", "--caches=1").exit_code == 0
    monkeypatch.setenv(settings.ENV_LEASE, "5")
    files.user.write_text("caches = 2\n")
    assert run("init", tmp_path / "b").exit_code == 0
    assert Spool(tmp_path / "b").config.lease == 5


def test_a_mistake_stops_no_command_that_only_looks(files: Files, spool: Spool) -> None:
    files.site.write_text("leese = 60\n")
    for command in ("status", "ls", "check"):
        assert run(command, spool.path).exit_code == 0
    for words in ([], ["--json"]):
        shown = run("config", *words)
        assert shown.exit_code == 0
        assert "unknown key 'leese'" in shown.output
    assert run("config", "--check").exit_code == 1


def test_a_wrong_variable_is_an_error_with_its_name(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(settings.ENV_LAUNCHER, "slurm")
    with pytest.raises(BadRequest, match=f"{settings.ENV_LAUNCHER} in the environment is 'slurm'; it must be one of"):
        defaults.find("launcher")
    assert f"{settings.ENV_LAUNCHER} in the environment is 'slurm'" in run("config").stderr


def test_a_named_file_needs_an_absolute_path(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files.named.write_text("lease = 10\n")
    monkeypatch.setenv(settings.ENV_CONFIG, files.named.name)
    with pytest.raises(BadRequest, match=f"{settings.ENV_CONFIG} is '{files.named.name}'; it must be an absolute path"):
        defaults.find("lease")


def test_a_named_file_that_does_not_exist_is_a_mistake(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(settings.ENV_CONFIG, str(files.named))
    with pytest.raises(BadRequest, match=f"{files.named} does not exist, and {settings.ENV_CONFIG} names it"):
        defaults.find("lease")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.mkdir(), "is not a regular file|cannot be read"),
        (os.mkfifo, "is not a regular file"),
        (lambda path: (path.touch(), path.chmod(0o666)), "has mode 0666: other accounts can write to it"),
        (lambda path: (path.touch(), path.chmod(0o602)), "has mode 0602: other accounts can write to it"),
    ],
)
def test_a_file_that_others_can_write_to_is_not_used(
    files: Files, make: Callable[[Path], object], message: str
) -> None:
    make(files.site)
    with pytest.raises(BadRequest, match=message):
        defaults.find("lease")


@as_root
def test_a_file_of_another_account_is_not_used(files: Files) -> None:
    for path in (files.user, files.site):
        path.write_text("lease = 10\n")
        os.chown(path, unused_id(), -1)
        with pytest.raises(BadRequest, match=f"{path} belongs to .*; it must belong to root or to you"):
            defaults.find("lease")
        path.unlink()


def test_a_link_to_a_file_of_root_or_of_the_account_is_followed(files: Files, tmp_path: Path) -> None:
    (tmp_path / "versioned.toml").write_text("lease = 10\n")
    files.site.symlink_to(tmp_path / "versioned.toml")
    assert defaults.find("lease").value == 10


# -- uses


def test_a_supervisor_and_an_executor_have_the_default_launcher(
    files: Files, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.site.write_text('launcher = "local"\n')
    with Executor(max_workers=1) as executor:
        assert executor.info["backend"] == "local"
        assert executor.submit(pow, 2, 2).result() == 4
    with Executor(max_workers=1, backend="auto") as executor:
        assert executor.info["backend"] == "auto", "an explicit argument wins"

    def refuse(name: str) -> None:
        raise BadRequest(f"The launcher is {name}.")

    monkeypatch.setattr(selection, "select_launcher", refuse)
    for options, name in (([], "local"), (["--launcher=mpiexec"], "mpiexec"), (["--launcher=auto"], "auto")):
        done = click.testing.CliRunner().invoke(worker, [spool.path, "--groups=1", *options])
        assert f"The launcher is {name}." in done.stderr


@pytest.mark.parametrize("launcher", settings.LAUNCHERS)
@pytest.mark.parametrize("in_job", [False, True])
def test_every_default_launcher_is_one_for_an_executor(
    files: Files, monkeypatch: pytest.MonkeyPatch, launcher: str, in_job: bool
) -> None:
    system: Any = {"srun": "slurm", "flux": "flux", "jsrun": "lsf"}.get(launcher, "none") if in_job else "none"
    allocation = Allocation(system=system, nodes=("n1",), cores=(1,), gpus=(0,))
    chosen: list[str] = []

    def choose(name: str) -> LocalLauncher:
        chosen.append(selection._find_best(allocation) if name == "auto" else name)
        return LocalLauncher()

    monkeypatch.setattr(selection, "find_allocation", lambda: allocation)
    monkeypatch.setattr(selection, "in_step", lambda: False)
    monkeypatch.setattr(jsrun, "has_jsrun", lambda: True)
    monkeypatch.setattr(mpiexec, "find_mpiexec", lambda: None)
    monkeypatch.setattr(executor_runtime, "select_launcher", choose)
    monkeypatch.setenv(settings.ENV_LAUNCHER, launcher)
    with Executor(max_workers=1) as executor:
        assert executor.submit(pow, 2, 2).result() == 4
    expected = launcher if launcher == "mpiexec" or system != "none" else "local"
    assert chosen == [expected]


def test_an_executor_that_starts_no_groups_needs_no_launcher(files: Files, spool: Spool) -> None:
    files.site.write_text("leese = 60\n")
    with Executor(spool=spool.path):
        pass
    with pytest.raises(BadRequest, match="leese"):
        Executor(max_workers=1)
    with Executor(max_workers=1, backend="local") as executor:
        assert executor.submit(pow, 2, 2).result() == 4


@pytest.mark.parametrize(
    ("launcher", "system", "step", "chosen"),
    [
        ("srun", "slurm", False, "srun"),
        ("srun", "slurm", True, "auto"),
        ("srun", "flux", False, "auto"),
        ("srun", "none", False, "auto"),
        ("flux", "flux", False, "flux"),
        ("flux", "none", False, "auto"),
        ("jsrun", "lsf", False, "jsrun"),
        ("jsrun", "pbs", False, "auto"),
        ("mpiexec", "slurm", False, "mpiexec"),
        ("mpiexec", "none", False, "mpiexec"),
    ],
)
def test_a_launcher_of_a_batch_system_gives_way_to_auto_outside_its_jobs(
    files: Files, monkeypatch: pytest.MonkeyPatch, launcher: str, system: Any, step: bool, chosen: str
) -> None:
    monkeypatch.setattr(selection, "find_allocation", lambda: Allocation(system=system, nodes=(), cores=(), gpus=()))
    monkeypatch.setattr(selection, "in_step", lambda: step)
    files.site.write_text(f'launcher = "{launcher}"\n')
    assert selection.default_launcher() == chosen


def directives(**options: Any) -> list[str]:
    lines = Job(spool="/s", **options).script("n", "/o").splitlines()
    return [line for line in lines if re.search("^#.*(partition|account|queue|bank| -[pAqBP](?!e))", line)]


def test_batch_jobs_have_the_default_options_of_their_system_unless_a_directive_or_template_gives_them(
    files: Files,
) -> None:
    files.site.write_text('partition = "long"\naccount = "p1"\nqueue = "night"\n')
    assert directives(backend=Sbatch()) == ["#SBATCH --partition=long", "#SBATCH --account=p1"]
    assert directives(backend=FluxBatch()) == ["# flux: --queue=night", "# flux: --bank=p1"]
    assert directives(backend=PbsBatch(cores=4)) == ["#PBS -q night", "#PBS -A p1"]
    assert directives(backend=LsfBatch(cores=4)) == ["#BSUB -q night", "#BSUB -P p1"]
    assert directives(backend=SgeBatch(cores=4, parallel_environment="mpi")) == ["#$ -q night", "#$ -P p1"]
    assert directives(backend=PbsBatch(cores=4, directives=["-qday"])) == ["#PBS -A p1", "#PBS -qday"]
    for given in ("--partition=short", "--partition short", "-p short", "-pshort"):
        found = directives(backend=Sbatch(directives=[given]))
        assert found == ["#SBATCH --account=p1", f"#SBATCH {given}"]
    template = "#!/bin/sh\n#SBATCH --nodes=$nodes --account=own\n$directives\nexec $worker\n"
    found = directives(backend=Sbatch(), template=template)
    assert found == ["#SBATCH --nodes=1 --account=own", "#SBATCH --partition=long"]


def test_an_empty_variable_takes_a_default_option_away(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    files.site.write_text('queue = "night"\naccount = "p1"\n')
    monkeypatch.setenv(settings.ENV_QUEUE, "")
    assert directives(backend=FluxBatch()) == ["# flux: --bank=p1"]


def test_a_rejected_job_names_the_sources_of_its_default_options(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.site.write_text('partition = "gone"\n')
    fake = tmp_path / "bin" / "sbatch"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\necho 'invalid partition' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(fake.parent))
    with pytest.raises(LauncherError, match=f"invalid partition.*with --partition=gone from {files.site}"):
        Job(backend=Sbatch(), spool="/s").submit("n", "/o")


def test_a_mistake_that_a_file_gets_later_does_not_concern_a_job_description(files: Files) -> None:
    files.site.write_text('partition = "long"\n')
    job = Job(backend=Sbatch(), spool="/s")
    files.site.write_text("leese = 60\n")
    assert "--partition=long" in job.script("n", "/o")


@as_root
def test_parents_count_as_protected(files: Files, tmp_path: Path) -> None:
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    assert "All accounts can replace" in why_replaceable(str(open_to_all / "spool"), 0)
    files.site.write_text(f'parents = ["{open_to_all}"]\n')
    assert why_replaceable(str(open_to_all / "spool"), 0) == ""
    files.site.write_text(f'leese = 1\nparents = ["{open_to_all}"]\n')
    assert "All accounts can replace" in why_replaceable(str(open_to_all / "spool"), 0), "a bad file protects nothing"


def test_config_shows_value_and_source_of_each_key(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    files.site.write_text('launcher = "srun"\nparents = ["/a", "/b"]\n')
    files.user.write_text('lease = "2m"\n')
    monkeypatch.setenv(settings.ENV_ACCOUNT, "mine")
    lines = [line.split() for line in run("config").stdout.splitlines()]
    assert ["launcher", "srun", str(files.site)] in lines
    assert ["lease", "120", "s", str(files.user)] in lines
    assert ["account", "mine", settings.ENV_ACCOUNT] in lines
    assert ["partition", "-", *defaults.BUILT_IN.split()] in lines
    assert ["parents", "/a:/b", str(files.site)] in lines
    assert ["file", "used", str(files.site)] in lines
    shown = json.loads(run("config", "--json").stdout)
    assert shown["problems"] == []
    assert shown["values"].keys() == defaults.KEYS.keys()
    assert shown["values"]["lease"] == {"value": 120.0, "source": str(files.user), "variable": settings.ENV_LEASE}
    assert shown["values"]["parents"]["value"] == ["/a", "/b"]
    assert shown["values"]["partition"]["value"] is None
    assert [each["state"] for each in shown["files"]] == ["used", "used"]


# -- the page for user support

PAGE = (Path(__file__).parents[3] / "docs" / "operators.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    [text] = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return str(text)


def test_the_file_of_the_page_has_all_keys_and_no_mistake(files: Files) -> None:
    files.site.write_text(block("toml"))
    shown = json.loads(run("config", "--json", "--check").stdout)
    assert {value["source"] for value in shown["values"].values()} == {str(files.site)}


def test_the_page_describes_all_keys_and_their_variables() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(SPOOLPOOL_\w+)` \|", PAGE, re.MULTILINE)
    assert rows == [(key, each.variable) for key, each in defaults.KEYS.items()]


STUBS = {
    "lua": """
function help(text) end
function whatis(text) end
function pathJoin(a, b) return a .. "/" .. b end
function prepend_path(name, value) print(name .. "<" .. value) end
function setenv(name, value) print(name .. "=" .. value) end
""",
    "tcl": """
proc module-whatis {text} {}
proc prepend-path {name value} {puts "$name<$value"}
proc setenv {name value} {puts "$name=$value"}
""",
}


@pytest.mark.parametrize(("language", "program"), [("lua", "lua"), ("tcl", "tclsh")])
def test_module_files_of_the_page_set_the_path_and_the_file_of_the_site(
    tmp_path: Path, language: str, program: str
) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not on PATH")
    script = tmp_path / "module"
    script.write_text(STUBS[language] + block(language))
    done = subprocess.run([program, str(script)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "PATH</sw/spoolpool/1.0/bin",
        f"{settings.ENV_CONFIG}=/sw/spoolpool/site.toml",
    ]
