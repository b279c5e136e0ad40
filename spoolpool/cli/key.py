"""``spool key``: the keys of a signed spool, which lie outside of it."""

from __future__ import annotations

from collections.abc import Sequence

import click

from spoolpool import settings
from spoolpool.cli.output import echo_escaped, report_errors
from spoolpool.errors import BadRequest
from spoolpool.protocol.spool import Spool
from spoolpool.security import signing
from spoolpool.security.signing import Key, make_key, read_keys


@click.group()
def key() -> None:
    """Make and change the key of a signed spool. Whoever has it can run code as the workers and submitters."""


def _path(directory: str) -> str:
    """The key file of a spool, which must be a signed one."""
    spool = Spool(directory)
    if spool.signature is None:
        raise BadRequest(f"The spool {spool.path} is not signed: 'spool init --signed' makes one that is.")
    return spool.signature.path


def _tell(path: str, keys: Sequence[Key]) -> None:
    for number, each in enumerate(keys):
        echo_escaped(f"{each.id}  {'valid' if number else 'signs'}  {path}")


@key.command()
@click.argument("directory", metavar="SPOOL", envvar=settings.ENV_SPOOL)
@report_errors
def new(directory: str) -> None:
    """Make the first key of SPOOL, in a file that you alone can read, and print its id.

    Everybody who submits or works needs a copy: in SPOOLPOOL_KEY, or in the configuration directory.
    """
    path = _path(directory)
    _tell(path, [make_key(path)])


@key.command()
@click.argument("directory", metavar="SPOOL", envvar=settings.ENV_SPOOL)
@click.option("--finish", is_flag=True, help="End the validity of the key before the newest.")
@report_errors
def rotate(directory: str, finish: bool) -> None:
    """Put a new key for SPOOL into the key file; the one before stays valid until --finish, or the next time.

    Processes that run take the new one up within a minute.
    """
    path = _path(directory)
    _tell(path, signing.rotate_key(path, finish=finish))


@key.command()
@click.argument("directory", metavar="SPOOL", envvar=settings.ENV_SPOOL)
@report_errors
def show(directory: str) -> None:
    """Print the ids of the keys of SPOOL that are here, and where; never the keys."""
    path = _path(directory)
    _tell(path, read_keys(path))
