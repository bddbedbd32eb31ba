"""Turn the options of a score into typed, frozen configurations.

Where it runs, in which type, with which windows, which online mixer and which test-time training. Each function raises
an :class:`InputError` where an option does not fit the model or the tokenizer.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from evalkit.artifact.infer import ResolvedConfig
from evalkit.artifact.load import Artifact
from evalkit.network.declared import model_vocabulary, model_window
from evalkit.network.factory import ModuleSource
from evalkit.plumbing.errors import InputError
from evalkit.plumbing.log import LOG
from evalkit.plumbing.settings import configured, require
from evalkit.recipes import load_recipe
from evalkit.tokens.tokenizer import TextTokenizer
from evalkit.verbs.options import ScoreOptions

if TYPE_CHECKING:
    from evalkit.mixers.config import MixerConfig
    from evalkit.prequential.sliding import SlidingConfig
    from evalkit.prequential.streaming import StreamingConfig
    from evalkit.ttt.config import TTTConfig

_LARGE_MODEL = 10_000_000

_WORTH_COMPILING = 5e14
"""Floating-point operations of a pass that are worth a compilation: a GPU takes some 10 s for them with the code as it
is written and 3 s with compiled parts, and compiling takes about as long as that saves."""

MAX_MIXER_VOCABULARY = 65_535


def choose_device(options: ScoreOptions, artifact: Artifact | ModuleSource | None) -> str:
    """Return where the network is computed: ``auto`` is a GPU where there is one, and the model can be moved to it."""
    if artifact is None:
        return "cpu"
    from torch import nn

    from evalkit.plumbing.hardware import resolve_device

    if options.device == "auto" and isinstance(artifact, ModuleSource) and not isinstance(artifact.model, nn.Module):
        return "cpu"
    return resolve_device(options.device)


def choose_dtype(options: ScoreOptions, artifact: Artifact | ModuleSource) -> tuple[str, str]:
    """Return the type of the matrices, and why."""
    if options.dtype != "auto":
        return options.dtype, "--dtype"
    if isinstance(artifact, ModuleSource) and not artifact.is_own:
        return "own", "the module's own"
    if artifact.num_parameters < _LARGE_MODEL:
        return "float32", f"a model of {artifact.num_parameters:,} parameters is small"
    from evalkit.plumbing.hardware import matrix_speed

    speed = matrix_speed(options.device)
    return "bfloat16" if speed.prefers_bfloat16 else "float32", str(speed)


def compiled_if_long(
    window: SlidingConfig | None, artifact: Artifact | ModuleSource | None, num_tokens: int
) -> SlidingConfig | None:
    """Return how windows are computed: on a GPU, compiled where there are so many that compiling them is less work."""
    if window is None or artifact is None or not window.device.startswith("cuda"):
        return window
    # A document is padded to a window, but most of its tokens are computed once.
    passes = 2.0 if window.document_token is not None else window.seq_len / window.stride
    work = 2.0 * artifact.num_parameters * num_tokens * passes
    LOG.debug("compile: %s (about %.2g floating-point operations)", work >= _WORTH_COMPILING, work)
    return dataclasses.replace(window, compile=work >= _WORTH_COMPILING)


def sliding_config(
    options: ScoreOptions,
    artifact: Artifact | ModuleSource,
    resolved: ResolvedConfig | None,
    tokenizer: TextTokenizer,
    dtype: str,
) -> SlidingConfig:
    """Return the windows: as asked for, else as artifact, script, recipe or module say, else of 2,048 tokens."""
    from evalkit.prequential.sliding import SlidingConfig

    if options.context == "documents" and tokenizer.bos_id < 0:
        raise InputError(
            f"--context documents: the tokenizer {tokenizer.path} has no BOS, which would open a document; use "
            f"--context sliding"
        )
    seq_len, origin = options.seq_len, "--seq-len"
    if seq_len is None and isinstance(artifact, ModuleSource):
        asked = model_window(artifact.model, artifact.path)
        seq_len, origin = (2048, "the default") if asked is None else (asked, "the module")
    elif seq_len is None and isinstance(artifact, Artifact):
        name = options.recipe or artifact.recognise()
        if stored := artifact.metadata.get("recipe", {}).get("seq_len"):
            seq_len, origin = int(stored), "the artifact"
        elif resolved is not None and resolved.seq_len:
            seq_len, origin = resolved.seq_len, str(options.source)
        elif name:
            seq_len, origin = load_recipe(name).seq_len, f"recipe {name}"
        else:
            seq_len, origin = 2048, "the default"
    LOG.debug("windows: %d tokens (from %s), a new one every %d", seq_len, origin, options.stride)
    assert seq_len is not None
    return SlidingConfig(
        seq_len=seq_len,
        stride=options.stride,
        batch_windows=options.batch_windows,
        device=options.device,
        dtype=dtype,
        threads=options.threads,
        document_token=tokenizer.bos_id if options.context == "documents" else None,
    )


def streaming_config(options: ScoreOptions, sliding: SlidingConfig | None) -> StreamingConfig | None:
    """Return how much of the past is kept; None unless the context is ``streaming``."""
    if options.context != "streaming" or sliding is None:
        return None
    from evalkit.prequential.streaming import StreamingConfig

    config = StreamingConfig(
        seq_len=sliding.seq_len,
        block=min(StreamingConfig.block, max(sliding.seq_len // 4, 1)),
        device=sliding.device,
        dtype=sliding.dtype,
        threads=sliding.threads,
    )
    return configured(config, options.settings.get("streaming", {}), "streaming")


def mixer_config(
    options: ScoreOptions, tokenizer: TextTokenizer, artifact: Artifact | ModuleSource | None
) -> MixerConfig | None:
    """Return the online mixer: its preset and what was set of it; None unless it is ``hedge``."""
    if options.mixer != "hedge":
        return None
    from evalkit.mixers import best_config, default_config

    has_network = artifact is not None
    vocab_size = tokenizer.vocab_size
    if isinstance(artifact, ModuleSource):
        vocab_size = model_vocabulary(artifact.model, vocab_size, artifact.path)
    if vocab_size > MAX_MIXER_VOCABULARY:
        raise InputError(
            f"--mixer hedge keeps counts for vocabularies of at most {MAX_MIXER_VOCABULARY:,}; this one has "
            f"{vocab_size:,}: score without it"
        )
    preset, settings = _preset(options, "mixer", "default" if has_network else "best", ("default", "best"))
    make = best_config if preset == "best" else default_config
    document_token = tokenizer.bos_id if tokenizer.bos_id >= 0 else None
    return configured(make(vocab_size, network=has_network, document_token=document_token), settings, "mixer")


def ttt_config(options: ScoreOptions) -> TTTConfig | None:
    """Return the test-time training: its preset and what was set of it; None where nothing asks for it."""
    published = options.mixer == "published"
    if not options.ttt and not published:
        return None
    from evalkit.ttt.config import PRESETS

    preset, settings = _preset(options, "ttt", "published" if published else "default", tuple(PRESETS))
    config = configured(PRESETS[preset](), settings, "ttt")
    # PR849's mixer comes with PR849's temperature and chunks even where nothing trains.
    return config if options.ttt else dataclasses.replace(config, epochs=0)


def _preset(options: ScoreOptions, section: str, default: str, presets: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    """Return the preset that a section starts from, and its other settings."""
    settings = dict(options.settings.get(section, {}))
    preset = settings.pop("preset", default)
    require(preset in presets, f"{section}.preset", preset, " or ".join(presets))
    return preset, settings
