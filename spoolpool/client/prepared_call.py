"""A pickled call on its way from ``submit`` into a pack or into the spool."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from spoolpool.client.futures import CallSink
    from spoolpool.client.references import CallReferences
    from spoolpool.format.envelope import Buffer
    from spoolpool.protocol.packs import PackedCall
    from spoolpool.resources import Resources


class PreparedCall(NamedTuple):
    """A pickled call and all that its task file says about it."""

    function: Callable[..., Any]
    """The function, which names the statistics for packing."""
    name: str
    """Name of the function, for people."""
    lane: str
    """Name of the lane."""
    payload: Buffer
    """Pickle of function and arguments."""
    buffers: list[Buffer]
    """Out-of-band buffers of the pickle, without those in objects."""
    resources: Resources
    """Requested resources."""
    references: CallReferences
    """Task id, and the futures and objects among the arguments."""
    objects: Mapping[str, tuple[int, ...]] = {}
    """Objects that replace buffers, by the names of their files, with the positions of the buffers."""
    init: str = ""
    """Object id of the ``init_function``."""
    key: str = ""
    """Fingerprint by which a resumed session finds the task; empty without one."""
    cache: str = ""
    """Key under which the result is cached; empty if it is not."""
    calls: Sequence[PackedCall] = ()
    """Calls of a pack, in place of function and arguments."""
    pack: CallSink | None = None
    """Receiver of the outcomes of these calls."""
    packed: int = 0
    """Number of calls that share the task; 0 for a call with a task of its own."""
    directory: str = ""
    """Working directory of the submitter when the call was submitted; empty if the call asks for another one."""
    label: str = ""
    """Label, for people."""
    arguments: str = ""
    """Preview of the arguments, for people; empty for a call with a label."""
    again: bool = False
    """Whether its first task failed for the sake of another call; then it is submitted also after the shutdown."""
