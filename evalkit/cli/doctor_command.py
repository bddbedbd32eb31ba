"""``evalkit doctor``."""

from __future__ import annotations

import dataclasses

import click

from evalkit.plumbing.files import write_json
from evalkit.plumbing.table import format_pairs

EXAMPLE = """Example:

  evalkit doctor
"""


@click.command("doctor", epilog=EXAMPLE)
@click.option("--json", "json_path", metavar="FILE", help="Write the same as JSON.")
def command(json_path: str | None) -> int:
    """Show versions and hardware, and test that evalkit's parts work here. Exit code 1 if one does not."""
    from evalkit.verbs.doctor import describe_machine, self_tests

    machine = describe_machine()
    click.echo(format_pairs(machine.items()))
    tests = self_tests()
    for test in tests:
        click.echo(f"{'ok    ' if test.passed else 'FAILED'}  {test.name} ({test.seconds:.1f} s): {test.detail}")
    write_json(json_path, {"machine": machine, "tests": [dataclasses.asdict(test) for test in tests]})
    return 0 if all(test.passed for test in tests) else 1
