"""Open an artifact, whatever wrote it, and build the model that it holds."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalkit.artifact.compression import compression_of, inflate
from evalkit.artifact.infer import ResolvedConfig, resolve_config
from evalkit.artifact.layouts import held_values, read_layout
from evalkit.artifact.native import is_native, read_native
from evalkit.artifact.tensors import QuantizedTensor, StoredTensor
from evalkit.artifact.torchfile import is_torch_file, read_torch_file
from evalkit.plumbing.errors import ArtifactError, InputError
from evalkit.recipes import Recipe, load_recipe, recipe_names

if TYPE_CHECKING:
    from evalkit.model.config import ModelConfig
    from evalkit.model.gpt import GPT

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
        compression: ``zstd``, ``xz``, ``zlib``, ``none`` or the container's own.
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
        """Return the name of the recipe whose system wrote this, or None if nothing tells.

        Judged by tensors that only one system has, and by which matrices got which width.
        """
        written_by = self.metadata.get("recipe", {}).get("name")
        if written_by in recipe_names():
            return str(written_by)
        names = self.tensors
        mlp = names.get("blocks.0.mlp.fc.weight")
        mlp_bits = mlp.bits if isinstance(mlp, QuantizedTensor) else None
        if "trigram.embed.weight" in names:
            return "pr344"
        if "blocks.0.lambda_v" in names:
            return "pr849"
        if "ve_shared.embed.weight" in names:
            return {5: "pr592", 6: "pr634"}.get(mlp_bits or 0)
        if "bigram.embed.weight" in names:
            return "pr333" if "smear.gate" in names else None
        return "baseline" if self.format.startswith("layout A") else None

    def resolve(self, recipe: str | Recipe | None = None, overrides: Mapping[str, Any] | None = None) -> ResolvedConfig:
        """Resolve the model's configuration.

        Args:
            recipe: its name, or None to use what the artifact says or :meth:`recognise` finds.
            overrides: ``--set model.KEY=VALUE`` pairs, without the prefix.

        Raises:
            InputError: the system is not recognised and no recipe was given, or a setting does not fit.
        """
        stored = self.metadata.get("model") or None
        if isinstance(recipe, str):
            recipe = load_recipe(recipe)
        if recipe is None and stored is None:
            name = self.recognise()
            if name is None:
                raise InputError(
                    f"{self.path}: cannot tell which system wrote this ({self.format}); name it with --recipe"
                )
            recipe = load_recipe(name)
        return resolve_config(self.shapes, recipe=recipe, stored=stored, overrides=overrides)

    def build(self, config: ModelConfig) -> GPT:
        """Build the model in float32, in evaluation mode.

        Raises:
            ArtifactError: a tensor is missing, left over, or has a shape that the configuration does not give it.
        """
        import torch

        from evalkit.model.gpt import GPT

        with torch.device("meta"):
            model = GPT(config)
        expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        shapes = self.shapes
        if not config.unet_skips:
            shapes.pop("skip_weights", None)
        missing = [name for name in expected if name not in shapes]
        surplus = [name for name in shapes if name not in expected]
        if missing or surplus:
            what = f"lacks {', '.join(missing[:4])}" if missing else f"has {', '.join(surplus[:4])} left over"
            raise ArtifactError(f"{self.path}: the artifact {what}; its tensors do not fit the model's configuration")
        for name, shape in expected.items():
            # One-element parameters are stored as [] or [1], depending on who wrote them.
            if shapes[name] != shape and not (_size(shapes[name]) == 1 and _size(shape) == 1):
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
    compression = compression_of(data)
    try:
        metadata: dict[str, Any] = {}
        coded_bytes: dict[str, int] = {}
        if is_native(data):
            native = read_native(data)
            label, tensors, compression = "evalkit container", native.tensors, "range coder"
            coded_bytes = native.payload_bytes
            metadata = {
                "model": dict(native.metadata.config),
                "recipe": dict(native.metadata.recipe),
                "tokenizer_sha256": native.metadata.tokenizer_sha256,
                "evalkit_version": native.metadata.evalkit_version,
            }
        else:
            content = inflate(data)
            if not is_torch_file(content):
                raise ArtifactError(
                    "this is no known artifact; expected evalkit's container or a torch file inside zstd, xz or zlib"
                )
            label, tensors = read_layout(read_torch_file(content))
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


def _read_file(path: Path) -> bytes:
    try:
        exists = path.exists()
    except (OSError, ValueError) as error:  # a name that is too long, or holds a zero byte
        raise ArtifactError(f"artifact {str(path)[:80]!r} cannot be opened: {error}"[:200]) from None
    if not exists:
        raise ArtifactError(f"artifact {path} does not exist")
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


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size
