"""Page of the benchmarks: generated from its report alone. The invented report has every part."""

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from benchmarks import opening, page, results
from benchmarks.__main__ import main
from benchmarks.contender import OURS
from benchmarks.environments import Made
from benchmarks.harness import Outcome, Run
from benchmarks.row import Entry, Goal, Key, Quantity, Row, Sizes
from benchmarks.rows import ROWS

DOCS = Path(__file__).resolve().parents[2] / "docs"
SVG = "{http://www.w3.org/2000/svg}"


def test_committed_page_matches_the_committed_report():
    report = results.read(str(DOCS / "benchmarks" / "report.json"))
    made = page.files(report, ROWS)
    there = {f"benchmarks/{path.name}" for path in (DOCS / "benchmarks").iterdir()} | {"benchmarks.md"}
    assert there == made.keys()
    differing = [name for name, text in made.items() if (DOCS / name).read_text(encoding="utf-8") != text]
    assert differing == [], "make the page again: scripts/bench --from docs/benchmarks/report.json --page docs"


def test_committed_page_opens_with_five_sentences_and_a_plot_and_ends_with_the_targets():
    opened, *sections = (DOCS / "benchmarks.md").read_text(encoding="utf-8").split("\n## ")
    assert [line[:4] for line in opened.splitlines() if line.startswith("- ")] == ["- **"] * len(opening.SENTENCES)
    assert len(opening.SENTENCES) == 5
    assert "](benchmarks/opening.svg)" in opened
    assert [section.partition("\n")[0] for section in sections][-1] == "Targets"


def test_opening_leaves_out_sentences_without_figures():
    report = results.read(str(DOCS / "benchmarks" / "report.json"))
    short = {**report, "rows": [row for row in report["rows"] if row["name"] in ("idle", "backlog")]}
    assert len(list(opening.sentences(short))) == 2
    assert opening.picture(short) is None
    assert "opening.svg" not in page.files(short, ROWS)["benchmarks.md"]


def test_plot_of_the_opening_has_each_contender_once_with_its_quickest_case():
    report = results.read(str(DOCS / "benchmarks" / "report.json"))
    made = opening.picture(report)
    assert made is not None
    texts = [each.text for each in ET.fromstring(made.svg).iter(f"{SVG}text")]
    names = [text for text in texts if text is not None and text.startswith(("spoolpool", "executorlib", "dask"))]
    assert sorted(set(names) - {"spoolpool"}) == [
        "dask distributed", "executorlib, ZeroMQ, no dependencies", "spoolpool, 1 rank",
    ]  # fmt: skip


def test_committed_report_is_small():
    assert (DOCS / "benchmarks" / "report.json").stat().st_size < 300_000


def test_decisions_of_missed_goals_exist():
    named = [row.decision for row in ROWS.values() if row.decision]
    assert [name for name in named if not (DOCS / "decisions" / name).is_file()] == []


def test_page_of_an_invented_report_has_every_part(invented):
    report, rows = invented
    text = page.files(report, rows)["benchmarks.md"].replace("\N{NO-BREAK SPACE}", " ")
    assert "Of 2 that can be told, 1 are reached." in text
    assert "scripts/bench --dir /dev/shm 'a b'" in text
    missed = "**no**: [what was tried](decisions/0001-a.md)"
    assert f"| [speed](#speed) | ours, one: time | ≤ 2.00x the floor | 2.50x | {missed} |" in text
    assert "| [speed](#speed) | ours, one: rate | ≥ 3.00x ahead of the best |  | not measured |" in text
    assert "| [speed](#speed) | ours, one: rate | ≥ 10.0 /s | 40.0 /s | yes |" in text
    assert "| **ours, one** | 25.0 ms | 24.0 .. 26.0 ms |  | 2.50 | ≤ 2.00x: no |" in text
    assert "| *floor* | 10.0 ms | 9.60 .. 10.4 ms |  |  |  |" in text
    assert "| a peer | 50.0 ms | 48.0 .. 52.0 ms | 2.00 |  |  |" in text
    assert "**Speed: of &lt;it>.**\nWhat *is* measured." in text and "<it>" not in text
    assert "| nowhere | cannot be installed: no \\`such\\` \\| thing |" in text
    assert "No figures of absent: cannot be installed: no \\`such\\` \\| thing" in text
    assert "calls: 7; but floor 5" in text
    assert "| each call | all | renames |\n| --- | ---: | ---: |\n| **ours** | 9.00 | 3.00 |" in text
    assert text.count("](benchmarks/") == 3  # the report, and one plot per row


def test_short_report_gives_the_same_page(invented):
    report, rows = invented
    made = page.files(report, rows)
    short = json.loads(made["benchmarks/report.json"])
    assert short != report
    assert page.files(short, rows) == made


