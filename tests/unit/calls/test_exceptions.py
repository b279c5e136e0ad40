"""Exceptions keep type, arguments, attributes, notes, cause and context on the way from a worker."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from spoolpool.calls import pickling
from spoolpool.calls.results import error_of
from spoolpool.calls.run import InitializerCache, failure_report, run_call
from spoolpool.context import CurrentTask
from spoolpool.errors import RemoteTraceback, TaskFailed
from spoolpool.format.envelope import Envelope
from spoolpool.format.headers import OutcomeHeader, TaskHeader
from spoolpool.system.environment import without_mpi

if TYPE_CHECKING:
    from typing_extensions import Self


class Two(Exception):
    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{reason} (code {code})")
        self.code, self.reason = code, reason


class KeywordOnly(RuntimeError):
    def __init__(self, *, code: int) -> None:
        super().__init__()
        self.code = code

    def __str__(self) -> str:
        return f"code {self.code}"


class Prefixed(ValueError):
    def __init__(self, text: str) -> None:
        super().__init__(f"prefix: {text}")


class WithoutSuper(Exception):
    def __init__(self, first: int, *, second: int) -> None:
        self.sum = first + second


class Slotted(Exception):
    __slots__ = ("code", "unset")

    def __init__(self, code: int) -> None:
        self.code = code


class ReadOnly(Exception):
    def __init__(self, text: str, limit: int) -> None:
        super().__init__(text)
        self.__dict__["limit"] = limit

    @property
    def limit(self) -> int:
        return int(self.__dict__["limit"])


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    code: int
    name: str = "x"


class OwnReduce(Exception):
    def __init__(self, first: int, second: int) -> None:
        super().__init__(first)
        self.second = second

    def __reduce__(self) -> Any:
        return OwnReduce, (self.args[0], self.second)


class WrongReduce(Exception):
    def __init__(self, first: int, second: int) -> None:
        super().__init__(first)
        self.second = second

    def __reduce__(self) -> Any:
        return WrongReduce, self.args


class OwnFile(FileNotFoundError):
    def __init__(self, path: str) -> None:
        super().__init__(2, "No such file or directory", path)
        self.path = path


if sys.version_info >= (3, 11):

    class OwnGroup(ExceptionGroup[Exception]):  # noqa: F821
        code: int

        def __new__(cls, errors: list[Exception], code: int) -> Self:
            made = super().__new__(cls, "several", errors)
            made.code = code
            return made


class OwnDecodeError(UnicodeDecodeError):
    def __init__(self, raw: bytes) -> None:
        super().__init__("utf-8", raw, 0, 1, "no text")


def received(error: BaseException) -> BaseException:
    """Return an exception after it was raised and sent by a worker, and read by a submitter."""
    with pytest.raises(type(error)) as raised:
        raise error
    report = failure_report(raised.value, 0)
    header = OutcomeHeader(task="t", kind="error", worker="w", host="h", started=0.0, ended=0.0, failure=report.failure)
    return error_of(header, Envelope(b"", bytes(report.payload), [bytes(each) for each in report.buffers]))


def described(error: BaseException) -> tuple[object, ...]:
    return type(error), str(error), error.args, {k: v for k, v in vars(error).items() if k != "__notes__"}


ERRORS: list[Callable[[], BaseException]] = [
    lambda: ValueError("text", 3),
    lambda: Two(7, "no such thing"),
    lambda: KeywordOnly(code=7),
    lambda: Prefixed("text"),
    lambda: WithoutSuper(1, second=2),
    lambda: ReadOnly("text", 3),
    lambda: Frozen(3),
    lambda: OwnReduce(1, 2),
    lambda: WrongReduce(1, 2),
    lambda: OwnFile("/missing"),
    lambda: FileNotFoundError(2, "No such file or directory", "/a", None, "/b"),
    lambda: OwnDecodeError(b"\xff"),
    lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no text"),
    lambda: SystemExit(3),
    lambda: StopIteration(5),
    KeyboardInterrupt,
    lambda: SyntaxError("wrong", ("file", 1, 2, "text")),
    lambda: ImportError("no module", name="numpy", path="/x"),
    lambda: KeyError("key"),
    lambda: ValueError("lone surrogate \udc80"),
]


@pytest.mark.parametrize("make", ERRORS, ids=lambda make: type(make()).__name__)
def test_exception_arrives_with_type_text_arguments_and_attributes(make: Callable[[], BaseException]) -> None:
    error = received(make())
    assert described(error) == described(make())
    assert isinstance(error.__cause__, RemoteTraceback)
    for name in ("code", "value", "errno", "filename", "filename2", "object", "reason", "lineno", "path", "name"):
        if name != "name" or isinstance(error, Frozen):  # ImportError keeps its name only where Python pickles it
            assert getattr(error, name, None) == getattr(make(), name, None)


def test_slots_of_an_exception_arrive() -> None:
    error = received(Slotted(4))
    assert isinstance(error, Slotted) and error.code == 4 and not hasattr(error, "unset")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python has groups of exceptions from 3.11 on")
def test_groups_keep_their_exceptions() -> None:
    error: Any = received(OwnGroup([Two(1, "one"), ExceptionGroup("inner", [KeywordOnly(code=2)])], 5))  # noqa: F821
    assert type(error) is OwnGroup and error.code == 5
    first, inner = error.exceptions
    assert isinstance(first, Two) and type(inner).__name__ == "ExceptionGroup"
    assert str(inner.exceptions[0]) == "code 2"


def test_cause_context_and_notes_arrive_and_the_remote_traceback_comes_first() -> None:
    error = Two(1, "outer")
    error.__cause__ = KeywordOnly(code=2)
    error.__cause__.__context__ = KeyError("innermost")
    error.add_note("a note")
    found = received(error)
    assert isinstance(found.__cause__, KeywordOnly) and found.__cause__.code == 2
    assert isinstance(found.__cause__.__context__, KeyError)
    assert found.__notes__ == ["a note"]
    assert isinstance(found.__cause__.__cause__, RemoteTraceback)
    assert "innermost" in str(found.__cause__.__cause__)


def test_context_without_a_cause_arrives() -> None:
    error = ValueError("outer")
    error.__context__ = ZeroDivisionError("inner")
    found = received(error)
    assert isinstance(found.__context__, ZeroDivisionError)
    assert isinstance(found.__cause__, RemoteTraceback)


def test_cycle_of_causes_arrives() -> None:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    found = received(first)
    assert str(found) == "first" and str(found.__cause__) == "second"


def test_exception_that_refers_to_itself_arrives() -> None:
    error = Two(1, "outer")
    error.me = error  # type: ignore[attr-defined]
    found = received(error)
    assert found.me is found  # type: ignore[attr-defined]


def test_long_chain_of_causes_does_not_cost_the_type() -> None:
    error = first = Two(0, "last")
    for number in range(3000):
        first.__cause__ = first = Two(number, "link")  # type: ignore[assignment]
    assert described(received(error)) == described(Two(0, "last"))


def test_attribute_that_cannot_be_pickled_is_left_out_and_named() -> None:
    error = Two(7, "held")
    error.lock, error.inner = threading.Lock(), [Two(8, "inner")]  # type: ignore[attr-defined]
    found = received(error)
    assert isinstance(found, Two) and found.code == 7 and not hasattr(found, "lock")
    assert found.inner[0].code == 8  # type: ignore[attr-defined]
    assert "attribute 'lock' (TypeError: cannot pickle '_thread.lock' object)" in found.__notes__[0]


def test_argument_that_cannot_be_pickled_is_replaced_by_its_text() -> None:
    found = received(RuntimeError("text", threading.Lock()))
    assert type(found) is RuntimeError and found.args == ("text", "<lock>")
    assert "argument 1 (TypeError" in found.__notes__[0]


def test_cause_with_an_attribute_that_cannot_be_pickled_arrives() -> None:
    error = ValueError("outer")
    error.__cause__ = Two(1, "inner")
    error.__cause__.lock = threading.Lock()  # type: ignore[attr-defined]
    found = received(error)
    assert type(found) is ValueError and isinstance(found.__cause__, Two)


def test_exception_whose_class_cannot_be_pickled_is_described() -> None:
    class Unpicklable(type):
        def __reduce_ex__(cls, protocol: object) -> Any:
            raise TypeError("no")

    class Local(Exception, metaclass=Unpicklable):
        lock = threading.Lock()

    error = received(Local("text"))
    assert type(error) is TaskFailed and "Local" in str(error) and "text" in str(error)


def test_exception_whose_class_cannot_be_loaded_by_the_submitter_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    report = failure_report(Two(7, "held"), 0)
    header = OutcomeHeader(task="t", kind="error", worker="w", host="h", started=0.0, ended=0.0, failure=report.failure)
    monkeypatch.delattr(f"{__name__}.Two")
    error = error_of(header, Envelope(b"", bytes(report.payload), []))
    assert type(error) is TaskFailed and "Two: held (code 7)" in str(error)


def test_exception_as_a_value_keeps_its_type() -> None:
    payload, buffers = pickling.dumps([Two(7, "value")])
    [error] = pickling.loads(payload, buffers)
    assert described(error) == described(Two(7, "value"))


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions have notes from Python 3.11 on")
@pytest.mark.parametrize("variable", ["PMI_RANK", "OMPI_COMM_WORLD_RANK", "UNRELATED"])
def test_error_of_a_program_that_inherits_variables_of_mpi_names_the_clean_environment(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in set(os.environ) - set(without_mpi(os.environ)):
        monkeypatch.delenv(name)
    monkeypatch.setenv(variable, "0")
    task = CurrentTask(id="t", attempt=1, worker="w")
    payload, buffers = pickling.dumps((subprocess.run, (["false"],), {"check": True}))
    header = TaskHeader(task="t", session="s", lane="l", bucket="b", submitted=0.0)
    report = run_call(task, payload, buffers, header=header, initializers=InitializerCache())
    error = pickling.loads(bytes(report.payload), report.buffers)
    assert isinstance(error, subprocess.CalledProcessError)
    notes = getattr(error, "__notes__", [])
    assert any("clean_environment()" in note for note in notes) == (variable != "UNRELATED")
