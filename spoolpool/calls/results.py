"""Content of an outcome: a value, the values of several ranks, or an exception with its remote traceback."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from spoolpool.calls import pickling
from spoolpool.calls.pickling import ObjectRef, Reference
from spoolpool.errors import BadTaskFile, DependencyFailed, RemoteTraceback, SpoolpoolError, TaskFailed
from spoolpool.format.envelope import Buffer, Envelope
from spoolpool.format.headers import Failure, OutcomeHeader
from spoolpool.system.user_code import describe_error, describe_value, is_interrupt

if TYPE_CHECKING:
    from spoolpool.protocol.object_cache import ObjectCache


class DependencyValue(NamedTuple):
    """Result of a task, for a call with a reference to it among its arguments."""

    session: str
    task: str
    ranks: int
    """Number of ranks with a value in the result."""
    payload: Buffer
    buffers: Sequence[Buffer]


class ReferenceResolver:
    """Resolver of the references of one call. It unpickles each value at the first use.

    ``named`` are the objects that the header of the call names.
    """

    def __init__(
        self,
        dependencies: Iterable[DependencyValue],
        objects: ObjectCache | None = None,
        named: Container[str] = frozenset(),
    ) -> None:
        self._dependencies = {(each.session, each.task): each for each in dependencies}
        self._objects = objects
        self._named = named
        self._values: dict[tuple[str, str], Any] = {}

    def __call__(self, reference: Reference | ObjectRef) -> Any:
        """Return the value or the selected part of it; raise :class:`DependencyFailed` where that part is missing."""
        return self._object(reference) if isinstance(reference, ObjectRef) else self._result(reference)

    def _object(self, ref: ObjectRef) -> Any:
        key = "", ref.name
        if key not in self._values:
            if self._objects is None or ref.name not in self._named:
                raise BadTaskFile(f"The call refers to the object {ref.name}, which its header does not name.")
            content = self._objects.content(ref.name)
            self._values[key] = pickling.loads(content.payload, content.buffers)
        return self._values[key]

    def _result(self, reference: Reference) -> Any:
        key = reference.session, reference.task
        if key not in self._values:
            if key not in self._dependencies:
                raise BadTaskFile(f"The call refers to the result of {reference.task}, which its header does not name.")
            self._values[key] = value_of_ranks(*self._dependencies[key][2:])
        value = self._values[key]
        for part in reference.keys:
            try:
                value = value[part]
            except BaseException as error:  # a __getitem__ may raise anything
                if is_interrupt(error):
                    raise
                raise DependencyFailed(
                    f"The result of task {reference.task} ({type(value).__name__}) has no part "
                    f"[{describe_value(part)}]: {describe_error(error)}"
                ) from error
        return value


def remote_error(error: BaseException, failure: Failure | None, task: Callable[[], str] | None = None) -> BaseException:
    """Attach the remote traceback to an exception from a worker, as the first cause in its chain of causes.

    ``task`` returns a text about the task or call, for people.
    """
    caused = isinstance(error, DependencyFailed) and error.__cause__ is not None  # by the exception of another task
    if failure is not None and failure.traceback and not caused:
        place = f"rank {failure.rank}, host {failure.host or 'unknown'}{f', in {task()}' if task else ''}"
        text = f"\n\nOn {place}:\n{failure.traceback}"
        *_, first = _causes(error)  # the text contains that of a subtask's exception, which it replaces
        object.__setattr__(first, "__cause__", RemoteTraceback(text))  # a frozen dataclass refuses setattr
    return error


def remote_traceback(error: BaseException) -> RemoteTraceback | None:
    """Return the remote traceback of an exception from a worker; None if it has none."""
    *_, first = _causes(error)
    return first.__cause__ if isinstance(first.__cause__, RemoteTraceback) else None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and its causes, without a remote traceback."""
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and not isinstance(each, RemoteTraceback) and id(each) not in seen:
        seen.add(id(each))
        yield each
        each = each.__cause__


def value_of(outcome: OutcomeHeader, content: Envelope, task: Callable[[], str] | None = None) -> Any:
    """Return the value in an outcome, or raise the exception in it with its remote traceback.

    ``task`` returns a text about the task or call, for people.
    """
    if outcome.kind == "result":
        return value_of_ranks(outcome.ranks, content.payload, content.buffers)
    raise error_of(outcome, content, task)


def value_of_ranks(ranks: int, payload: Buffer, buffers: Sequence[Buffer]) -> Any:
    """Return the value of one rank, or the list of the values of several ranks."""
    if ranks == 1:
        return pickling.loads(payload, buffers)
    values, used = [], 0
    for each, count in pickling.loads(payload):
        values.append(pickling.loads(each, buffers[used : used + count]))
        used += count
    return values


def error_of(outcome: OutcomeHeader, content: Envelope, task: Callable[[], str] | None = None) -> BaseException:
    """Return the exception in an outcome with its remote traceback, or the error that prevents its unpickling."""
    try:
        error = pickling.loads(content.payload, content.buffers)
    except SpoolpoolError as reason:
        error = reason
        if outcome.failure is not None:
            error = TaskFailed(
                f"The task raised {outcome.failure.type}: {outcome.failure.message} This exception cannot be loaded "
                f"here ({reason})."
            )
    if not isinstance(error, BaseException):
        error = BadTaskFile(f"The outcome of {outcome.task} should hold an exception and holds {type(error).__name__}.")
    return remote_error(error, outcome.failure, task)
