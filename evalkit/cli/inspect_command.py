"""``evalkit inspect``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from evalkit.cli.options import log_option, recipe_option, source_option
from evalkit.plumbing.constants import SIZE_CAP
from evalkit.plumbing.files import write_json
from evalkit.plumbing.settings import by_section, split_settings
from evalkit.plumbing.table import format_pairs, format_table

if TYPE_CHECKING:
    from evalkit.artifact.load import Artifact
    from evalkit.source.reading import SourceReading

EXAMPLE = """Examples:

  evalkit inspect final_model.int6.ptz

  evalkit inspect final_model.int6.ptz --source train_gpt.py --log train.log
"""


@click.command("inspect", epilog=EXAMPLE)
@click.argument("artifact")
@recipe_option
@source_option
@log_option
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="Override a model setting.")
@click.option("--tensors", is_flag=True, help="List every tensor, not groups.")
@click.option("--json", "json_path", metavar="FILE", help="Write the same as JSON.")
def command(
    artifact: str,
    recipe: str | None,
    source: str | None,
    log: str | None,
    settings: tuple[str, ...],
    tensors: bool,
    json_path: str | None,
) -> None:
    """Show what is inside ARTIFACT: format, configuration and where each value comes from, bytes, headroom.

    Settings that neither the file nor a recipe, script or --set tells are listed as open; score needs them.
    """
    from evalkit.artifact.load import load_artifact
    from evalkit.artifact.sizes import group_bytes
    from evalkit.source import read_source_of

    opened = load_artifact(artifact)
    overrides = by_section(split_settings(settings), ("model",))["model"]
    reading = read_source_of(opened, source, log)
    known, refusal = _known(opened, recipe, overrides, reading)
    rows = group_bytes(opened, each=tensors)
    file = {
        "path": opened.path,
        "sha256": opened.sha256,
        "bytes": opened.size,
        "cap": SIZE_CAP,
        "cap_headroom_bytes": SIZE_CAP - opened.size,
        "format": opened.format,
        "compression": opened.compression,
        "parameters": opened.num_parameters,
    }
    write_json(json_path, {**file, **known, "groups": rows})
    pairs = [
        ("file", f"{opened.path}, sha256 {opened.sha256}"),
        ("format", f"{opened.format}, {opened.compression}"),
        ("size", f"{opened.size:,} bytes, {SIZE_CAP - opened.size:,} under the cap of {SIZE_CAP:,}"),
        ("parameters", f"{opened.num_parameters:,}, {8 * opened.size / opened.num_parameters:.2f} bits each"),
        ("system", recipe or known["system"] or "not recognised"),
        ("config", _describe(known["known"])),
    ]
    if reading is not None and reading.seq_len:
        pairs.append(("window", f"{reading.seq_len} tokens ({reading.label})"))
    pairs += [("script", problem) for problem in known["problems"]]
    if refusal:
        pairs += [("open", ", ".join(known["open"])), ("", refusal)]
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


def _known(
    artifact: Artifact, recipe: str | None, overrides: dict[str, str], reading: SourceReading | None
) -> tuple[dict[str, Any], str]:
    """Return what is known of an artifact's settings, from where, and what is open, as JSON holds it; and why it is.

    Raises:
        InputError: the recipe is another system's, or a setting does not fit.
    """
    from evalkit.artifact.recognition import OpenSettings, candidates

    left_open: list[str] = []
    refusal = ""
    try:
        resolved = artifact.resolve(recipe, overrides, reading)
        values, origins = resolved.config.to_dict(), resolved.origins
    except OpenSettings as error:
        known = artifact.known(overrides, reading)
        values = {name: list(v) if isinstance(v, tuple) else v for name, (v, _) in known.items()}
        origins = {name: origin for name, (_, origin) in known.items()}
        left_open, refusal = list(error.names), str(error)
    exact = [] if artifact.metadata.get("model") else candidates(artifact.shapes, artifact.tensors)
    return {
        "system": artifact.recognise(),
        "candidates": [system.name for system in exact],
        "config": None if refusal else values,
        "config_origins": {} if refusal else origins,
        "known": {name: {"value": value, "origin": origins[name]} for name, value in values.items()},
        "open": left_open,
        "problems": list(reading.problems) if reading is not None else [],
    }, refusal


def _describe(known: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the settings that something other than a default decided, grouped by what decided them."""
    groups: dict[str, list[str]] = {}
    for name, told in known.items():
        if told["origin"] != "default":
            text = ",".join(map(str, told["value"])) if isinstance(told["value"], list) else str(told["value"])
            groups.setdefault(told["origin"], []).append(f"{name}={text}")
    return "\n" + "\n".join(f"    from {origin}: {' '.join(items)}" for origin, items in groups.items())
