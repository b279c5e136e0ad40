"""The protocol holds in every interleaving of its participants, with every fault that a case allows.

`pytest -s` prints the number of states of each case.
"""

from __future__ import annotations

import pytest

from tests.model.checker import check
from tests.model.config import Budget, Config
from tests.model.protocol import Protocol

ONE_TASK = {
    "crash and pause": Config(budget=Budget(crash=1, suspect=1)),
    "two pauses": Config(budget=Budget(suspect=2)),
    "two crashes, one attempt, retry": Config(attempts=1, budget=Budget(crash=2, retry=1)),
    "two recoverers": Config(recoverers=2, budget=Budget(crash=1, enoent=1)),
    "two recoverers and a pause": Config(recoverers=2, budget=Budget(suspect=1, error=1)),
    "repeated requests": Config(budget=Budget(crash=1, enoent=2)),
    "renames that fail": Config(budget=Budget(crash=1, error=2)),
    "stale reads": Config(budget=Budget(suspect=1, stale=1)),
    "every answer wrong once": Config(attempts=1, budget=Budget(suspect=1, enoent=1, error=1, stale=1)),
    "delayed": Config(retries=1, budget=Budget(suspect=1, raises=1)),
    "delayed, stale reads": Config(retries=1, budget=Budget(raises=2, error=1, enoent=1, stale=1)),
    "releases": Config(budget=Budget(suspect=1, release=2)),
    "cancel": Config(budget=Budget(crash=1, cancel=1, enoent=1)),
}
TWO_TASKS = {
    "crash": Config(tasks=2, budget=Budget(crash=1)),
    "cancel": Config(tasks=2, budget=Budget(cancel=1)),
}
DEPENDENT = {
    "crash": Config(tasks=2, chain=True, budget=Budget(crash=1)),
    "pause": Config(tasks=2, chain=True, workers=1, budget=Budget(suspect=2)),
    "raises, stale reads": Config(tasks=2, chain=True, workers=1, budget=Budget(raises=1, stale=1)),
    "repeated requests": Config(tasks=2, chain=True, budget=Budget(enoent=1)),
    "renames that fail": Config(tasks=2, chain=True, budget=Budget(error=1)),
    "cancel": Config(tasks=2, chain=True, budget=Budget(cancel=1)),
    "lost, retried": Config(
        tasks=2,
        chain=True,
        workers=1,
        attempts=1,
        budget=Budget(crash=1, retry=1),
    ),
    "delayed": Config(tasks=2, chain=True, retries=1, budget=Budget(raises=1)),
    "chain of three": Config(tasks=3, chain=True, workers=1, budget=Budget(cancel=1)),
}
AUTOSCALED = {
    "delayed at the submission": Config(autoscaler=True, recoverers=0, workers=0, delayed=True, budget=Budget(crash=2)),
    "raises, and its worker ends": Config(
        autoscaler=True, recoverers=0, workers=0, retries=1, budget=Budget(raises=1, crash=1)
    ),
    "claim of a dead worker, pause": Config(
        autoscaler=True, recoverers=0, workers=0, budget=Budget(crash=1, suspect=1)
    ),
    "stale reads, repeated requests": Config(
        autoscaler=True, recoverers=0, workers=0, delayed=True, budget=Budget(suspect=1, stale=1, enoent=1)
    ),
    "dependent": Config(autoscaler=True, recoverers=0, workers=0, tasks=2, chain=True, budget=Budget(crash=1)),
    "two workers, dependent": Config(autoscaler=True, recoverers=0, tasks=2, chain=True, budget=Budget(crash=1)),
}
KEPT = {
    "crashes": Config(keeps=True, budget=Budget(crash=2)),
    "two processes": Config(keeps=True, submitters=2, attempts=1, budget=Budget(crash=1, enoent=1)),
    "two processes, stale reads": Config(keeps=True, submitters=2, workers=1, budget=Budget(error=1, stale=1)),
    "two processes, cancel": Config(keeps=True, submitters=2, budget=Budget(cancel=1, enoent=1)),
    "dependent": Config(tasks=2, chain=True, keeps=True, submitters=2, workers=1, budget=Budget(crash=1)),
    "lost, retried": Config(keeps=True, submitters=2, workers=1, attempts=1, budget=Budget(crash=2, retry=1)),
    "dependent, lost, retried": Config(
        tasks=2, chain=True, keeps=True, workers=1, attempts=1, budget=Budget(crash=1, retry=1)
    ),
}
DELETED = {
    "crash": Config(searches=True, budget=Budget(delete=1, crash=1)),
    "pause, renames that fail": Config(searches=True, budget=Budget(delete=1, suspect=1, error=1)),
    "repeated requests, stale reads": Config(searches=True, budget=Budget(delete=1, enoent=1, stale=1)),
    "cancel": Config(searches=True, budget=Budget(delete=1, cancel=1, enoent=1)),
    "delayed": Config(searches=True, retries=1, budget=Budget(delete=1, raises=1, suspect=1)),
    "lost, retried": Config(searches=True, attempts=1, budget=Budget(delete=1, crash=2, retry=1)),
    "dependent": Config(searches=True, tasks=2, chain=True, budget=Budget(delete=1)),
    "dependent, repeated requests": Config(
        searches=True, tasks=2, chain=True, workers=1, budget=Budget(delete=1, enoent=1)
    ),
    "dependent, cancel": Config(searches=True, tasks=2, chain=True, workers=1, budget=Budget(delete=1, cancel=1)),
    "kept": Config(searches=True, keeps=True, submitters=2, workers=1, budget=Budget(delete=1, crash=1)),
    "kept, dependent": Config(
        searches=True, tasks=2, chain=True, keeps=True, submitters=2, workers=1, budget=Budget(delete=1)
    ),
    "nothing, but deaths and stale reads": Config(searches=True, budget=Budget(suspect=1, crash=1, stale=1)),
    "nothing, but releases": Config(searches=True, budget=Budget(release=2)),
    "nothing, but lost and retried": Config(
        searches=True, keeps=True, submitters=2, workers=1, attempts=1, budget=Budget(crash=2, retry=1)
    ),
}
COLLECTED = {  # garbage is collected at any time
    "death and crash": Config(workers=1, collectors=1, searches=True, budget=Budget(death=1, crash=1)),
    "repeated requests": Config(workers=1, recoverers=0, collectors=1, searches=True, budget=Budget(death=1, enoent=1)),
    "renames that fail": Config(workers=1, recoverers=0, collectors=1, searches=True, budget=Budget(death=1, error=1)),
    "stale reads": Config(workers=1, collectors=1, searches=True, budget=Budget(death=1, stale=1)),
    "cancel, lost, retried": Config(
        workers=1, attempts=1, collectors=1, searches=True, budget=Budget(crash=1, cancel=1, retry=1)
    ),
    "kept": Config(workers=1, keeps=True, collectors=1, searches=True, budget=Budget(death=1, crash=1)),
    "shared": Config(workers=1, shared=True, collectors=1, searches=True, budget=Budget(death=1)),
    "dependent": Config(
        tasks=2, chain=True, workers=1, recoverers=0, collectors=1, searches=True, budget=Budget(death=1)
    ),
}
WALLTIMES = {
    "limit that fits one group": Config(walltimes=(1, 2), duration=2, limited=True, budget=Budget(crash=1, enoent=1)),
    "limit that fits none": Config(walltimes=(1,), duration=2, limited=True, budget=Budget(cancel=1)),
    "given back, crash": Config(walltimes=(1, 2), duration=2, budget=Budget(crash=1, error=1, enoent=1)),
    "given back, stale reads": Config(walltimes=(1, 2), duration=2, budget=Budget(error=1, stale=1)),
    "given back, pause": Config(walltimes=(1, 2), duration=2, budget=Budget(suspect=1, enoent=1)),
    "given back as often as it has attempts": Config(
        walltimes=(1, 2, 3), duration=4, attempts=3, workers=1, budget=Budget(crash=1, suspect=1)
    ),
    "given back, no longer group": Config(walltimes=(1,), duration=2, budget=Budget(suspect=1, release=1)),
    "reported, retried": Config(walltimes=(1, 2), duration=3, attempts=1, budget=Budget(crash=1, error=1, retry=1)),
    "reported, stale reads": Config(walltimes=(1, 2), duration=3, attempts=2, budget=Budget(stale=1, enoent=1)),
    "raises": Config(walltimes=(1, 2), duration=2, retries=1, attempts=3, budget=Budget(raises=1, crash=1)),
    "autoscaled": Config(
        walltimes=(1, 2), duration=2, autoscaler=True, recoverers=0, workers=0, budget=Budget(crash=1)
    ),
    "dependent": Config(walltimes=(1, 2), duration=2, tasks=2, chain=True, workers=1),
    "supervised": Config(walltimes=(2,), duration=2, supervised=True, workers=1, budget=Budget(enoent=1, error=1)),
    "supervised, crash": Config(walltimes=(2,), duration=2, supervised=True, workers=1, budget=Budget(crash=1)),
    "supervised, reported": Config(
        walltimes=(2, 3), duration=3, attempts=1, supervised=True, workers=1, budget=Budget(error=1)
    ),
}
ALL = [
    pytest.param(config, id=f"{title}: {faults}")
    for title, configs in (
        ("one", ONE_TASK),
        ("two", TWO_TASKS),
        ("dependent", DEPENDENT),
        ("autoscaled", AUTOSCALED),
        ("kept", KEPT),
        ("deleted", DELETED),
        ("collected", COLLECTED),
        ("walltime", WALLTIMES),
    )
    for faults, config in configs.items()
]


@pytest.mark.parametrize("config", ALL)
def test_the_protocol_holds(config: Config) -> None:
    report = check(Protocol(config))
    print(report)
    assert not report.violation, str(report)
