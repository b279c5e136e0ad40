"""What a task of several calls does, whose callers know nothing of each other, and what it returns."""

from __future__ import annotations

from typing import Any

from spoolpool import pickling
from spoolpool.call import Report, failed
from spoolpool.errors import BadTaskFile
from spoolpool.outcome import remote_error


class Results:
    """What a pack's task returns: as it is taken out, each call's value comes, or what it raised is raised."""

    def __init__(self, reports: list[Report]) -> None:
        self._reports = [(bytes(each.payload), [bytes(b) for b in each.buffers], each.failure) for each in reports]

    def __len__(self) -> int:
        return len(self._reports)

    def __getitem__(self, number: int) -> Any:
        payload, buffers, failure = self._reports[number]
        value = _loads(payload, buffers)
        if failure is None:
            return value
        if not isinstance(value, BaseException):
            raise BadTaskFile(f"A call of a pack should have raised an exception, and has {type(value).__name__}.")
        raise remote_error(value, failure)


def run(calls: list[tuple[bytes, list[bytes]]]) -> Results:
    """What a pack's task does: every call, whatever came of the others; the worker's pickle names this function."""
    return Results([_run(payload, buffers) for payload, buffers in calls])


def _run(payload: bytes, buffers: list[bytes]) -> Report:
    try:
        function, args, kwargs = _loads(payload, buffers)
        return Report(*pickling.dumps(function(*args, **kwargs)), None)
    except (Exception, SystemExit) as error:  # noqa: BLE001  what interrupts ends the whole pack
        frames = error.__traceback__
        return failed(error.with_traceback(frames and frames.tb_next), 0)


def _loads(payload: bytes, buffers: list[bytes]) -> Any:
    return pickling.loads(payload, [memoryview(bytearray(each)) for each in buffers])
