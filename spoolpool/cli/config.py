"""``spool config``."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from spoolpool.cli.output import echo_escaped, report_errors
from spoolpool.system import defaults
from spoolpool.system.defaults import KEYS, DefaultsFile


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--check", is_flag=True, help="Exit with 1 if a file or variable has a mistake.")
@report_errors
def config(as_json: bool, check: bool) -> None:
    """Show the defaults of this site and account: value and source of each key, and the files that were looked for.

    \b
      spool config

    An option of a command wins over an environment variable, that over the file of the user, and that over the files of
    the site. A file with a mistake is not used; commands that need a default of it end with an error.
    """
    found, files, problems = defaults.survey()
    if as_json:
        values = {
            key: {"value": default.value, "source": default.source, "variable": KEYS[key].variable}
            for key, default in found.items()
        }
        paths = [{"path": each.path, "state": _state(each), "problem": each.problem or None} for each in files]
        click.echo(json.dumps({"values": values, "files": paths, "problems": problems}, indent=1))
    else:
        for key, default in found.items():
            echo_escaped(f"{key:<10} {_text(default.value):<24} {default.source}")
        for each in files:
            echo_escaped(f"{'file':<10} {_state(each):<24} {each.path}")
        for problem in problems:
            echo_escaped(problem, err=True)
    sys.exit(1 if check and problems else 0)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        value = ":".join(value)
    return f"{value:g} s" if isinstance(value, float) else value or "-"


def _state(file: DefaultsFile) -> str:
    return "not used" if file.problem else "used" if file.exists else "missing"
