"""Benefit of sharing repeated arguments by their size: ``python -m benchmarks.sharing [DIRECTORY]``.

One executor shares and one does not; both send the same arrays in turns. Printed are the ratios of their times: for
calls with the same array, and for calls with different arrays. Above 1, sharing is faster.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time

import numpy as np

from spoolpool import Executor, Submission
from spoolpool.calls import pickling

Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

_KIB = (64, 256, 1024, 4096, 16384)
_BYTES = 64 << 20  # in the calls of one round
_ROUNDS = 5


def first(array: Array) -> float:
    """A call that hardly looks at its argument."""
    return float(array[0])


def seconds(executor: Executor, arrays: list[Array]) -> float:
    """From the first submit to the last result."""
    begun = time.perf_counter()
    futures = [executor.submit(first, array) for array in arrays]
    for future in futures:
        future.result()
    return time.perf_counter() - begun


def main() -> None:
    """Print the table."""
    tempfile.tempdir = sys.argv[1] if len(sys.argv) > 1 else None
    print("   KiB  calls  the same  different")
    with (
        Executor(max_workers=1, submission=Submission(share_from=None)) as off,
        Executor(max_workers=1, submission=Submission(share_from=pickling.OUT_OF_BAND)) as on,
    ):
        for kib in _KIB:
            calls = max(4, min(60, _BYTES // (kib << 10)))
            ratios: dict[str, list[float]] = {"same": [], "different": []}
            for number in range(_ROUNDS):
                one = np.full(kib * 128, float(number))
                sent = {"same": [one] * calls, "different": [one + 1.0 / (each + 2) for each in range(calls)]}
                for kind, arrays in sent.items():
                    ratios[kind].append(seconds(off, arrays) / seconds(on, arrays))
            same, different = (statistics.median(each) for each in ratios.values())
            print(f"{kib:6}  {calls:5}  {same:8.2f}  {different:9.2f}")


if __name__ == "__main__":
    main()
