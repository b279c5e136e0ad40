"""Model of the load on a metadata server: closed forms and simulation agree, and the page has their figures."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import costs
from benchmarks.scaling import __main__ as simulate
from benchmarks.scaling import model, simulation
from benchmarks.scaling.measured import Counted
from benchmarks.scaling.model import Pool
from benchmarks.scaling.servers import SERVERS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "scaling.md"
SERVER = SERVERS["lustre-2.7"]
COMMAND = "scripts/simulate"


@pytest.mark.parametrize("groups", [300, 1000])
@pytest.mark.parametrize("seed", [1, 2])
def test_events_agree_with_the_closed_forms(groups: int, seed: int) -> None:
    for name, form, events in simulation.checks(SERVER, groups=groups, tasks=50 * groups, seed=seed):
        within = 0.25 if "99 %" in name or "burst" in name else 0.12  # quantiles vary more
        assert events == pytest.approx(form, rel=within), name


def test_seed_determines_a_run() -> None:
    pool = Pool(groups=50, seconds=0.05)
    runs = [simulation.work(pool, SERVER, 2000, seed) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_task_rate_of_a_saturated_server_follows_from_the_operations_per_task() -> None:
    most = 1 / SERVER.seconds(*costs.TASK)
    crowd = Pool(groups=10_000, seconds=0.01, lease=1e9)
    assert model.rate(crowd, SERVER) == pytest.approx(most, rel=0.1)
    dearer = replace(SERVER, create=SERVER.create / 2)
    assert model.rate(crowd, dearer) == pytest.approx(most / 2, rel=0.1)


def test_load_of_idle_groups_does_not_grow_quadratically() -> None:
    hundred, ten_thousand = (model.operations(Pool(groups=groups)) for groups in (100, 10_000))
    assert ten_thousand < 100 * hundred


@pytest.mark.parametrize("pool", [Pool(groups=64, submitters=3), Pool(groups=5000, seconds=7.0)], ids=repr)
def test_operations_by_kind_are_those_by_cause(pool: Pool) -> None:
    assert sum(model.by_kind(pool).values()) == pytest.approx(model.operations(pool))


def test_groups_meet_each_other_only_at_first() -> None:
    young, old = Pool(groups=64), Pool(groups=64, age=3600.0)
    assert 0 < model.by_kind(old)["open"] < model.by_kind(young)["open"]
    assert model.by_kind(Pool(groups=10_000, age=60.0))["open"] == pytest.approx(
        model.by_kind(Pool(groups=10_000))["open"], rel=0.01
    )


def test_rate_of_a_pool_may_be_that_of_a_measured_run() -> None:
    tasks = model.by_kind(Pool(groups=64, seconds=1e-3, begun=100.0))
    assert tasks["create"] == 200.0
    assert [line[0] for line in Counted("busy", Pool(groups=2, seconds=1.0), {"stat": 1.0}).lines()][-1] == "all"


def test_longer_lease_allows_more_groups_on_one_server() -> None:
    pool = Pool(groups=1, seconds=60)
    short, long = (model.most_groups(replace(pool, lease=lease), SERVER, 0.5) for lease in (60, 300))
    assert long > 1.5 * short
    assert model.load(replace(pool, groups=short), SERVER) <= 0.5 < model.load(replace(pool, groups=short + 1), SERVER)


def test_page_shows_the_output_of_the_command(
    capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    assert simulate.main([]) == 0
    printed = f"$ {COMMAND}\n{capsys.readouterr().out}"
    printed = "\n".join(line.rstrip() for line in printed.splitlines())
    page = PAGE.read_text(encoding="utf-8")
    block = re.compile(r"(?<=^```text\n).*?(?=^```$)", re.DOTALL | re.MULTILINE)
    if request.config.getoption("--update-pages"):
        PAGE.write_text(block.sub(lambda _: f"{printed}\n", page), encoding="utf-8")
        page = PAGE.read_text(encoding="utf-8")
    assert [shown.strip() for shown in block.findall(page)] == [printed]


def test_every_figure_of_the_text_is_printed() -> None:
    text, _, figures = PAGE.read_text(encoding="utf-8").partition("## All figures")
    assert {"5 303", "29 000", "14 857", "21 222", "66 667", "6 666 667", "4.38", "1.14", "1.25", "1.83", "185"} <= set(
        re.findall(r"\d+(?: \d{3})*(?:\.\d+)?", figures)
    )
    assert all(rounded in text for rounded in ("5300", "15 000 listings", "21 000", "67 000", "6.7 million", "1.83"))
