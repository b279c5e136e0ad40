"""Selection of tasks in a spool by queries and by ids. Calls of packs are tasks of their own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from spoolpool.errors import BadRequest
from spoolpool.monitor.calls import views_at
from spoolpool.monitor.query import Query, TaskView
from spoolpool.monitor.scan import SpoolScanner, TaskLocation
from spoolpool.protocol.spool import Spool


def _locations(query: Query, scanner: SpoolScanner) -> Iterator[TaskLocation]:
    """Yield the locations of the tasks that can match: an ended call may be in a pack that waits or runs."""
    for location in scanner.tasks(query.places | query.pack_places):
        if location.task_file.calls or location.place in query.places:
            yield location


def select(
    spool: Spool, query: Query, scanner: SpoolScanner | None = None, *, packs: bool = False
) -> Iterator[TaskView]:
    """Yield the tasks that match a query, each once; ``scanner`` then has the directories that could not be listed.

    With ``packs``, a pack is one task.
    """
    seen: set[str] = set()
    for location in _locations(query, scanner or SpoolScanner(spool.layout.root)):
        task = location.task_file.task
        if task in seen:
            continue
        for view in [TaskView(spool, location)] if packs else views_at(spool, location):
            if query.matches(view):
                seen.add(task)
                yield view


def find_by_ids(
    spool: Spool, words: Iterable[str], query: Query, scanner: SpoolScanner | None = None
) -> list[TaskView]:
    """Return the tasks that match a query and have these ids; a word may be the begin or end of one id.

    The id of a pack names the pack. Raises :class:`BadRequest` for a word that matches no task or several.
    """
    found: dict[str, dict[str, TaskView]] = {word: {} for word in words}
    for location in _locations(query, scanner or SpoolScanner(spool.layout.root)):
        candidates = views_at(spool, location) if location.task_file.calls else ()
        for view in (TaskView(spool, location), *candidates):
            for word, matches in found.items():
                if word and (view.id.startswith(word) or view.id.endswith(word)) and query.matches(view):
                    matches[view.id] = view
    for word, matches in found.items():
        if len(matches) != 1:
            which = f" ({', '.join(sorted(matches)[:3])}{', ...' if len(matches) > 3 else ''})" if matches else ""
            states = f" in state {' or '.join(sorted(query.states))}" if query.states else ""
            raise BadRequest(
                f"{word!r} matches {len(matches)} tasks{which} of {spool.path}{states}; it must match one. "
                f"'spool ls {spool.path}' lists the ids."
            )
    return list({view.id: view for matches in found.values() for view in matches.values()}.values())
