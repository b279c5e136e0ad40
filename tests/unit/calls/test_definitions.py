"""Functions, classes and modules as people write them, between a script and a real worker."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.support.processes import run_script
from tests.support.waiting import LIMIT

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers start in a directory without modules to import."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")


def run(directory: Path, body: str, before: str = "", **modules: str) -> str:
    """Run a script that submits calls through ``exe``, beside modules; return its output."""
    for name, text in modules.items():
        path = directory / (name.replace("__in__", "/") + ".py")
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(text))
    script = textwrap.dedent(before) + "\nfrom spoolpool import Executor\nwith Executor(max_workers=1) as exe:\n"
    ended = run_script(directory / "script.py", script + textwrap.indent(textwrap.dedent(body), "    "))
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


WRAPPERS = """
    import contextlib, enum, functools, typing

    T = typing.TypeVar("T")

    @functools.lru_cache(maxsize=None)
    def cached(x):
        return 2 * x

    def calls_cached(x):
        return cached(x) + 1

    @functools.singledispatch
    def generic(x):
        return "object"

    @generic.register
    def _(x: int):
        return "int"

    @contextlib.contextmanager
    def context():
        yield 5

    def enters_context():
        with context() as value:
            return value

    class Thing:
        @functools.cached_property
        def once(self):
            return 1

        @functools.lru_cache
        def method(self):
            return 2

        @functools.singledispatchmethod
        def single(self, x):
            return "object"

        @single.register
        def _(self, x: int):
            return 3

    class Box(typing.Generic[T]):
        def __init__(self, value: T):
            self.value = value

    class Color(enum.Enum):
        RED = 1

    def use(thing):
        return thing.once, thing.method(), thing.single(1), Box[int](4).value, Color(1)
"""
USES = """
    print(*(exe.submit(f, *args).result() for f, *args in [
        ({0}cached, 2), ({0}calls_cached, 2), ({0}generic, 1), ({0}enters_context,), ({0}use, {0}Thing())]))
    assert exe.submit({0}Color, 1).result() is {0}Color.RED
    assert isinstance(exe.submit({0}Box, 1).result(), {0}Box)
