"""``spool key``: the keys of a signed spool, which are stored outside of the spool."""

from __future__ import annotations

from collections.abc import Sequence

import click

from spoolpool.cli.output import Group, echo_escaped, report_errors
from spoolpool.cli.spool_argument import takes_spool
from spoolpool.errors import BadRequest
from spoolpool.protocol.spool import Spool
from spoolpool.security import signing
from spoolpool.security.signing import Key, make_key, read_keys


@click.group(cls=Group)
def key() -> None:
    """Create, rotate and list the keys of a signed spool. A key allows to run code as its workers and submitters."""


def _key_path(directory: str) -> str:
    """Return the path of the key file of a signed spool."""
    spool = Spool(directory)
    if spool.signature is None:
        raise BadRequest(f"The spool {spool.path} is not signed: 'spool init --signed' creates one with signatures.")
    return spool.signature.path


def _print_ids(path: str, keys: Sequence[Key]) -> None:
    for number, each in enumerate(keys):
        echo_escaped(f"{each.id}  {'valid' if number else 'signs'}  {path}")


@key.command()
@takes_spool()
@report_errors
def new(directory: str) -> None:
    """Create the first key of SPOOL, in a file that only you can read, and print its id.

    \b
      spool key new SPOOL

    Each submitter and worker needs a copy of the file: at the path in SPOOLPOOL_KEY, or in the configuration directory.
    """
    path = _key_path(directory)
    _print_ids(path, [make_key(path)])


@key.command()
@takes_spool()
@click.option("--finish", is_flag=True, help="Create no key; remove all keys but the newest.")
@report_errors
def rotate(directory: str, finish: bool) -> None:
    """Add a new key for SPOOL to the key file; the previous key stays valid until --finish or the next rotation.

    \b
      spool key rotate SPOOL
      spool key rotate SPOOL --finish

    Running processes use the new key within a minute.
    """
    path = _key_path(directory)
    _print_ids(path, signing.rotate_key(path, finish=finish))


@key.command()
@takes_spool()
@report_errors
def show(directory: str) -> None:
    """Print the ids of the keys of SPOOL in the key file, and its path; never the keys.

    \b
      spool key show SPOOL
    """
    path = _key_path(directory)
    _print_ids(path, read_keys(path))
