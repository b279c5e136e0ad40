"""``spool doctor``."""

from __future__ import annotations

import dataclasses
import json
import os
import sys

import click

from spoolpool.cli.output import echo_escaped, echo_stderr, report_errors
from spoolpool.cli.spool_argument import takes_spool
from spoolpool.maintenance import doctor as tests
from spoolpool.maintenance.doctor_peer import Peer, Rendezvous


@click.command()
@takes_spool(metavar="DIR", path=click.Path(exists=True, file_okay=False))
@click.option("--peer", is_flag=True, help="Answer a 'spool doctor' that is started next on another host.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@report_errors
def doctor(directory: str, peer: bool, as_json: bool) -> None:
    """Test whether the filesystem of DIR is suitable for a spool. DIR is a spool, or a directory for a new one.

    \b
      spool doctor DIR           test with two processes of this host
      spool doctor DIR --peer    start this on another host first; then 'spool doctor DIR'
                                 on this host tests with both hosts

    The exit code is 1 if a test has the grade "bad". The recommended settings are printed too.
    """
    directory = os.path.abspath(directory)
    if peer:
        rendezvous = Rendezvous.create(directory)
        rendezvous.invite()
        echo_stderr("Waiting for 'spool doctor' on another host (at most 10 minutes).")
        count = Peer(rendezvous).serve()
        echo_stderr(f"Answered {count} request(s)." if count else "No request arrived.")
        return
    across, answers = tests.examine(directory)
    best = tests.recommend(answers)
    if as_json:
        found = {
            "across_hosts": across,
            "verdict": tests.verdict(answers),
            "answers": [dataclasses.asdict(answer) for answer in answers],
            "settings": dataclasses.asdict(best),
        }
        click.echo(json.dumps(found, indent=1))
    else:
        for answer in answers:
            echo_escaped(f"{answer.grade:<5} {answer.question:<17} {answer.text}.")
        click.echo(f"Verdict: {tests.verdict(answers)}.")
        click.echo(f"Settings: spool init --lease {best.lease:g} --caches {best.caches:g}")
        if not across:
            click.echo("This tested one host only. To test two, first run 'spool doctor DIR --peer' on another host.")
    sys.exit(1 if any(answer.grade == "bad" for answer in answers) else 0)
