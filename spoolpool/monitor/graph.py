"""Which tasks need which: as a text for Graphviz, as a picture, as JSON; from a session's memory or from the disk."""

from __future__ import annotations

import contextlib
import html
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple

from spoolpool.errors import BadRequest
from spoolpool.format.headers import Kind, TaskHeader
from spoolpool.monitor import query
from spoolpool.protocol.spool import Spool

State = query.State | Literal["gone"]
"""How far a task is. ``gone``: its outcome was collected, and its file removed; nothing else is known of it."""

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
_ENDED: dict[Kind, State] = {"result": "done", "error": "raised", "cancelled": "cancelled", "lost": "lost"}


class Node(NamedTuple):
    """One task."""

    task: str
    session: str
    name: str
    lane: str
    state: State
    needs: tuple[str, ...]


class Graph:
    """Tasks with what they need. Its methods may be called from any thread."""

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {}
        self._lock = threading.Lock()

    def put(self, node: Node) -> None:
        """A task is like this now."""
        with self._lock:
            self._nodes[node.task] = node

    def add(self, header: TaskHeader, needed: Iterable[TaskHeader]) -> None:
        """A task was submitted that needs others; those of other sessions were not put in, and are known by name."""
        with self._lock:
            for each in needed:
                self._nodes.setdefault(each.task, _node(each, "gone"))
            self._nodes[header.task] = _node(header, "held")

    def expect(self, header: TaskHeader) -> None:
        """A task is needed that has no outcome yet."""
        with self._lock:
            self._nodes.setdefault(header.task, _node(header, "waiting"))

    def ended(self, task: str, kind: Kind) -> None:
        """A task has its outcome; one that needs nothing and is not needed is none of this graph's."""
        if task not in self._nodes:  # as most; nothing puts a task in once it has ended
            return
        with self._lock:
            self._nodes[task] = self._nodes[task]._replace(state=_ENDED[kind])

    def nodes(self, others: Iterable[TaskHeader] = ()) -> list[Node]:
        """Its tasks, these others, and what any of them needs, in the order of their submission."""
        with self._lock:
            found = {header.task: _node(header, "waiting") for header in others} | self._nodes
        for missing in {each for node in found.values() for each in node.needs} - found.keys():
            found[missing] = Node(missing, "", "", "", "gone", ())
        return sorted(found.values(), key=lambda node: node.task.partition("-")[2])


def _node(header: TaskHeader, state: State) -> Node:
    needs = tuple(each for _, each in header.needed())
    return Node(header.task, header.session, header.name, header.lane, state, needs)


def read(spool: Spool, session: str = "") -> list[Node]:
    """The tasks that are in a spool now, of one session or of all; while it is in use."""
    graph = Graph()
    for sight in query.select(spool, query.Query(session=session)):
        if sight.header is not None:  # else it moved on, or cannot be read: 'spool check' tells
            graph.put(_node(sight.header, sight.state))
    return graph.nodes()


# -- how it is shown


def _label(node: Node) -> str:
    return node.name or node.task


def _edges(nodes: list[Node]) -> Iterator[tuple[int, int]]:
    number = {node.task: index for index, node in enumerate(nodes)}
    for index, node in enumerate(nodes):
        yield from ((number[each], index) for each in node.needs if each in number)


def dot(nodes: list[Node]) -> str:
    """The graph in the language of Graphviz."""
    lines = ["digraph tasks {", '  node [shape=box, style=filled, fontname="sans-serif"];']
    for index, node in enumerate(nodes):
        text = _label(node).replace("\\", "\\\\").replace('"', '\\"')
        lines.append(
            f'  n{index} [label="{text}", fillcolor="{_COLOURS[node.state]}", tooltip="{node.task} {node.state}"];'
        )
    lines += [f"  n{start} -> n{end};" for start, end in _edges(nodes)]
    return "\n".join([*lines, "}", ""])


def workflow(nodes: list[Node]) -> dict[str, Any]:
    """The graph as JSON values: ``docs/workflows.md`` describes them."""
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


def draw(nodes: list[Node], filename: str | os.PathLike[str]) -> None:
    """Draw the graph into a file, in the form that the end of its name says.

    Raises :class:`BadRequest` for a form that takes Graphviz where it is not installed.
    """
    path = os.fspath(filename)
    form = os.path.splitext(path)[1][1:]
    if form in ("dot", "gv"):
        picture = dot(nodes).encode()
    elif form == "svg":
        picture = svg(nodes).encode()
    else:
        picture = _by_graphviz(nodes, form)
    with open(path, "wb") as file:
        file.write(picture)


def export(nodes: list[Node], filename: str | os.PathLike[str]) -> None:
    """Write the graph as JSON."""
    with open(filename, "w", encoding="utf-8") as file:
        file.write(json.dumps(workflow(nodes), indent=1) + "\n")


def svg(nodes: list[Node]) -> str:
    """The graph as a picture: by Graphviz where it is installed, else in rows."""
    with contextlib.suppress(BadRequest):
        return _by_graphviz(nodes, "svg").decode()
    return _svg(nodes)


def _by_graphviz(nodes: list[Node], form: str) -> bytes:
    program = shutil.which("dot")
    if program is None:
        raise BadRequest(f"To draw a graph as {form!r} takes Graphviz: no program 'dot' is on PATH. 'svg' needs none.")
    done = subprocess.run([program, f"-T{form}"], input=dot(nodes).encode(), capture_output=True, check=False)
    if done.returncode:
        raise BadRequest(f"Graphviz cannot draw a graph as {form!r}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def _rows(nodes: list[Node]) -> list[list[int]]:
    """The nodes by the length of the longest way to each; what a task needs was submitted before it."""
    row = [0] * len(nodes)
    needed: dict[int, list[int]] = {}
    for start, end in _edges(nodes):
        needed.setdefault(end, []).append(start)
    rows: list[list[int]] = []
    for index in range(len(nodes)):
        row[index] = 1 + max((row[each] for each in needed.get(index, ())), default=-1)
        rows += [[] for _ in range(row[index] + 1 - len(rows))]
        rows[row[index]].append(index)
    return rows


def _svg(nodes: list[Node]) -> str:
    width, height, right, down = 150, 30, 170, 80
    place = {
        index: (x * right + 10, y * down + 10) for y, row in enumerate(_rows(nodes)) for x, index in enumerate(row)
    }
    wide = max((x for x, _ in place.values()), default=0) + right
    high = max((y for _, y in place.values()), default=0) + down
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="{high}" font-size="11">']
    lines += ['<defs><marker id="head" orient="auto" markerWidth="8" markerHeight="8" refX="8" refY="4">']
    lines += ['<path d="M0,0 L8,4 L0,8 z"/></marker></defs>']
    for start, end in _edges(nodes):
        (x1, y1), (x2, y2) = place[start], place[end]
        lines.append(
            f'<line x1="{x1 + width // 2}" y1="{y1 + height}" x2="{x2 + width // 2}" y2="{y2}" stroke="black" '
            'marker-end="url(#head)"/>'
        )
    for index, node in enumerate(nodes):
        x, y = place[index]
        lines.append(
            f'<g><title>{node.task} {node.state}</title><rect x="{x}" y="{y}" width="{width}" height="{height}" '
            f'fill="{_COLOURS[node.state]}" stroke="black"/><text x="{x + width // 2}" y="{y + 19}" '
            f'text-anchor="middle">{html.escape(_label(node)[-24:])}</text></g>'
        )
    return "\n".join([*lines, "</svg>", ""])
