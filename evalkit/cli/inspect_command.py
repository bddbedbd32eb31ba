"""``evalkit inspect``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from evalkit.cli.score_command import describe_config
from evalkit.plumbing.constants import SIZE_CAP
from evalkit.plumbing.errors import InputError
from evalkit.plumbing.files import check_writable, write_json
from evalkit.plumbing.settings import by_section, split_settings
from evalkit.plumbing.table import format_pairs, format_table

if TYPE_CHECKING:
    from evalkit.artifact.load import Artifact

EXAMPLE = """Example:

  evalkit inspect final_model.int6.ptz
"""


@click.command("inspect", epilog=EXAMPLE)
@click.argument("artifact")
@click.option("--recipe", metavar="NAME", help="System that wrote the artifact (default: recognised).")
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="Override a model setting.")
@click.option("--tensors", is_flag=True, help="List every tensor, not groups.")
@click.option("--json", "json_path", metavar="FILE", help="Write the same as JSON.")
def command(artifact: str, recipe: str | None, settings: tuple[str, ...], tensors: bool, json_path: str | None) -> None:
    """Show what is inside ARTIFACT: format, configuration, bytes of each tensor group, headroom under the cap."""
    from evalkit.artifact.load import load_artifact
    from evalkit.artifact.sizes import group_bytes

    check_writable(json_path)
    opened = load_artifact(artifact)
    overrides = by_section(split_settings(settings), ("model",))["model"]
    config: dict[str, Any] | None = None
    origins: dict[str, str] = {}
    try:
        resolved = opened.resolve(recipe, overrides)
        config, origins = resolved.config.to_dict(), resolved.origins
        unresolved = ""
    except InputError as error:
        if recipe or overrides:
            raise
        unresolved = str(error)
    rows = group_bytes(opened, each=tensors)
    if json_path:
        write_json(json_path, _as_json(opened, config, origins, rows))
    pairs = [
        ("file", f"{opened.path}, sha256 {opened.sha256}"),
        ("format", f"{opened.format}, {opened.compression}"),
        ("size", f"{opened.size:,} bytes, {SIZE_CAP - opened.size:,} under the cap of {SIZE_CAP:,}"),
        ("parameters", f"{opened.num_parameters:,}, {8 * opened.size / opened.num_parameters:.2f} bits each"),
        ("system", recipe or opened.recognise() or "not recognised"),
        ("config", describe_config(config, origins) if config else unresolved),
    ]
    click.echo(format_pairs(pairs))
    click.echo()
    columns = {"parameters": "parameters", "stored_bytes": "bytes stored", "entropy_bytes": "entropy bytes"}
    if opened.coded_bytes:
        columns["file_bytes"] = "bytes in file"
    table = [[row["name"], row["kind"], *(f"{row[key]:,}" for key in columns)] for row in rows]
    if opened.coded_bytes:
        header_bytes = opened.size - sum(opened.coded_bytes.values())
        table.append(["header, checksum", "", *[""] * (len(columns) - 1), f"{header_bytes:,}"])
    click.echo(format_table(["tensor" if tensors else "group", "kind", *columns.values()], table))


def _as_json(
    artifact: Artifact, config: dict[str, Any] | None, origins: dict[str, str], rows: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "path": artifact.path,
        "sha256": artifact.sha256,
        "bytes": artifact.size,
        "cap": SIZE_CAP,
        "cap_headroom_bytes": SIZE_CAP - artifact.size,
        "format": artifact.format,
        "compression": artifact.compression,
        "parameters": artifact.num_parameters,
        "system": artifact.recognise(),
        "config": config,
        "config_origins": origins,
        "groups": rows,
    }
