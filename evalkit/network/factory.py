"""``--module FILE.py:FACTORY`` and ``--weights FILE``: run the user's factory, and say what was run.

    # model.py
    def make(weights: str | None = None) -> torch.nn.Module: ...

    evalkit score --module model.py:make --weights model.pt ...

The file is code that the user chose to run: it is executed here, with the rights of this process.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from evalkit.legality.child import StrangerFault, describe, load_factory
from evalkit.plumbing.errors import InputError
from evalkit.plumbing.files import files_below

_LONGEST = 400
"""Characters of a stranger's message that are shown."""


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """A file that ships with a score.

    Attributes:
        path: where it lies; a folder stands for all files below it.
        sha256: of its bytes; of names and bytes for a folder.
        bytes: its size.
    """

    path: str
    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class ModuleSource:
    """A user's model: what was run, and the files that it stands on.

    Attributes:
        path: ``FILE.py:FACTORY`` or ``package.module:FACTORY``, its name for reports and messages.
        weights: what ``--weights`` named, or None.
        model: what the factory returned.
        files: the file of the factory, then the weights.
    """

    path: str
    weights: str | None
    model: Any
    files: tuple[SourceFile, ...]

    format: ClassVar[str] = "module"
    compression: ClassVar[str] = "none"

    @property
    def shipped(self) -> tuple[str, ...]:
        """Files that count as bytes that ship."""
        return tuple(file.path for file in self.files)

    def recognise(self) -> None:
        """A module is no published system's artifact."""

    @property
    def num_parameters(self) -> int:
        """Numbers that the model has learned; 0 where it is no torch module."""
        parameters = getattr(self.model, "parameters", None)
        return sum(int(p.numel()) for p in parameters()) if callable(parameters) else 0

    @property
    def is_untouched(self) -> bool:
        """Whether the model is evalkit's own network as evalkit builds it: none but its layers, none of them hooked."""
        from torch import nn

        plain = (nn.Linear, nn.Embedding, nn.ModuleList, nn.ParameterList, nn.ModuleDict)
        return self.is_own and all(
            (type(module) in plain or type(module).__module__.startswith("evalkit.model."))
            and not (module._forward_hooks or module._forward_pre_hooks)
            and not {"forward", "logits_from"} & set(vars(module))
            for module in self.model.modules()
        )

    @property
    def is_own(self) -> bool:
        """Whether the factory returned evalkit's own network, whose precision evalkit chooses."""
        from evalkit.model.gpt import GPT

        return isinstance(self.model, GPT)

    @property
    def sha256(self) -> str:
        """Hash of the hashes of all files."""
        return hashlib.sha256("".join(file.sha256 for file in self.files).encode()).hexdigest()

    @property
    def size(self) -> int:
        """Bytes that ship: code and weights."""
        return sum(file.bytes for file in self.files)


def open_module(spec: str, weights: str | None = None) -> ModuleSource:
    """Import the module, call the factory and return the model with the identity of its files.

    Raises:
        InputError: a file is missing, the factory cannot be found, takes other arguments, raises, or returns nothing
            that can be called.
    """
    if weights is not None and not Path(weights).exists():
        raise InputError(f"--weights {weights} does not exist")
    factory = _load(spec)
    model = _call(factory, spec, weights)
    if not callable(model):
        returned = "None" if model is None else f"{type(model).__name__}, which cannot be called"
        raise InputError(
            f"--module {spec}: the factory returned {returned}; expected a model, which is called with token ids and "
            f"returns logits"
        )
    code = inspect.getsourcefile(inspect.unwrap(factory)) or getattr(sys.modules[factory.__module__], "__file__", "")
    paths = [str(code), *([weights] if weights is not None else [])]
    return ModuleSource(path=spec, weights=weights, model=model, files=tuple(map(identify, paths)))


def of_object(model: Any) -> ModuleSource:
    """Return a model that a Python caller has made; it has no files, so no bytes of it are counted."""
    return ModuleSource(path="a model object", weights=None, model=model, files=())


def identify(path: str) -> SourceFile:
    """Return hash and size of a file, or of every file below a folder."""
    digest, size = hashlib.sha256(), 0
    root = Path(path)
    for file in files_below(root):
        if root.is_dir():
            digest.update(file.relative_to(root).as_posix().encode() + b"\0")
        with file.open("rb") as stream:
            while piece := stream.read(1 << 20):
                digest.update(piece)
                size += len(piece)
    return SourceFile(path=path, sha256=digest.hexdigest(), bytes=size)


def _load(spec: str) -> Callable[..., Any]:
    try:
        factory: Callable[..., Any] = load_factory(spec)
    except StrangerFault as fault:
        raise InputError(f"--module: {fault}") from None
    except (Exception, SystemExit) as error:
        raise InputError(f"--module {spec} cannot be imported: {_in_one_line(describe(error))}") from error
    return factory


def _call(factory: Callable[..., Any], spec: str, weights: str | None) -> Any:
    try:
        parameters = list(inspect.signature(factory).parameters.values())
    except (TypeError, ValueError):  # a factory written in C tells nothing of itself
        parameters = []
    by_name = any(p.kind is inspect.Parameter.KEYWORD_ONLY and p.name == "weights" for p in parameters)
    takes_weights = by_name or (bool(parameters) and parameters[0].kind is not inspect.Parameter.KEYWORD_ONLY)
    if weights is not None and not takes_weights:
        raise InputError(f"--module {spec}: the factory takes no argument; leave out --weights {weights}")
    needs_weights = takes_weights and not by_name and parameters[0].default is inspect.Parameter.empty
    needs_weights = needs_weights and parameters[0].kind is not inspect.Parameter.VAR_POSITIONAL
    try:
        if weights is None and not needs_weights:
            return factory()
        return factory(weights=weights) if by_name else factory(weights)
    except InputError:
        raise  # a sentence of evalkit's own, such as load_state's
    except (Exception, SystemExit) as error:
        hint = "" if weights is not None or not needs_weights else " (give a file with --weights)"
        raise InputError(f"--module {spec}: the factory raised {_in_one_line(describe(error))}{hint}") from error


def _in_one_line(text: str) -> str:
    """Return a message, which may be a list of every weight that does not fit, as the beginning of one sentence."""
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}... ({len(line) - _LONGEST:,} characters more)"
