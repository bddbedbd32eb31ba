"""What a run reports: ``metrics.jsonl``, and a picture of the loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from evalkit.plumbing.errors import InputError
from evalkit.plumbing.files import write_atomically


class MetricsLog:
    """One JSON object a line; a resumed run drops what was logged after its checkpoint.

    Args:
        path: the file, or None to log nothing.
        resumed_step: steps done by the checkpoint, 0 for a new run.
    """

    def __init__(self, path: Path | None, *, resumed_step: int) -> None:
        self._path = path
        if path is None:
            return
        kept = [line for line in read_metrics(path) if line["step"] <= resumed_step] if resumed_step else []
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept).encode())

    def write(self, **values: Any) -> None:
        """Append one line.

        Raises:
            InputError: the disk is full.
        """
        if self._path is None:
            return
        try:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps(values) + "\n")
        except OSError as error:
            raise InputError(
                f"{self._path} cannot be written ({error.strerror}); checkpoints are intact: make room and --resume"
            ) from None


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a log; a last line that a crash cut off is left out."""
    lines: list[dict[str, Any]] = []
    if path.is_file():
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:
                break
    return lines


def draw_losses(log: Path, picture: Path) -> bool:
    """Draw losses over steps; return False if matplotlib (the ``plot`` extra) is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    lines = read_metrics(log)
    figure = Figure(figsize=(7, 4))
    axes = figure.add_axes(
        (0.115, 0.13, 0.86, 0.84)
    )  # room for the labels, whose sizes a layout would draw twice to learn
    training = [(line["step"], line["train_nats"]) for line in lines if "train_nats" in line]
    if training:
        axes.plot(*zip(*training, strict=True), label="training", linewidth=1)
    for kind in ("raw", "ema", "swa"):
        points = [(line["step"], line["val_nats"]) for line in lines if line.get("weights") == kind]
        if points:
            axes.plot(*zip(*points, strict=True), "o-", label=f"validation, {kind}", markersize=4)
    axes.set_xlabel("step")
    axes.set_ylabel("nats per token")
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    write_atomically(picture, lambda file: figure.savefig(file, format="png", dpi=100))
    return True
