"""``spool graph``."""

from __future__ import annotations

import json
from typing import Literal

import click

from spoolpool import settings


@click.command()
@click.argument("directory", metavar="SPOOL", envvar=settings.ENV_SPOOL)
@click.option("--session", default="", help="The tasks of this session alone.")
@click.option("--dot", "form", flag_value="dot", default=True, help="A text for Graphviz; so if nothing is said.")
@click.option("--svg", "form", flag_value="svg", help="A picture.")
@click.option("--json", "form", flag_value="json", help="JSON, as Executor.export_workflow writes it.")
def graph(directory: str, session: str, form: Literal["dot", "svg", "json"]) -> None:
    """Show which tasks in SPOOL need which, on standard output.

    \b
      spool graph SPOOL --svg > graph.svg
      spool graph SPOOL | dot -Tpdf > graph.pdf

    Tasks whose outcomes were collected are not in the spool any more.
    """
    from spoolpool.monitor import graph as graphs
    from spoolpool.protocol.spool import Spool

    nodes = graphs.read(Spool(directory), session)
    text = {
        "dot": lambda: graphs.dot(nodes),
        "svg": lambda: graphs.svg(nodes),
        "json": lambda: json.dumps(graphs.workflow(nodes), indent=1),
    }[form]()
    click.echo(text.rstrip("\n"))
