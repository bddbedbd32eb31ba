"""The run folder: what is in it, and how a run is told from another.

=================  ====================================================================================
``recipe.toml``    the resolved recipe, every field of every section; usable as ``--recipe``
``config.json``    {format, version, recipe, sections, data, device}: the same, the shards and the kind of device that
                   the run began on, for programs
``checkpoint.pt``  the last resumable state (:class:`evalkit.train.loop.Trainer`), replaced atomically
``metrics.jsonl``  one JSON object a line: training steps and events, each with ``step``
``model.pt``       the exported weights: a plain state dict of the GPT, name to float32 tensor
``raw.pt`` ...     the other kinds of weights there are (``raw.pt``, ``ema.pt``, ``swa.pt``), likewise
``summary.json``   status, steps, tokens, seconds, ``exported`` kind, losses of every kind, versions, and the step at
                   which the blocks' order was switched on, with the budget that said so
``loss.png``       loss curves, if matplotlib is installed
=================  ====================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from evalkit.plumbing.errors import InputError
from evalkit.plumbing.files import write_atomically, write_json
from evalkit.recipes import Recipe
from evalkit.train.config import RunConfig
from evalkit.train.files import load_tensors, read_json
from evalkit.train.resolve import to_toml

FORMAT, VERSION = "evalkit-run", 1
_MAY_CHANGE = {
    "train.threads",
    "train.log_every",
    "train.validate_every",
    "train.checkpoint_every",
    "train.checkpoint_seconds",
    "train.sync_every",
    "train.device",
    "train.compile",
}
"""Settings that a resumed run may change without changing the weights, but for the rounding of another device or of
compiled steps."""


class TrainingFolder:
    """Paths of one run, in the folder ``path``."""

    def __init__(self, *, path: Path) -> None:
        self.path = path
        self.checkpoint = path / "checkpoint.pt"
        self.config = path / "config.json"
        self.metrics = path / "metrics.jsonl"
        self.model = path / "model.pt"
        self.summary = path / "summary.json"

    def recipe(self) -> Recipe:
        """Return the resolved recipe of the run that the folder holds, with ``train.compile`` left to the device.

        Raises:
            InputError: it holds none.
        """
        known = self.settings()
        if known is None:
            raise InputError(f"{self.path} holds no run to go on with; start one with --recipe")
        sections = known.to_dict()
        sections["train"]["compile"] = "auto"
        return Recipe(name=known.recipe, model=sections["model"], sections=sections)

    def settings(self) -> RunConfig | None:
        """Return the settings of the run that the folder holds; None where it holds none.

        Raises:
            InputError: the run is another version's.
        """
        if not self.config.exists():
            return None
        known = self._identity()
        return RunConfig.from_dict(known["recipe"], known["sections"])

    def device(self) -> str | None:
        """Return ``cpu`` or ``cuda``, what the run that the folder holds began on; None where that is not known."""
        return self._identity().get("device") if self.config.exists() else None

    def _identity(self) -> dict[str, Any]:
        known: dict[str, Any] = read_json(self.config)
        if known.get("format") != FORMAT or known.get("version") != VERSION:
            raise InputError(f"{self.config} is not a run of this version (format {FORMAT} {VERSION})")
        return known

    def open(self, config: RunConfig, data: list[dict[str, Any]], *, device: str, resume: bool) -> bool:
        """Create the folder, or check that it holds the run that is resumed.

        Args:
            config: the resolved recipe.
            data: name and tokens of every training shard.
            device: ``cpu`` or ``cuda``, on which the run begins.
            resume: go on where the folder's checkpoint stopped, if it has one.

        Returns:
            Whether there is a checkpoint to go on from.

        Raises:
            InputError: the folder holds another run, or a run and ``resume`` is off, or cannot be written.
        """
        sections = config.to_dict()
        if self.config.exists():
            if not resume:
                raise InputError(f"{self.path} already holds a run; go on with --resume, or name another --out")
            known = self._identity()
            # Settings that an older version did not have were at their defaults.
            before = RunConfig.from_dict(known["recipe"], known["sections"]).to_dict()
            changed = _differences(before, sections)
            if changed:
                raise InputError(f"{self.path} has other settings ({'; '.join(changed[:3])}); resume with the same")
            if known["data"] != data:
                raise InputError(f"{self.path} holds a run on other shards; resume with the same data")
            return self.checkpoint.exists()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"run folder {self.path} cannot be made: {error.strerror}") from None
        write_atomically(self.path / "recipe.toml", to_toml(sections).encode())
        identity = {"format": FORMAT, "version": VERSION, "recipe": config.recipe}
        write_json(self.config, identity | {"sections": sections, "data": data, "device": device})
        return False


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """What an export needs from a run folder.

    Attributes:
        config: the resolved recipe.
        weights: state dict of the GPT in float32.
        kind: ``raw``, ``ema`` or ``swa``.
    """

    config: RunConfig
    weights: dict[str, Tensor]
    kind: str


def load_run(path: Path, kind: str | None = None) -> TrainedModel:
    """Read a finished run.

    Args:
        path: the run folder, or a weight file in it.
        kind: which weights; the exported ones by default.

    Raises:
        InputError: the folder holds no finished run, or no such weights.
    """
    folder = TrainingFolder(path=path if path.is_dir() else path.parent)
    if not folder.config.exists():
        raise InputError(f"{path} is not a run folder: it has no config.json")
    known = read_json(folder.config)
    if known.get("format") != FORMAT:
        raise InputError(f"{folder.config} is not a training run's")
    if not folder.summary.exists():
        raise InputError(f"the run in {folder.path} is not finished; go on with --resume")
    exported = str(read_json(folder.summary)["exported"])
    if path.is_file():
        file = path
        kind = exported if path.name == "model.pt" else path.stem
    else:
        kind = kind or exported
        file = folder.model if kind == exported else folder.path / f"{kind}.pt"
    if not file.exists():
        raise InputError(f"the run in {folder.path} has no {kind} weights")
    return TrainedModel(
        config=RunConfig.from_dict(known["recipe"], known["sections"]), weights=load_tensors(file), kind=kind
    )


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return in words what changed; runs of older versions may have left a setting at ``auto``."""
    found = []
    for section in {**old, **new}:
        before, after = old.get(section, {}), new.get(section, {})
        for key in {**before, **after}:
            name = f"{section}.{key}"
            if name not in _MAY_CHANGE and before.get(key) not in (after.get(key), "auto"):
                found.append(f"{name} was {before.get(key)}, now {after.get(key)}")
    return found
