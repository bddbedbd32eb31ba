"""``evalkit inspect``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from evalkit.cli.options import log_option, recipe_option, source_option
from evalkit.cli.score_command import describe_config
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
    known = _Known(opened, recipe, overrides, reading)
    rows = group_bytes(opened, each=tensors)
    if json_path:
        write_json(json_path, _as_json(opened, known, rows))
    pairs = [
        ("file", f"{opened.path}, sha256 {opened.sha256}"),
        ("format", f"{opened.format}, {opened.compression}"),
        ("size", f"{opened.size:,} bytes, {SIZE_CAP - opened.size:,} under the cap of {SIZE_CAP:,}"),
        ("parameters", f"{opened.num_parameters:,}, {8 * opened.size / opened.num_parameters:.2f} bits each"),
        ("system", recipe or known.system or "not recognised"),
        ("config", describe_config(known.values, known.origins)),
    ]
    if reading is not None and reading.seq_len:
        pairs.append(("window", f"{reading.seq_len} tokens ({reading.label})"))
    pairs += [("script", problem) for problem in known.problems]
    if known.open:
        pairs += [("open", ", ".join(known.open)), ("", known.refusal)]
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


class _Known:
    """What is known of an artifact's settings, from where, and what is open.

    Raises:
        InputError: the recipe is another system's, or a setting does not fit.
    """

    def __init__(
        self, artifact: Artifact, recipe: str | None, overrides: dict[str, str], reading: SourceReading | None
    ) -> None:
        from evalkit.artifact.recognition import OpenSettings, candidates

        self.system = artifact.recognise()
        self.problems = list(reading.problems) if reading is not None else []
        self.open: list[str] = []
        self.refusal = ""
        self.whole = True
        try:
            resolved = artifact.resolve(recipe, overrides, reading)
            self.values, self.origins = resolved.config.to_dict(), resolved.origins
        except OpenSettings as error:
            known = artifact.known(overrides, reading)
            self.values = {name: list(v) if isinstance(v, tuple) else v for name, (v, _) in known.items()}
            self.origins = {name: origin for name, (_, origin) in known.items()}
            self.open, self.refusal, self.whole = list(error.names), str(error), False
        exact = [] if artifact.metadata.get("model") else candidates(artifact.shapes, artifact.tensors)
        self.candidates = [system.name for system in exact]


def _as_json(artifact: Artifact, known: _Known, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "path": artifact.path,
        "sha256": artifact.sha256,
        "bytes": artifact.size,
        "cap": SIZE_CAP,
        "cap_headroom_bytes": SIZE_CAP - artifact.size,
        "format": artifact.format,
        "compression": artifact.compression,
        "parameters": artifact.num_parameters,
        "system": known.system,
        "candidates": known.candidates,
        "config": known.values if known.whole else None,
        "config_origins": known.origins if known.whole else {},
        "known": {name: {"value": value, "origin": known.origins[name]} for name, value in known.values.items()},
        "open": known.open,
        "problems": known.problems,
        "groups": rows,
    }
