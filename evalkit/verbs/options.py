"""What a score is asked for: the command line's options, under the same names, checked against each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from evalkit.plumbing.constants import CONTEXTS, MIXERS, SECTIONS
from evalkit.plumbing.errors import InputError
from evalkit.plumbing.settings import require


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """What to score, with what, and how; the command line's options under the same names.

    Attributes:
        artifact: path of the artifact; or
        module: a user's model, ``FILE.py:FACTORY`` or ``package.module:FACTORY``, or from Python the model itself
            (:mod:`evalkit.network.network` says what is asked of it); with neither, the online mixer alone.
        weights: file or folder that the factory of ``module`` is called with.
        tokenizer: SentencePiece .model, Hugging Face tokenizer.json, or ``bytes``.
        tokens: glob of token shards, or several; or
        text: path of a text or of documents in JSON lines. Beside ``tokens`` and ``token_bytes`` it is the original
            that the bytes are compared with.
        token_bytes: glob of shards that say how many bytes of the original text each token stands for; None counts
            them by the tokenizer's rule.
        code: files that ship with the model besides, whose bytes count.
        recipe: recipe name; None recognises the artifact.
        source: path of the training script that made the artifact, to read its settings from; never executed.
        log: path of the log of its run, which goes before the script's defaults.
        settings: ``--set`` overrides by section: ``model``, ``mixer``, ``ttt``.
        seq_len: window in tokens; None takes the recipe's, or the module's.
        stride: distance between windows in tokens.
        limit_tokens: score at most this many tokens; 0 scores all.
        mixer: ``none``, ``hedge`` (legal) or ``published`` (PR849's, for comparison only).
        ttt: train on what has been scored.
        context: what a token may depend on, each another estimator with its own number: ``sliding`` windows of the
            stream; ``documents``, the same windows laid in each document by itself, which starts with BOS;
            ``streaming``, where keys and values are kept, which is far faster.
        device: ``cpu``, ``cuda`` or ``auto``: a GPU where there is one.
        dtype: ``float32``, ``bfloat16`` or ``auto``: bfloat16 for models of 10 million parameters and more where a
            measurement found it faster (:mod:`evalkit.plumbing.hardware`), float32 otherwise.
        batch_windows: windows at a time on a GPU; 0 takes as many as fill it.
        threads: CPU threads; 0 for all.
        reliability: sample the whole distribution at about this many positions, for the reliability curve of the
            report; 0 samples none. Scores stay the same.
    """

    artifact: str | None = None
    module: str | Any | None = None
    weights: str | None = None
    tokenizer: str
    tokens: str | tuple[str, ...] | None = None
    text: str | None = None
    token_bytes: str | None = None
    code: tuple[str, ...] = ()
    recipe: str | None = None
    source: str | None = None
    log: str | None = None
    settings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    seq_len: int | None = None
    stride: int = 64
    limit_tokens: int = 0
    mixer: str = "none"
    ttt: bool = False
    context: str = "sliding"
    device: str = "auto"
    dtype: str = "auto"
    batch_windows: int = 0
    threads: int = 0
    reliability: int = 0

    def __post_init__(self) -> None:
        if self.tokens is None and self.text is None:
            raise InputError("give what to score as either --tokens GLOB or --text FILE")
        if self.tokens is not None and self.text is not None and self.token_bytes is None:
            raise InputError(
                "give what to score as either --tokens GLOB or --text FILE; both go together with --token-bytes alone, "
                "whose sums are compared with the text"
            )
        if self.code and not self.has_model:
            raise InputError("--code names files that ship with a model, and there is none: leave it out")
        if self.mixer not in MIXERS:
            raise InputError(f"--mixer is {self.mixer!r}; expected {', '.join(MIXERS)}")
        if self.artifact is not None and self.module is not None:
            raise InputError(f"give either the artifact {self.artifact} or --module, not both")
        if self.weights is not None and self.module is None:
            raise InputError("--weights goes with --module, whose factory is called with them")
        if self.module is not None and (self.source is not None or self.log is not None):
            raise InputError("--source and --log say how an artifact is read; a module says it itself: leave them out")
        if self.module is not None and self.recipe is not None:
            raise InputError("--recipe says how an artifact is read; a module says that itself: leave it out")
        if self.module is not None and self.context == "streaming":
            raise InputError("--context streaming is for artifacts, whose keys and values evalkit knows")
        if not self.has_model and (self.mixer != "hedge" or self.ttt):
            raise InputError("without a model there is only the online mixer: use --no-model with --mixer hedge alone")
        if not self.has_model:
            idle = {"--seq-len": self.seq_len, "--recipe": self.recipe, "--source": self.source, "--log": self.log}
            given = [option for option, value in idle.items() if value is not None]
            given += ["--context"] if self.context != "sliding" else []
            if given:
                raise InputError(f"{', '.join(given)} would change nothing here: there is no model; leave it out")
        if self.context not in CONTEXTS:
            raise InputError(f"--context is {self.context!r}; expected {', '.join(CONTEXTS)}")
        if self.context == "streaming" and self.ttt:
            raise InputError("--context streaming goes without --ttt, which would change what has been kept")
        if self.context != "sliding" and self.mixer == "published":
            raise InputError("--mixer published is for --context sliding, as PR849 scores; use --mixer none or hedge")
        if self.limit_tokens < 0:
            raise InputError(f"--limit-tokens is {self.limit_tokens}; expected 0 (all) or more")
        if self.dtype not in ("auto", "float32", "bfloat16"):
            raise InputError(f"--dtype is {self.dtype!r}; expected auto, float32 or bfloat16")
        if self.reliability < 0:
            raise InputError(f"--reliability is {self.reliability}; expected 0 (none) or more positions")
        self._refuse_idle_settings()

    @property
    def has_model(self) -> bool:
        """Whether there is a network, and not the online mixer alone."""
        return self.artifact is not None or self.module is not None

    def _refuse_idle_settings(self) -> None:
        """Refuse settings that would change nothing: they mean that an option was forgotten."""
        idle = {
            "model": self.artifact is None and "there is no artifact whose settings it could be",
            "mixer": self.mixer != "hedge" and "add --mixer hedge",
            "ttt": not self.ttt and self.mixer != "published" and "add --ttt",
            "streaming": self.context != "streaming" and "add --context streaming",
        }
        for section, values in self.settings.items():
            require(section in SECTIONS, "the section of --set", section, " or ".join(SECTIONS))
            if values and idle[section]:
                keys = ", ".join(f"{section}.{key}" for key in values)
                raise InputError(f"--set {keys} would change nothing here: {idle[section]}, or leave it out")
