"""Where everything stands in a spool: one look at every name, while the spool is in use.

No file is opened, and no link is followed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from spoolpool import fsio, layout, registry
from spoolpool.layout import Token
from spoolpool.spool import Spool

_REMOVED = (".nfs", ".fuse_hidden")
"""How NFS and FUSE call a removed file as long as somebody has it open: an array that is mapped, say."""


@dataclass(frozen=True, kw_only=True)
class Census:
    """Every token of a spool by the place in which it stands, seen in one pass; keys are paths below the spool."""

    ready: dict[str, Token]
    """Those in ``waiting/`` too."""
    claimed: dict[str, Token]
    results: dict[str, tuple[str, Token]]
    outgoing: dict[str, tuple[str, Token]]
    failed: dict[str, Token]
    marks: list[str]
    """Tasks that are to be cancelled."""
    unknown: list[str]
    """What has no name of a spool's, or is no directory where one should be."""
    missing: list[str]
    """Directories that every spool has."""
    unlisted: dict[str, str]
    """Directories that could not be listed, with the reasons: nothing in them was seen."""

    @property
    def complete(self) -> bool:
        """Whether all was seen, so that what was not seen is not there."""
        return not (self.missing or self.unlisted or set(layout.Layout.DIRECTORIES).intersection(self.unknown))


class _Lister:
    """Lists directories below a spool, and notes what does not belong there."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.unknown: list[str] = []
        self.missing: list[str] = []
        self.unlisted: dict[str, str] = {}

    def names(self, directory: str) -> list[str]:
        """What is in a directory; none where it is gone, is a link, or cannot be listed, which is noted."""
        path = f"{self.root}/{directory}"
        try:
            if fsio.is_directory(path):
                return sorted(name for name in fsio.names(path) if not name.startswith(_REMOVED))
            if os.path.lexists(path):
                self.unknown.append(directory)
        except OSError as error:
            self.unlisted[directory] = error.strerror or str(error)
        return []

    def good(self, directory: str, good: Callable[[str], object]) -> list[str]:
        """Paths of what has a good name."""
        names = self.names(directory)
        self.unknown += [f"{directory}/{name}" for name in names if not good(name)]
        return [f"{directory}/{name}" for name in names if good(name)]

    def tokens(self, directory: str, *, claimed: bool | None) -> dict[str, Token]:
        """Tokens by their paths; with or without a worker in the name (None: either)."""
        found = {}
        for name in self.names(directory):
            token = layout.parse_token(name)
            if token is not None and claimed in (None, bool(token.worker)):
                found[f"{directory}/{name}"] = token
            else:
                self.unknown.append(f"{directory}/{name}")
        return found

    def sessions(self, directory: str) -> dict[str, tuple[str, Token]]:
        """Tokens of all sessions."""
        found: dict[str, tuple[str, Token]] = {}
        for path in self.good(directory, layout.is_session):
            session = path.partition("/")[2]
            found.update({path: (session, token) for path, token in self.tokens(path, claimed=True).items()})
        return found


def census(spool: Spool) -> Census:
    """List the whole tree once.

    An outcome is looked for first, then its token in the order in which it moves, so that one that moves
    meanwhile is seen in one place at least.
    """
    lister = _Lister(spool.path)
    top = lister.names(".")
    known = {*layout.Layout.DIRECTORIES, "spool.json"}
    marks = [path.partition("/")[2] for path in lister.good("cancel", layout.is_task_id)]
    outgoing = lister.sessions("outgoing")
    ready = lister.tokens("waiting", claimed=False)
    for lane in lister.good("ready", layout.parse_lane):
        for bucket in lister.good(lane, layout.is_bucket):
            ready.update(lister.tokens(bucket, claimed=False))
    claimed = lister.tokens("claimed", claimed=True)
    results = lister.sessions("results")
    failed = lister.tokens("failed", claimed=None)
    for worker in lister.good("workers", layout.is_worker_id):
        lister.good(worker, registry.ENTRY.__contains__)
    lister.good("objects", layout.is_object_id)
    lister.good("sessions", layout.session_of)
    lister.good("journal", layout.writer_of)
    lister.good("logs", layout.is_log)
    lister.good("tmp", lambda name: layout.is_unfinished(name) or layout.is_meeting(name))
    return Census(
        ready=ready,
        claimed=claimed,
        results=results,
        outgoing=outgoing,
        failed=failed,
        marks=marks,
        unknown=lister.unknown + [name for name in top if name not in known],
        missing=[name for name in layout.Layout.DIRECTORIES if name not in top],
        unlisted=lister.unlisted,
    )
