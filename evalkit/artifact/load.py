"""Open an artifact, whatever wrote it, and build the model that it holds."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalkit.artifact.compression import unwrap
from evalkit.artifact.infer import ResolvedConfig, infer_from_shapes, resolve_config
from evalkit.artifact.layouts import held_values, read_layout
from evalkit.artifact.native import is_native, read_native
from evalkit.artifact.recognition import OpenSettings, candidates, check_recipe, open_settings, recognised, refusal
from evalkit.artifact.safetensors_file import is_safetensors, read_safetensors
from evalkit.artifact.tensors import StoredTensor
from evalkit.artifact.torchfile import is_torch_file, read_torch_file
from evalkit.model.config import ModelConfig, coerce_field
from evalkit.plumbing.errors import ArtifactError, InputError
from evalkit.recipes import Recipe, load_recipe, recipe_names
from evalkit.tokens.shards import is_shard

if TYPE_CHECKING:
    from evalkit.model.gpt import GPT
    from evalkit.source.reading import Found, SourceReading

MAX_ARTIFACT_BYTES = 256 * 2**20
"""Bound on the file. The challenge allows 16 MB; full-precision checkpoints are near 131 MB."""


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A compressed model as it lies on disk.

    Attributes:
        path: the file.
        sha256: of the file's bytes, in hexadecimal.
        size: of the file, in bytes.
        format: what kind of content it holds.
        compression: ``zstd``, ``xz``, ``zlib``, ``brotli``, ``none`` or the container's own; with the byte shuffle.
        tensors: stored tensors by model name.
        metadata: what a self-describing artifact says of itself; ``model`` is its configuration.
        coded_bytes: bytes that each tensor takes in the file, by name, where the container tells; else empty.
    """

    path: str
    sha256: str
    size: int
    format: str
    compression: str
    tensors: dict[str, StoredTensor]
    metadata: dict[str, Any] = field(default_factory=dict)
    coded_bytes: dict[str, int] = field(default_factory=dict)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor, by name."""
        return {name: tensor.values.shape for name, tensor in self.tensors.items()}

    @property
    def shipped(self) -> tuple[str, ...]:
        """Files that count as bytes that ship."""
        return (self.path,)

    @property
    def num_parameters(self) -> int:
        """Parameters of the model."""
        return sum(tensor.values.size for tensor in self.tensors.values())

    def recognise(self) -> str | None:
        """Return the name of the recipe whose system wrote this, or None if it could be another's.

        An artifact of evalkit's own names it; others are recognised by :mod:`evalkit.artifact.recognition`.
        """
        written_by = self.metadata.get("recipe", {}).get("name")
        if written_by in recipe_names():
            return str(written_by)
        return None if self.metadata.get("model") else recognised(self.shapes, self.tensors)

    def resolve(
        self,
        recipe: str | Recipe | None = None,
        overrides: Mapping[str, Any] | None = None,
        source: SourceReading | None = None,
    ) -> ResolvedConfig:
        """Resolve the model's configuration.

        Args:
            recipe: its name, or None to use what the artifact says or :meth:`recognise` finds.
            overrides: ``--set model.KEY=VALUE`` pairs, without the prefix.
            source: what the system's own script tells; it goes before the recipe.

        Raises:
            OpenSettings: a setting that decides the score is not known.
            InputError: the recipe is another system's, or a setting does not fit.
        """
        try:
            return self._resolve(recipe, overrides or {}, source)
        except OpenSettings as error:
            raise OpenSettings(f"{self.path}: {error}", error.names) from None
        except InputError as error:
            raise type(error)(f"{self.path}: {error}") from None

    def _resolve(
        self, recipe: str | Recipe | None, overrides: Mapping[str, Any], source: SourceReading | None
    ) -> ResolvedConfig:
        stored, shapes = self.metadata.get("model") or None, self.shapes
        for key, value in overrides.items():
            coerce_field(key, value)  # a misspelt setting is said before an open one
        if isinstance(recipe, str):
            recipe = load_recipe(recipe)
        if stored is not None:
            return resolve_config(shapes, recipe=recipe, stored=stored, overrides=overrides)
        told = self._told(source)
        if recipe is not None:
            check_recipe(shapes, recipe.name, recipe.model)
        elif source is None and (name := self.recognise()) is not None:
            recipe = load_recipe(name)
        given = {name: found.value for name, found in told.items()} | dict(overrides)
        if recipe is None and (missing := open_settings(shapes, given)):
            problems = source.problems if source is not None else None
            raise OpenSettings(refusal(shapes, self.tensors, missing, problems), missing)
        resolved = resolve_config(shapes, recipe=recipe, source=told, overrides=overrides)
        return dataclasses.replace(resolved, seq_len=source.seq_len if source is not None and told else 0)

    def known(self, overrides: Mapping[str, Any], source: SourceReading | None) -> dict[str, tuple[Any, str]]:
        """Return what shapes, script and ``--set`` tell, each with its origin, also where settings are left open."""
        values = {name: (value, "shapes") for name, value in infer_from_shapes(self.shapes).items()}
        told = {name: (told.value, told.origin) for name, told in self._told(source).items()}
        return values | told | {name: (value, "--set") for name, value in overrides.items()}

    def _told(self, source: SourceReading | None) -> dict[str, Found]:
        """Return what a script tells for certain: a doubtful default counts only if no published system has another."""
        if source is None or not source.fits:
            return {}
        exact = candidates(self.shapes, self.tensors)
        return {
            name: found
            for name, found in source.settings.items()
            if not found.doubtful
            or (exact and all(s.understood and getattr(s.config, name) == found.value for s in exact))
        }

    def build(self, config: ModelConfig) -> GPT:
        """Build the model in float32, in evaluation mode.

        Raises:
            ArtifactError: a tensor is missing, left over, or has a shape that the configuration does not give it.
        """
        import torch

        from evalkit.model.empty import empty_model

        model = empty_model(config)
        expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        shapes = self.shapes
        if not config.unet_skips:
            shapes.pop("skip_weights", None)
            shapes.pop("skip_gates", None)
        missing = [name for name in expected if name not in shapes]
        surplus = [name for name in shapes if name not in expected]
        if missing or surplus:
            what = f"lacks {', '.join(missing[:4])}" if missing else f"has {', '.join(surplus[:4])} left over"
            raise ArtifactError(f"{self.path}: the artifact {what}; its tensors do not fit the model's configuration")
        for name, shape in expected.items():
            # One-element parameters are stored as [] or [1], depending on who wrote them.
            if shapes[name] != shape and not (math.prod(shapes[name]) == 1 and math.prod(shape) == 1):
                raise ArtifactError(f"{self.path}: tensor {name} has shape {shapes[name]}; expected {shape}")
        state = {
            name: torch.from_numpy(held_values(self.tensors[name]).reshape(shape).copy())
            for name, shape in expected.items()
        }
        model.load_state_dict(state, assign=True)
        return model.eval().requires_grad_(False)


def load_artifact(path: str | Path) -> Artifact:
    """Open an artifact of any known format, judged by its content alone.

    Nothing in the file is executed, and what it claims is checked before memory is taken for it.

    Raises:
        ArtifactError: the file is missing, is not an artifact, is damaged, or claims too much memory.
    """
    data = _read_file(Path(path))
    try:
        metadata: dict[str, Any] = {}
        coded_bytes: dict[str, int] = {}
        if is_native(data):
            native = read_native(data)
            label, tensors, compression = "evalkit container", native.tensors, "range coder"
            coded_bytes = native.payload_bytes
            about = dict(vars(native.metadata))
            metadata = {"model": about.pop("config"), **about}
        else:
            content, compression = unwrap(data)
            if is_safetensors(content):
                label, tensors = read_layout(read_safetensors(content))
            elif is_torch_file(content):
                label, tensors = read_layout(read_torch_file(content))
            else:
                raise ArtifactError(
                    f"this is {_what(content)}; expected evalkit's container, safetensors, or a torch file, as it is "
                    f"or inside zstd, xz, zlib or brotli"
                )
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from None
    return Artifact(
        path=str(path),
        sha256=hashlib.sha256(data).hexdigest(),
        size=len(data),
        format=label,
        compression=compression,
        tensors=tensors,
        metadata=metadata,
        coded_bytes=coded_bytes,
    )


def _what(content: bytes) -> str:
    """Return what a file that is no artifact looks like."""
    if is_shard(content[:8]):
        return (
            "a shard of tokens, not a model (if the shell made it of an unquoted --tokens pattern, quote the pattern)"
        )
    kinds = {b"GGUF": "a GGUF file, which --module evalkit.hf:load reads", b"\x1f\x8b": "a gzip file", b"{": "JSON"}
    return next((kind for start, kind in kinds.items() if content.startswith(start)), "no known artifact")


def _read_file(path: Path) -> bytes:
    try:
        exists = path.exists()
    except (OSError, ValueError) as error:  # a name that is too long, or holds a zero byte
        raise ArtifactError(f"artifact {str(path)[:80]!r} cannot be opened: {error}"[:200]) from None
    if not exists:
        raise ArtifactError(f"artifact {path} does not exist")
    if (path / "checkpoint.pt").exists() or (path / "summary.json").exists():
        raise ArtifactError(
            f"{path} is the folder of a training run; make an artifact of it: evalkit export {path} -o FILE"
        )
    if not path.is_file():
        raise ArtifactError(f"{path} is not a file; expected a compressed model")
    size = path.stat().st_size
    if size == 0:
        raise ArtifactError(f"{path} is empty; expected a compressed model")
    if size > MAX_ARTIFACT_BYTES:
        raise ArtifactError(f"{path} is {size:,} bytes; expected at most {MAX_ARTIFACT_BYTES:,}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from None
