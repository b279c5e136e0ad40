"""Graph of dependencies, of an executor and of a spool."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import wait
from pathlib import Path

import pytest
from click.testing import CliRunner

from spoolpool import Executor, Spool
from spoolpool.cli.spool import main
from spoolpool.errors import BadRequest
from spoolpool.monitor import graph
from spoolpool.monitor.graph import Node
from tests.support import tasks
from tests.support.fake_worker import Clock, Stage


def add(*values: int) -> int:
    return sum(values)


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """Four tasks with the dependencies of a diamond; the first is result."""
    stage = Stage(tmp_path / "stage", Clock.installed(monkeypatch))
    inbox = stage.inbox()
    first = inbox.put(add, 1)
    middle = [inbox.put(add, first, number) for number in range(2)]
    inbox.put(add, *middle)
    stage.work(tasks=1)
    return stage


def shape(exported: dict) -> tuple[list[str], list[tuple[int, int]]]:
    states = [node["state"] for node in exported["nodes"]]
    return states, [(edge["source"], edge["target"]) for edge in exported["edges"]]


def test_graph_is_read_from_the_spool(stage: Stage) -> None:
    result = CliRunner().invoke(main, ["graph", stage.spool.path, "--json"])
    assert result.exit_code == 0
    exported = json.loads(result.output)
    states, edges = shape(exported)
    assert (states[0], states[3]) == ("done", "held")
    assert edges == [(0, 1), (0, 2), (1, 3), (2, 3)]
    assert {node["value"] for node in exported["nodes"]} == {"tested"}
    other = CliRunner().invoke(main, ["graph", stage.spool.path, "--json", "--session", "x"])
    assert shape(json.loads(other.output)) == ([], [])
    text = CliRunner().invoke(main, ["graph", stage.spool.path]).output
    assert text.startswith("digraph") and text.count("->") == 4
    text = CliRunner().invoke(main, ["graph", stage.spool.path, "--mermaid"]).output
    assert text.startswith("flowchart") and text.count("-->") == 4 and text.count("]:::done") == 1


def test_collected_dependencies_are_shown_as_gone(stage: Stage) -> None:
    stage.work()
    inbox = stage.inbox()
    [first, *_] = sorted(stage.headers(stage.seen().results), key=lambda header: header.task)
    last = stage.headers(stage.seen().results)
    assert len(last) == 4
    for path in Path(stage.spool.layout.results, "inbox").glob(f"{first.task}*"):
        path.unlink()
    states, edges = shape(graph.workflow(graph.read(stage.spool)))
    assert states == ["gone", "done", "done", "done"]
    assert len(edges) == 4
    inbox.close()


def test_executor_plots_and_exports_its_graph(tmp_path: Path) -> None:
    with Executor(max_workers=1) as exe:
        gate = exe.submit(tasks.wait_for, tmp_path / "go", 2)
        middle = exe.submit(tasks.OwnError, gate)
        bad = exe.submit(tasks.fail, middle)
        last = exe.submit(add, bad)
        exe.submit(add, 5)
        exe.export_workflow(tmp_path / "before.json")
        (tmp_path / "go").touch()
        assert last.exception() is not None
        wait([gate, middle, bad])  # outcomes are collected in any order
        text = exe.plot_dependency_graph(tmp_path / "graph.mmd")
        exe.export_workflow(tmp_path / "after.json")
        exe.plot_dependency_graph(tmp_path / "graph.dot")
    states, edges = shape(json.loads((tmp_path / "before.json").read_text()))
    assert len(states) == 5
    assert edges == [(0, 1), (1, 2), (2, 3)]
    states, edges = shape(json.loads((tmp_path / "after.json").read_text()))
    assert states[:4] == ["done", "done", "raised", "raised"]
    assert edges == [(0, 1), (1, 2), (2, 3)]
    assert (tmp_path / "graph.dot").read_text() == text
    assert (tmp_path / "graph.mmd").read_text().count("-->") == text.count("->") == 3


def test_names_are_escaped_in_text_forms() -> None:
    node = Node("499-0660e5f20d1a76-e7819e56d5", "s", 'a"\\<b>&', "lane", "done", ())
    assert r'label="a\"\\<b>&"' in graph.dot([node])
    assert '["a#34;#92;#60;b#62;#38;"]' in graph.mermaid([node])


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that installs a shell script as the only ``dot``; without text, none."""

    def put(text: str) -> None:
        directory = tmp_path / "bin"
        directory.mkdir()
        if text:
            (directory / "dot").write_text(f"#!/bin/sh\n{text}\n")
            (directory / "dot").chmod(0o700)
        monkeypatch.setenv("PATH", f"{directory}:/bin")
        monkeypatch.setattr(shutil, "which", lambda name: str(directory / name) if text else None)

    return put


@pytest.mark.parametrize("form", ["svg", "pdf"])
def test_pictures_without_graphviz_are_refused_with_the_text_forms(
    program: Callable[[str], None], tmp_path: Path, spool: Spool, form: str
) -> None:
    program("")
    with pytest.raises(BadRequest, match=r"Graphviz is not installed.*\.dot.*\.mmd"):
        graph.draw([], tmp_path / f"graph.{form}")
    assert not (tmp_path / f"graph.{form}").exists()
    result = CliRunner().invoke(main, ["graph", spool.path, "--svg"])
    assert (result.exit_code, result.stdout) == (BadRequest.exit_code, "")
    assert "Graphviz is not installed" in result.stderr


@pytest.mark.parametrize("form", ["svg", "pdf"])
def test_installed_graphviz_draws_pictures(program: Callable[[str], None], tmp_path: Path, form: str) -> None:
    program('echo "$1"; cat')
    graph.draw([], tmp_path / f"graph.{form}")
    assert (tmp_path / f"graph.{form}").read_text().startswith(f"-T{form}\ndigraph")


def test_errors_of_graphviz_are_reported(program: Callable[[str], None], tmp_path: Path) -> None:
    program("echo no such form >&2; exit 1")
    with pytest.raises(BadRequest, match="no such form"):
        graph.draw([], tmp_path / "graph.xyz")


def test_graph_of_an_empty_spool_is_empty(spool: Spool) -> None:
    assert graph.read(spool) == []
    assert graph.dot([]).count("n0") == graph.mermaid([]).count("n0") == 0
