"""``spool doctor``."""

from __future__ import annotations

import dataclasses
import json
import os
import sys

import click

from spoolpool import settings
from spoolpool.cli.output import echo_escaped, echo_stderr, report_errors
from spoolpool.maintenance import doctor as practice
from spoolpool.maintenance.doctor_peer import Peer, Rendezvous


@click.command()
@click.argument("directory", metavar="DIR", envvar=settings.ENV_SPOOL, type=click.Path(exists=True, file_okay=False))
@click.option("--peer", is_flag=True, help="Be the far side, on another host, of a doctor that is started next.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
@report_errors
def doctor(directory: str, peer: bool, as_json: bool) -> None:
    """Try what the filesystem of DIR can be trusted with. DIR is a spool, or a directory that may become one.

    \b
      spool doctor DIR           between two processes of this host
      spool doctor DIR --peer    on another host first; then 'spool doctor DIR' here
                                 asks that one, and finds out what holds across hosts

    The exit code is 1 if something is bad. The settings to choose are printed, and are in --json.
    """
    directory = os.path.abspath(directory)
    if peer:
        rendezvous = Rendezvous.create(directory)
        rendezvous.invite()
        echo_stderr("Waiting for 'spool doctor' on another host (10 minutes at most).")
        count = Peer(rendezvous).serve()
        echo_stderr(f"Did what was asked, {count} time(s)." if count else "Nobody came.")
        return
    across, answers = practice.examine(directory)
    best = practice.recommend(answers)
    if as_json:
        found = {
            "across_hosts": across,
            "verdict": practice.verdict(answers),
            "answers": [dataclasses.asdict(answer) for answer in answers],
            "settings": dataclasses.asdict(best),
        }
        click.echo(json.dumps(found, indent=1))
    else:
        for answer in answers:
            echo_escaped(f"{answer.grade:<5} {answer.question:<17} {answer.text}.")
        click.echo(f"Verdict: {practice.verdict(answers)}.")
        click.echo(f"Settings: spool init --lease {best.lease:g} --caches {best.caches:g}")
        if not across:
            click.echo(
                "This was one host. For what holds across hosts, run 'spool doctor DIR --peer' on another one first."
            )
    sys.exit(1 if any(answer.grade == "bad" for answer in answers) else 0)
