"""Graph of the dependencies between tasks: as text for Graphviz or Mermaid, as a picture, or as JSON.

It is built from the memory of a session, or read from a spool.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple

from spoolpool.errors import BadRequest
from spoolpool.format.headers import Kind, TaskHeader
from spoolpool.monitor import states
from spoolpool.protocol.spool import Spool
from spoolpool.system.text import escape_line

State = states.State | Literal["gone"]
"""State of a task. ``gone``: its outcome was collected and its file removed; only its id is known."""

_COLOURS: dict[State, str] = {
    "held": "#ffffff",
    "waiting": "#e0ecf8",
    "running": "#fff3b0",
    "done": "#c7e9c0",
    "raised": "#f4a6a0",
    "lost": "#d9a6e0",
    "failed": "#d9a6e0",
    "cancelled": "#dddddd",
    "gone": "#eeeeee",
}


class Node(NamedTuple):
    """One task."""

    task: str
    session: str
    name: str
    lane: str
    state: State
    needs: tuple[str, ...]
    """Ids of the tasks on which it depends."""


class Graph:
    """Tasks and their dependencies. The methods are thread-safe."""

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {}
        self._lock = threading.Lock()

    def put(self, node: Node) -> None:
        """Add a node, or replace the node of the same task."""
        with self._lock:
            self._nodes[node.task] = node

    def add(self, header: TaskHeader, needed: Iterable[TaskHeader]) -> None:
        """Add a submitted task and its dependencies.

        A dependency that is new here belongs to another session: only its header is known, so it counts as gone.
        """
        with self._lock:
            for each in needed:
                self._nodes.setdefault(each.task, _node(each, "gone"))
            self._nodes[header.task] = _node(header, "held")

    def expect(self, header: TaskHeader) -> None:
        """Add a dependency that has no outcome yet."""
        with self._lock:
            self._nodes.setdefault(header.task, _node(header, "waiting"))

    def finish(self, task: str, kind: Kind) -> None:
        """Set the state of a task that has its outcome; ignore a task without dependencies and dependents."""
        if task not in self._nodes:  # most tasks; no task is added after its end, so the lock is not needed
            return
        with self._lock:
            self._nodes[task] = self._nodes[task]._replace(state=states.STATE_OF_OUTCOME[kind])

    def nodes(self, others: Iterable[TaskHeader] = ()) -> list[Node]:
        """Return the nodes, further waiting tasks, and all their dependencies, in the order of submission."""
        with self._lock:
            found = {header.task: _node(header, "waiting") for header in others} | self._nodes
        for missing in {each for node in found.values() for each in node.needs} - found.keys():
            found[missing] = Node(missing, "", "", "", "gone", ())
        return sorted(found.values(), key=lambda node: node.task.partition("-")[2])


def _node(header: TaskHeader, state: State) -> Node:
    needs = tuple(each for _, each in header.dependencies())
    return Node(header.task, header.session, header.name, header.lane, state, needs)


def read(spool: Spool, session: str = "") -> list[Node]:
    """Return the tasks that are in a spool now, of one session or of all; the spool may be in use."""
    from spoolpool.monitor.query import Query
    from spoolpool.monitor.selection import select

    graph = Graph()
    for view in select(spool, Query(session=session), packs=True):
        if view.header is not None:  # else the task moved, or is unreadable: 'spool check' reports that
            graph.put(_node(view.header, view.state))
    return graph.nodes()


# -- output


def _edges(nodes: list[Node]) -> Iterator[tuple[int, int]]:
    """Yield each dependency as the numbers of two nodes: dependency, dependent."""
    number = {node.task: index for index, node in enumerate(nodes)}
    for index, node in enumerate(nodes):
        yield from ((number[each], index) for each in node.needs if each in number)


def dot(nodes: list[Node]) -> str:
    """Return the graph as text for Graphviz."""
    lines = ["digraph tasks {", '  node [shape=box, style=filled, fontname="sans-serif"];']
    for index, node in enumerate(nodes):
        text = escape_line(node.name or node.task).replace("\\", "\\\\").replace('"', '\\"')
        lines.append(
            f'  n{index} [label="{text}", fillcolor="{_COLOURS[node.state]}", tooltip="{node.task} {node.state}"];'
        )
    lines += [f"  n{start} -> n{end};" for start, end in _edges(nodes)]
    return "\n".join([*lines, "}", ""])


def mermaid(nodes: list[Node]) -> str:
    """Return the graph as a flowchart for Mermaid."""
    lines = ["flowchart TD"]
    lines += [f"  classDef {state} fill:{colour},stroke:#000,color:#000" for state, colour in _COLOURS.items()]
    for index, node in enumerate(nodes):
        text = re.sub(r"[^\w .-]", lambda each: f"#{ord(each[0])};", node.name or node.task)  # entities of Mermaid
        lines.append(f'  n{index}["{text}"]:::{node.state}')
    lines += [f"  n{start} --> n{end}" for start, end in _edges(nodes)]
    return "\n".join([*lines, ""])


def render(nodes: list[Node], form: str) -> bytes:
    """Return the graph in a form: ``dot``, ``mmd`` (Mermaid), or a form that Graphviz writes, such as ``svg``.

    Raises :class:`BadRequest` where Graphviz is needed and not installed, or does not know the form.
    """
    if form in ("dot", "gv"):
        return dot(nodes).encode()
    if form == "mmd":
        return mermaid(nodes).encode()
    import shutil
    import subprocess

    program = shutil.which("dot")
    if program is None:
        raise BadRequest(
            f"Cannot draw the graph as {form!r}: Graphviz is not installed (no program 'dot' on PATH). Install it, or "
            "write text: .dot for Graphviz elsewhere, .mmd for Mermaid."
        )
    done = subprocess.run([program, f"-T{form}"], input=dot(nodes).encode(), capture_output=True, check=False)
    if done.returncode:
        raise BadRequest(f"Graphviz cannot draw a graph as {form!r}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def draw(nodes: list[Node], filename: str | os.PathLike[str]) -> None:
    """Write the graph to a file; the suffix of its name is the form of :func:`render`."""
    path = os.fspath(filename)
    picture = render(nodes, os.path.splitext(path)[1][1:])
    with open(path, "wb") as file:
        file.write(picture)


def workflow(nodes: list[Node]) -> dict[str, Any]:
    """Return the graph as JSON values: ``docs/workflows.md`` describes them."""
    return {
        "version": "1",
        "nodes": [
            {
                "id": index,
                "type": "function",
                "value": node.name,
                "task": node.task,
                "session": node.session,
                "lane": node.lane,
                "state": node.state,
            }
            for index, node in enumerate(nodes)
        ],
        "edges": [
            {"source": start, "sourcePort": None, "target": end, "targetPort": None} for start, end in _edges(nodes)
        ],
    }


def export(nodes: list[Node], filename: str | os.PathLike[str]) -> None:
    """Write the graph to a file as JSON."""
    import json

    with open(filename, "w", encoding="utf-8") as file:
        file.write(json.dumps(workflow(nodes), indent=1) + "\n")