"""


def test_wrappers_of_the_standard_library_in_a_script(tmp_path: Path, elsewhere: None) -> None:
    out = run(tmp_path, USES.format(""), WRAPPERS)
    assert out == "4 5 int 5 (1, 2, 3, 4, <Color.RED: 1>)\n"


def test_wrappers_of_the_standard_library_in_a_local_module(tmp_path: Path, elsewhere: None) -> None:
    out = run(tmp_path, USES.format("helper."), "import helper", helper=WRAPPERS)
    assert out == "4 5 int 5 (1, 2, 3, 4, <Color.RED: 1>)\n"


def test_local_module_that_cannot_be_pickled_is_imported_by_the_worker(tmp_path: Path, elsewhere: None) -> None:
    body = """
        print(exe.submit(calls.call, 2).result(), exe.submit(locking.make(3)).result())
        thing = exe.submit(locking.Thing, 4).result()
        assert type(thing) is locking.Thing and thing.value == 4
    """
    out = run(
        tmp_path,
        body,
        """
        import logging, sys
        logging.basicConfig(stream=sys.stdout, format="%(message)s")
        import calls, locking
        """,
        calls="import locking, plain\ndef call(x):\n    return plain.double(locking.double(x))\n",
        plain="def double(x):\n    return 2 * x\n",
        locking="""
            import contextvars, threading
            lock = threading.Lock()
            variable = contextvars.ContextVar("variable", default=10)
            def double(x):
                with lock:
                    return 2 * x
            def make(x):
                def add():
                    return x + variable.get()
                return add
            class Thing:
                def __init__(self, value):
                    with lock:
                        self.value = value
        """,
    )
    assert "8 13" in out.splitlines()
    [line] = [line for line in out.splitlines() if "Workers import" in line]
    assert f"Workers import locking from {tmp_path}, because" in line and "cannot pickle '_thread.lock' object" in line


def test_import_in_a_function_finds_modules_beside_the_script(tmp_path: Path, elsewhere: None) -> None:
    before = """
        def use():
            import beside, package.inner
            return beside.VALUE, package.inner.VALUE, __file__
    """
    modules = {"beside": "VALUE = 1\n", "package__in____init__": "", "package__in__inner": "VALUE = 2\n"}
    out = run(tmp_path, "print(exe.submit(use).result())", before, **modules)
    assert out == f"{(1, 2, str(tmp_path / 'script.py'))}\n"


def test_modules_of_one_script_are_not_those_of_another(tmp_path: Path, elsewhere: None) -> None:
    """Two scripts with modules of the same name use one worker; a module that has changed is imported again."""
    script = """
        import sys
        from spoolpool import Executor
        def use():
            import beside
            return beside.VALUE
        with Executor(spool=sys.argv[1]) as exe:
            print(exe.submit(use).result())
            print(open(sys.argv[2], "w").write("VALUE = 'changed'\\n") and exe.submit(use).result())
    """
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "beside.py").write_text(f"VALUE = {name!r}\n")
        (tmp_path / name / "script.py").write_text(textwrap.dedent(script))
    spool = str(tmp_path / "spool")
    spool_command = [sys.executable, "-m", "spoolpool.cli.spool", "init", spool]
    subprocess.run(spool_command, check=True, timeout=LIMIT, capture_output=True)
    worker = subprocess.Popen([sys.executable, "-m", "spoolpool.cli.worker", spool], stderr=subprocess.DEVNULL)
    try:
        for name in ("one", "two"):
            beside = str(tmp_path / name / "beside.py")
            ended = run_script(tmp_path / name / "script.py", textwrap.dedent(script), spool, beside)
            assert (ended.stdout, ended.returncode) == (f"{name}\nchanged\n", 0), ended.stderr
    finally:
        worker.terminate()
        worker.wait(LIMIT)


def test_traceback_and_source_of_a_function_of_the_script(tmp_path: Path, elsewhere: None) -> None:
    before = """
        import inspect

        def fail():
            raise ValueError("here")  # a comment in the source

        def source():
            return inspect.getsource(fail)
    """
    body = """
        import os
        from spoolpool.calls.sources import text_of
        text_of(fail), text_of(source)
        os.remove(__file__)  # the worker does not see it
        error = exe.submit(fail).exception()
        print(error.__cause__)
        print(exe.submit(source).result())
    """
    out = run(tmp_path, body, before)
    assert f'File "{tmp_path}/script.py", line 5, in fail\n    raise ValueError("here")' in out
    assert out.endswith('def fail():\n    raise ValueError("here")  # a comment in the source\n\n')


def test_files_in_the_working_directory_do_not_hide_modules_of_libraries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("queue", "signal", "select", "random", "json", "socket", "mpi4py", "click", "numpy"):
        (tmp_path / f"{name}.py").write_text(f"raise RuntimeError('the wrong {name} was imported')\n")
    (tmp_path / "scripts").mkdir()
    monkeypatch.chdir(tmp_path)
    body = """
        print(exe.submit(pow, 2, 3).result())
        with Executor(max_workers=1, cores_per_worker=2) as of_two_ranks:
            print(of_two_ranks.submit(pow, 2, 3).result())
    """
    assert run(tmp_path / "scripts", body) == "8\n[8, 8]\n"


LAZY = """
    import sys, types

    class Module(types.ModuleType):
        def __getattr__(self, name):
            raise RuntimeError(f"cannot load {name}")

    class NoModule:
        def __getattr__(self, name):
            raise ImportError(f"cannot load {name}")

    class Worst:
        def __getattribute__(self, name):
            raise KeyError(name)

    sys.modules.update(lazy_1=Module("lazy_1"), lazy_2=NoModule(), lazy_3=Worst(), lazy_4=None)
    import late