def test_plot_is_well_formed_without_scripts_and_inside_its_frame(invented):
    plots = [text for name, text in page.files(*invented).items() if name.endswith(".svg")]
    plots += [path.read_text(encoding="utf-8") for path in (DOCS / "benchmarks").glob("*.svg")]
    for text in plots:
        root = ET.fromstring(text)
        _, _, width, height = map(float, root.attrib["viewBox"].split())
        assert {each.tag.removeprefix(SVG) for each in root.iter()} <= {
            "svg", "title", "style", "rect", "line", "circle", "text",
        }  # fmt: skip
        for each in root.iter():
            assert all(0 <= float(each.get(name, 0)) <= width for name in ("x", "x1", "x2", "cx"))
            assert all(0 <= float(each.get(name, 0)) <= height for name in ("y", "y1", "y2", "cy"))


def test_plot_has_all_names_the_floor_and_the_goals(invented):
    root = ET.fromstring(page.files(*invented)["benchmarks/speed-1.svg"])
    texts = [each.text for each in root.iter(f"{SVG}text")]
    assert {"ours, one", "floor", "a peer", "25.0 ms", "time (less is better)", "rate (more is better)"} <= set(texts)
    assert "absent" not in texts
    kinds = [each.get("class") for each in root.iter()]
    assert kinds.count("dot-ours") == 2 + 1  # one per panel, and one in the key
    assert "least" in kinds and "goal" in kinds
    (first, *_) = (each for each in root.iter(f"{SVG}line") if each.get("class") == "goal")
    (mine, *_) = (each for each in root.iter(f"{SVG}circle") if each.get("class") == "dot-ours")
    assert float(first.attrib["x1"]) < float(mine.attrib["cx"])  # missed


def test_page_is_made_from_a_file_and_old_plots_are_removed(invented, tmp_path, capsys):
    report, _ = invented
    (tmp_path / "report.json").write_text(json.dumps(report))
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "gone.svg").write_text("")
    main(["--from", str(tmp_path / "report.json"), "--page", str(tmp_path)])
    assert {path.name for path in (tmp_path / "benchmarks").iterdir()} == {"report.json", "speed-1.svg", "counts-1.svg"}
    assert (tmp_path / "benchmarks.md").read_text(encoding="utf-8").startswith("# Benchmarks\n")
    assert "25.0 ms" in capsys.readouterr().out
    (tmp_path / "report.json").write_text(json.dumps({**report, "format": 1}))
    with pytest.raises(SystemExit, match="format 1"):
        main(["--from", str(tmp_path / "report.json"), "--page", str(tmp_path)])


@pytest.fixture
def invented():
    """Report with a goal of every kind, a missing peer, a wide row and a fact; and its rows."""
    ours, floor, peer, absent = Key("ours", "one"), Key("floor"), Key("a peer"), Key("absent")
    goals = {
        "time": Goal(limit=2.0, of="floor"),
        "rate": (Goal(limit=3.0, of="peers", peers=(absent,), who="the best"), Goal(limit=10.0)),
    }
    why = "cannot be installed: no `such` | thing"

    def outcome(key, role, seconds, missing=None, **options):
        entry = Entry(key=key, role=role, take=lambda _: {}, environment=OURS, **options)
        each = [] if missing else [0.96, 1.0, 1.04]
        rounds = [{"time": [seconds * f, seconds * f], "rate": [1 / seconds / f]} for f in each]
        for samples in rounds:
            samples["calls"] = [5 if key == floor else 7]
        return Outcome(entry=entry, rounds=rounds, missing=missing)

    speed = Row(
        name="speed",
        title="Speed: of <it>",
        about="What *is* measured.\n",
        quantities=(Quantity(name="time", unit="s", title="time"), Quantity(name="rate", unit="/s", title="rate")),
        entries=lambda _: [],
        decision="0001-a.md",
    )
    counts = Row(
        name="counts",
        title="Counts",
        about="",
        quantities=tuple(
            Quantity(name=name, unit="", title=name, group="each call") for name in ("all", "renames", "links")
        ),
        entries=lambda _: [],
        wide=True,
    )
    counted = Entry(key=Key("ours"), role="ours", take=lambda _: {}, environment=OURS)
    run = Run(
        rows=[
            (
                speed,
                [
                    outcome(ours, "ours", 0.025, floor=floor, goals=goals),
                    outcome(floor, "floor", 0.01),
                    outcome(peer, "peer", 0.05, ours=ours),
                    outcome(absent, "peer", 1.0, why, ours=ours),
                ],
            ),
            (counts, [Outcome(entry=counted, rounds=[{"all": [9.0], "renames": [3.0], "links": [0.0]}])]),
        ],
        environments={"spoolpool": Made(python="", versions={"spoolpool": "1.0"}), "nowhere": why},
    )
    machine = dict.fromkeys(("processor", "memory", "system", "python", "filesystem", "date", "commit"), "")
    machine |= {"cores": 2, "load": 0.1}
    report = results.report(run, Sizes(), machine, "scripts/bench --dir /dev/shm 'a b'")
    return json.loads(json.dumps(report)), {"speed": speed, "counts": counts}
