"""Types for the fields of records: they bound the values where a record is decoded.

A value that a process gives itself is not checked.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

_printable = r"\A[^\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]*\Z"

Text = Annotated[str, Meta(max_length=4096, pattern=_printable)]
"""Line of text for people, without control characters."""
Word = Annotated[str, Meta(max_length=256, pattern=_printable)]
"""Short text without control characters."""
Words = Annotated[tuple[Word, ...], Meta(max_length=1000)]
"""Short texts."""
Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
"""Number of things."""
Positive = Annotated[int, Meta(ge=1, le=2**31 - 1)]
"""Number of things, of which there is at least one."""
Bytes = Annotated[int, Meta(ge=0, le=2**63 - 1)]
"""Number of bytes."""
Account = Annotated[int, Meta(ge=0, le=2**32 - 1)]
"""Number of an account."""
Seconds = Annotated[float, Meta(ge=0, le=1e11)]
"""Seconds since the epoch, up to the year 5138: every function for times takes it; or a duration that is compared."""
Timeout = Annotated[float, Meta(ge=0, le=1e9)]
"""Duration in seconds, up to 31 years: a lock or a thread can wait for it."""