"""


def test_modules_with_attributes_that_raise_disturb_no_call(tmp_path: Path, elsewhere: None) -> None:
    body = "print(exe.submit(late.call, 1).result(), exe.submit(lambda: 2).result(), exe.submit(pow, 3, 1).result())"
    assert run(tmp_path, body, LAZY, late="def call(x):\n    return x\n") == "1 2 3\n"


def test_registry_of_cloudpickle_is_not_changed(tmp_path: Path, elsewhere: None) -> None:
    """Several modules of the standard library have other names than their files."""
    before = """
        import cloudpickle, cloudpickle.cloudpickle, email.mime.text, json, multiprocessing, numpy, os.path, sys
        import near
        from spoolpool.calls.modules import is_local
    """
    body = """
        exe.submit(near.call).result()
        print(cloudpickle.list_registry_pickle_by_value(), sorted(filter(is_local, list(sys.modules))))
    """
    assert run(tmp_path, body, before, near="def call():\n    return 1\n") == "set() ['near']\n"


def test_package_that_an_import_hook_finds_is_pickled_by_reference(tmp_path: Path) -> None:
    """Build backends install such a hook for ``pip install --editable``; a ``.pth`` file imports it."""
    site = tmp_path / "env" / "lib" / "site-packages"
    site.mkdir(parents=True)
    (tmp_path / "project" / "src" / "hooked").mkdir(parents=True)
    (tmp_path / "project" / "src" / "hooked" / "__init__.py").write_text("def call():\n    return 1\n")
    (site / "__editable___hooked_finder.py").write_text(
        textwrap.dedent(f"""
            import sys
            from importlib.util import spec_from_file_location
            class Finder:
                @classmethod
                def find_spec(cls, fullname, path=None, target=None):
                    if fullname == "hooked":
                        return spec_from_file_location("hooked", {str(tmp_path / "project/src/hooked/__init__.py")!r})
            def install():
                sys.meta_path.append(Finder)
        """)
    )
    (site / "__editable__.hooked.pth").write_text(
        "import __editable___hooked_finder; __editable___hooked_finder.install()"
    )
    script = f"""
        import site, sys
        site.addsitedir({str(site)!r})
        sys.path.remove({str(site)!r}); sys.path.append({str(site)!r})
        import hooked
        from spoolpool.calls import pickling
        print(b"_make_function" in pickling.dumps(hooked.call)[0])
    """
    ended = run_script(tmp_path / "script.py", textwrap.dedent(script))
    assert (ended.stdout, ended.returncode) == ("False\n", 0), ended.stderr


RESUMED = """
    import enum, sys
    from spoolpool import Executor, Session

    class Color(enum.Enum):
        RED = 1

    class Thing:
        limit = 5
        def __init__(self, value):
            self.value = value

    def make():
        return [Thing(1), Color.RED]

    with Executor(spool=sys.argv[1], session=Session("again", resume=True)) as exe:
        thing, color = exe.submit(make).result()
        print(type(thing) is Thing, thing.value, color is Color.RED)
        Thing.limit = 6
        exe.submit(make).result()
        print(Thing.limit)
"""


def test_classes_of_the_script_are_its_own_in_a_resumed_session(tmp_path: Path, elsewhere: None) -> None:
    spool = str(tmp_path / "spool")
    command = [sys.executable, "-m", "spoolpool.cli.spool", "init", spool]
    subprocess.run(command, check=True, timeout=LIMIT, capture_output=True)
    worker = subprocess.Popen([sys.executable, "-m", "spoolpool.cli.worker", spool], stderr=subprocess.DEVNULL)
    try:
        for _ in range(2):
            ended = run_script(tmp_path / "script.py", textwrap.dedent(RESUMED), spool)
            assert (ended.stdout, ended.returncode) == ("True 1 True\n6\n", 0), ended.stderr
            if worker.poll() is None:  # the second run reads the outcomes of the first
                worker.terminate()
                worker.wait(LIMIT)
    finally:
        worker.kill()
        worker.wait(LIMIT)


def test_path_that_is_no_text_is_refused_with_its_field(tmp_path: Path) -> None:
    directory = os.fsdecode(os.fsencode(tmp_path / "d") + b"\xff")
    os.mkdir(directory)
    body = f"""
        for keywords in ({{"resource_dict": {{"cwd": {directory!r}}}}},):
            try:
                exe.submit(pow, 2, 3, **keywords)
            except ValueError as error:
                print(error)
        print(exe.submit(pow, 2, 3).result())
    """
    out = run(tmp_path, body)
    assert out.startswith("The field 'cwd' of a call contains bytes that are not UTF-8") and out.endswith("8\n")
    assert "\\udcff" in out


def test_call_runs_in_a_directory_whose_name_is_no_text(tmp_path: Path) -> None:
    directory = os.fsdecode(os.fsencode(tmp_path / "d") + b"\xff")
    os.mkdir(directory)
    body = """
        import os
        print(ascii(exe.submit(os.getcwd).result()))
    """
    before = f"import os; os.chdir({directory!a})"
    assert run(tmp_path, body, before) == ascii(directory) + "\n"
