"""``spool graph``."""

from __future__ import annotations

import json
from typing import Literal

import click

from spoolpool.cli.output import report_errors
from spoolpool.cli.spool_argument import takes_spool
from spoolpool.monitor import graph as graphs
from spoolpool.protocol.spool import Spool


@click.command()
@takes_spool()
@click.option("--session", default="", help="Only tasks of this session.")
@click.option("--dot", "form", flag_value="dot", default=True, help="Text for Graphviz (the default).")
@click.option("--mermaid", "form", flag_value="mmd", help="Text for Mermaid.")
@click.option("--svg", "form", flag_value="svg", help="Picture, drawn by Graphviz.")
@click.option("--json", "form", flag_value="json", help="JSON, as Executor.export_workflow writes it.")
@report_errors
def graph(directory: str, session: str, form: Literal["dot", "mmd", "svg", "json"]) -> None:
    """Print the dependency graph of the tasks in SPOOL.

    \b
      spool graph SPOOL --mermaid > graph.mmd
      spool graph SPOOL --svg > graph.svg
      spool graph SPOOL | dot -Tpdf > graph.pdf

    Tasks with collected outcomes are no longer in the spool.
    """
    nodes = graphs.read(Spool(directory, read_only=True), session)
    if form == "json":
        click.echo(json.dumps(graphs.workflow(nodes), indent=1))
    else:
        click.echo(graphs.render(nodes, form), nl=False)
