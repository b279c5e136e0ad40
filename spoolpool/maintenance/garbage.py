"""Find and remove garbage by a retention policy. Each item is examined again directly before its removal."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from spoolpool.errors import NotTrusted
from spoolpool.format.config import RetentionPolicy
from spoolpool.format.names import is_object_file, is_session, session_of
from spoolpool.maintenance.excess_journals import excess_journals
from spoolpool.maintenance.garbage_item import GarbageItem, Report, log_kept, reason_of
from spoolpool.maintenance.garbage_rules import GarbageRules, Links
from spoolpool.protocol.object_leases import leases
from spoolpool.protocol.object_references import read_references
from spoolpool.protocol.object_removal import remove_objects
from spoolpool.protocol.spool import Spool
from spoolpool.system import files

_LOOKS = 2  # at all tasks, before an object that was put aside is removed: a task may move behind a listing


def find_garbage(spool: Spool, keep: RetentionPolicy | None = None, report: Report = log_kept) -> list[GarbageItem]:
    """List the garbage by a retention policy (the spool's own, if None), in the order of removal; remove nothing.

    Never listed are waiting, running and failed tasks, committed tasks without an outcome, data of a submitter that may
    be alive, and names that no spool has. ``report`` is called for old data that stays because it cannot be read, or
    because the end of its submitter cannot be proved here.
    """
    now = spool.server_time()
    rules = GarbageRules(spool, keep or spool.config.keep, now, report)
    found = [*rules.unfinished_writes(), *rules.journals_and_logs(), *rules.buckets(), *rules.cache()]
    old = {each.path for each in found}
    found += [each for each in excess_journals(spool, now) if each.path not in old]
    found += rules.cancel_requests()
    links = Links(spool)
    found += rules.stale_links(links)
    found += rules.objects()
    going = {each.path for each in found}
    where = spool.layout
    names = {*files.list_names(where.results), *files.list_names(where.outgoing), *files.list_names(where.needs)}
    names |= {session_of(name) or "" for name in files.list_names(where.sessions)}
    for session in sorted(filter(is_session, names)):
        found += rules.session(session, links, going)
    return found


def unfinished_writes(spool: Spool, now: float) -> list[GarbageItem]:
    """List the old files in ``tmp/`` and their links, by the spool's policy; ``now`` is :meth:`Spool.server_time`."""
    return GarbageRules(spool, spool.config.keep, now, log_kept).unfinished_writes()


def remove(spool: Spool, found: Iterable[GarbageItem], report: Report = log_kept) -> int:
    """Remove the items of :func:`find_garbage` that are still garbage; return the number of removed items.

    ``report`` is called for each item that cannot be removed.
    """
    items = list(found)
    count = 0
    try:
        count += _remove_objects(spool, items)
    except OSError as error:
        report("objects", reason_of(error))
    for each in items:
        if _is_object(each):
            continue
        try:
            count += _remove(spool, each)
        except (OSError, NotTrusted) as error:
            gone = isinstance(error, OSError) and error.errno in files.GONE  # another process collects garbage too
            if not gone:
                report(each.path, reason_of(error))
    return count


def _remove(spool: Spool, each: GarbageItem) -> bool:
    parent, _, name = each.path.rpartition("/")
    directory = spool.directory(f"{spool.layout.root}/{parent}") if "/" in parent else f"{spool.layout.root}/{parent}"
    path = f"{directory}/{name}"
    if any(files.exists(f"{spool.layout.root}/{earlier}") for earlier in each.after) or not each.is_garbage():
        return False
    each.record()
    if each.move_to:
        files.move(path, f"{spool.layout.root}/{each.move_to}")
        return True
    return files.remove_directory(path) if files.is_directory(path) else files.remove(path)


def _is_object(item: GarbageItem) -> bool:
    parent, _, name = item.path.rpartition("/")
    return parent == "objects" and is_object_file(name)


def _remove_objects(spool: Spool, found: list[GarbageItem]) -> int:
    """Remove objects unless they came into use since they were found; return the number of removed ones.

    Raises ``OSError`` if the leases cannot be listed now: then all objects stay.
    """
    stamps = {each.path.partition("/")[2]: each.mtime_ns for each in found if _is_object(each)}
    leases_found = {each.path: each for each in found if each.path.startswith("needs/")}

    def find_needed() -> Collection[str]:
        needed = {
            name
            for name, paths in leases(spool, refresh=True).items()
            if not all(path in leases_found and leases_found[path].is_garbage() for path in paths)
        }
        for _ in range(_LOOKS):
            references = read_references(spool)
            if references.unreadable:
                return stamps.keys()
            needed |= references.objects
        return needed

    return remove_objects(spool, stamps, find_needed)
