"""``evalkit inspect``."""

from __future__ import annotations

from collections import defaultdict
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
    from evalkit.artifact.tensors import StoredTensor

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


def group_bytes(artifact: Artifact, *, each: bool) -> list[dict[str, Any]]:
    """Return parameters and bytes of each tensor, or of each group of tensors of one role and width.

    ``stored_bytes`` is what the tensors take before compression; ``entropy_bytes`` is the sum of the order-0
    entropies of their bytes, a guide to what a compressor makes of them. ``file_bytes`` is there where the container
    tells what each tensor takes in the file; with the header they add up to its size.
    """
    groups: dict[tuple[str, str], list[tuple[str, StoredTensor]]] = defaultdict(list)
    for name, tensor in artifact.tensors.items():
        groups[name if each else _role(name), tensor.format].append((name, tensor))
    rows = []
    coded = artifact.coded_bytes
    for (name, kind), members in groups.items():
        row = {
            "name": name,
            "kind": kind,
            "parameters": sum(t.values.size for _, t in members),
            "stored_bytes": sum(t.values.nbytes + _scale_bytes(t) for _, t in members),
            "entropy_bytes": round(sum(_entropy_bytes(t) for _, t in members)),
        }
        if coded:
            row["file_bytes"] = sum(coded[name] for name, _ in members)
        rows.append(row)
    largest = "file_bytes" if coded else "entropy_bytes"
    return rows if each else sorted(rows, key=lambda row: -row[largest])


def _role(name: str) -> str:
    parts = name.split(".")
    return "blocks.*." + ".".join(parts[2:]) if parts[0] == "blocks" else name


def _scale_bytes(tensor: StoredTensor) -> int:
    from evalkit.artifact.tensors import QuantizedTensor

    return int(tensor.scale.nbytes) if isinstance(tensor, QuantizedTensor) else 0


def _entropy_bytes(tensor: StoredTensor) -> float:
    import numpy as np

    from evalkit.artifact.tensors import QuantizedTensor

    def entropy(data: bytes) -> float:
        counts = np.bincount(np.frombuffer(data, dtype=np.uint8), minlength=256)
        p = counts[counts > 0] / max(len(data), 1)
        return float(-(p * np.log2(p)).sum() * len(data) / 8)

    total = entropy(tensor.values.tobytes())
    return total + (entropy(tensor.scale.tobytes()) if isinstance(tensor, QuantizedTensor) else 0.0)


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
