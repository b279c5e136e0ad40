"""Ids of batch jobs as people type them: elements of arrays, components of heterogeneous jobs, and spellings of Flux.

=============  ==========================================================================================
``6_2``        element of a Slurm array; ``6_[1-3,5%2]`` are several that wait
``3+1``        component of a heterogeneous Slurm job, which is used and ended as a whole: it stands for job 3
``fMM79KV``    Flux job; the same as ``ƒMM79KV``, as a decimal or hexadecimal number, as ``0000.0003.1c00.0000``, with
               ``job.`` before it, and as the words and emoji of ``flux job id``
=============  ==========================================================================================

Ids of PBS (``7[2].server``), LSF (``7[2]``) and Grid Engine (``7.2``) may lack their last parts.

For the words and emoji the ``flux`` command is asked.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping

from spoolpool.system.batch_job import find_batch_job
from spoolpool.system.command_output import output_of
from spoolpool.system.patterns import lazy_pattern

_PART = lazy_pattern(r"(\d+)(?:_(?:(\d+)|\[([\d,:-]+)(?:%\d+)?\])|\+(\d+))?", re.ASCII)
_OTHER = lazy_pattern(r"(\d+)(\[\d*\])?(\.[\w.-]+)?", re.ASCII)
_RANGE = lazy_pattern(r"(\d{1,9})(?:-(\d{1,9})(?::(\d{1,9}))?)?", re.ASCII)
_MOST_ELEMENTS = 1_000_000
_LIMIT = lazy_pattern(r"%\d+(?=\])")

_F58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"  # the digits of Flux's base 58
_HEX = lazy_pattern(r"0[xX]([0-9a-fA-F]{1,16})")
_DOTTED = lazy_pattern(r"(?:job\.)?((?:[0-9a-fA-F]{4}\.){3}[0-9a-fA-F]{4})")
_WORDS = lazy_pattern(r"[a-z]+(?:--?[a-z]+){5}|[^\x00-\x7f]{1,8}")
_FLUX_SECONDS = 30.0


def job_id(environment: Mapping[str, str] = os.environ) -> str:
    """Return the id of the job around this process: ``6_2`` for an element of an array; empty without a job.

    A heterogeneous job has the id of its first component. A job of a Flux instance is the job in which the instance
    runs, unless that is a job of another batch system; with ``f`` for the ``ƒ`` of Flux.
    """
    if job := environment.get("SLURM_JOB_ID", ""):
        array, element = environment.get("SLURM_ARRAY_JOB_ID", ""), environment.get("SLURM_ARRAY_TASK_ID", "")
        return f"{array}_{element}" if array and element else environment.get("SLURM_JOB_ID_HET_GROUP_0") or job
    if found := find_batch_job(environment):
        return found.id
    return environment.get("FLUX_ENCLOSING_ID", "").replace("\N{LATIN SMALL LETTER F WITH HOOK}", "f")


def unused_nodes(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the nodes of each component but the first of the heterogeneous Slurm job whose script this process is."""
    size = environment.get("SLURM_HET_SIZE", "")
    if not size.isdecimal() or environment.get("SLURM_STEP_ID") or not environment.get("SLURM_JOB_ID"):
        return []
    return [environment.get(f"SLURM_JOB_NODELIST_HET_GROUP_{number}", "?") for number in range(1, int(size))]


def base_id(job: str) -> str:
    """Return the id of the job of a part: ``6`` for ``6_2``, ``3`` for ``3+1``, and any other id itself."""
    match = _PART.fullmatch(job)
    return match[1] if match else job


def without_limit(job: str) -> str:
    """Return an id without the number of elements that may run at once, which scancel does not take."""
    return _LIMIT.sub("", job)


def is_component(job: str) -> bool:
    """Return whether an id is that of a component of a heterogeneous job."""
    match = _PART.fullmatch(job)
    return match is not None and match[4] is not None


def elements(job: str) -> frozenset[str]:
    """Return the ids of the elements of an array in an id: ``6_3`` and ``6_5`` for ``6_[3,5]``; any other id itself."""
    match = _PART.fullmatch(job)
    if match is None or match[3] is None:
        return frozenset({job})
    ranges = [_RANGE.fullmatch(part) for part in match[3].split(",")]
    spans = [range(int(each[1]), int(each[2] or each[1]) + 1, int(each[3] or 1) or 1) for each in ranges if each]
    if len(spans) < len(ranges) or sum(map(len, spans)) > _MOST_ELEMENTS:
        return frozenset({job})
    return frozenset(f"{match[1]}_{number}" for span in spans for number in span)


def join_elements(ids: Collection[str]) -> str:
    """Return one id for elements of an array: ``6_[3,5]`` for ``6_3`` and ``6_5``."""
    if len(ids) == 1:
        return next(iter(ids))
    numbers = sorted(int(each.rpartition("_")[2]) for each in ids)
    return f"{base_id(next(iter(ids)))}_[{','.join(map(str, numbers))}]"


def select(typed: str, job: str) -> frozenset[str]:
    """Return what a typed id selects of a job, or of a part that a batch system lists: ids of elements, or nothing.

    The whole job is selected by its own id, and by any component of a heterogeneous job.
    """
    whole = elements(job)
    if typed in (job, base_id(job)):
        return whole
    if is_component(typed) and base_id(typed) == base_id(job) and "_" not in job:
        return whole
    if (other := _OTHER.fullmatch(job)) and other[0] != other[1] and (given := _OTHER.fullmatch(typed)):
        same = given[1] == other[1] and all(given[part] in (None, other[part]) for part in (2, 3))
        return whole if same else frozenset()
    number = flux_number(job) if job.startswith("f") else None
    if number is not None:
        return whole if flux_number(typed) == number else frozenset()
    return whole & elements(typed)


def names_job(typed: str, job: str) -> bool:
    """Return whether a typed id stands for the job in which a group runs; that job is no list of elements."""
    return "_[" not in job and bool(select(typed, job))


def flux_number(text: str) -> int | None:
    """Return the number of a Flux job in any spelling but words and emoji; None for any other text."""
    if text[:1] in ("f", "ƒ") and len(text) <= 13:
        number = 0
        for digit in text[1:]:
            if digit not in _F58:
                return None
            number = number * len(_F58) + _F58.index(digit)
        return number if len(text) > 1 else None
    if match := _HEX.fullmatch(text):
        return int(match[1], 16)
    if match := _DOTTED.fullmatch(text):
        return int(match[1].replace(".", ""), 16)
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 20 else None


def spell_out(typed: str) -> str:
    """Return the number of a Flux job that was typed as words or emoji; any other text itself."""
    if not _WORDS.fullmatch(typed) or flux_number(typed) is not None:
        return typed
    return output_of(["flux", "job", "id", "--to=dec", "--", typed], seconds=_FLUX_SECONDS).strip() or typed


def shown(typed: str) -> str:
    """Return a Flux id in the spelling that lists have here; any other text itself."""
    return f"f{typed[1:]}" if typed.startswith("ƒ") and flux_number(typed) is not None else typed
