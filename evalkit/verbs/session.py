"""Put inputs, model, mixer and test-time training together.

This is the composition root: the only module of evalkit that imports ``mixers`` and ``ttt``. The command line and the
Python interface both stand on it. Opening a session turns every setting into a typed, frozen configuration before any
text is read, so that a slip of the keyboard costs seconds.
"""

from __future__ import annotations

import dataclasses
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from evalkit.artifact.infer import NOT_INFERABLE, ResolvedConfig
from evalkit.artifact.load import Artifact, load_artifact
from evalkit.artifact.recognition import shown
from evalkit.network.declared import model_vocabulary
from evalkit.network.factory import ModuleSource, SourceFile, identify, of_object, open_module
from evalkit.plumbing.errors import InputError, TokenError
from evalkit.plumbing.log import LOG, timed
from evalkit.plumbing.version import __version__
from evalkit.source import read_source_of
from evalkit.tokens.kinds import open_tokenizer
from evalkit.tokens.sidecar import Sidecar, audited, open_with_sidecar
from evalkit.tokens.stream import TokenStream, open_shards, tokenize_file
from evalkit.tokens.texts import read_documents
from evalkit.tokens.tokenizer import ByteCounts, TextTokenizer
from evalkit.verbs.configure import (
    choose_device,
    choose_dtype,
    compiled_if_long,
    mixer_config,
    sliding_config,
    streaming_config,
    ttt_config,
)
from evalkit.verbs.options import ScoreOptions

if TYPE_CHECKING:
    from evalkit.mixers.config import MixerConfig
    from evalkit.model.config import ModelConfig
    from evalkit.model.gpt import GPT
    from evalkit.network.causality import Leak
    from evalkit.network.network import Network
    from evalkit.plumbing.profiling import Profile
    from evalkit.plumbing.ranks import Ranks
    from evalkit.prequential.forecaster import Forecaster
    from evalkit.prequential.sliding import SlidingConfig, SlidingForecaster
    from evalkit.prequential.streaming import StreamingConfig, StreamingForecaster
    from evalkit.ttt.config import TTTConfig
    from evalkit.ttt.forecaster import TTTForecaster

    NetworkForecaster: TypeAlias = SlidingForecaster | StreamingForecaster | TTTForecaster

PUBLISHED_BATCH = 32
"""Windows in a batch of PR849's mixer, whose weights move after each."""


@dataclass(frozen=True, kw_only=True)
class Session:
    """Opened and checked inputs, settings as typed configurations; makes fresh forecasters.

    Attributes:
        options: what was asked for.
        tokenizer: of the stream.
        stream: the tokens to score.
        sidecar: the bytes of each token, where shards say them.
        artifact: the model's file, or a user's module; None for the online mixer alone.
        resolved: the model's configuration, and where each value came from.
        sliding: how windows are laid and computed; None without a model.
        dtype_because: why the matrices have the type that they have; None without a model.
        streaming: how much of the past is kept; None unless the context is ``streaming``.
        mixer: the online mixer; None unless it is ``hedge``.
        ttt: test-time training, or what PR849's mixer takes of it (``epochs`` 0); None where neither is asked for.
        code: files that ship with the model besides.
        ranks: the processes of the run; None for this one alone. See :meth:`shared_among`.
    """

    options: ScoreOptions
    tokenizer: TextTokenizer
    stream: TokenStream
    artifact: Artifact | ModuleSource | None
    resolved: ResolvedConfig | None
    sliding: SlidingConfig | None
    dtype_because: str | None
    streaming: StreamingConfig | None
    mixer: MixerConfig | None
    ttt: TTTConfig | None
    sidecar: Sidecar | None = None
    code: tuple[SourceFile, ...] = ()
    ranks: Ranks | None = None

    def shared_among(self, ranks: Ranks) -> Session:
        """Return this session with its windows, and its rows of test-time training, shared among processes.

        Raises:
            InputError: there is more than one process, and nothing that they could share or agree on.
        """
        if ranks.count == 1:
            return self
        if self.artifact is None or self.options.context == "streaming" or self.options.mixer == "published":
            raise InputError(
                f"{ranks.count} processes have nothing to share: --no-model, --context streaming and --mixer published "
                f"take one step after another; run them in one process, without torchrun"
            )
        if self.ttt is not None and self.ttt.time_limit:
            raise InputError("ttt.time_limit stops each process at another place; leave it out, or out of torchrun")
        return dataclasses.replace(self, ranks=ranks)

    @property
    def num_bytes(self) -> ByteCounts:
        """What says how many bytes each token stands for."""
        return self.sidecar or self.tokenizer.byte_table

    @property
    def preferred_span(self) -> int:
        """Positions to score at a time: on GPUs many batches, so that there is always a next one; 0: the usual."""
        if self.sliding is None or self.options.mixer == "published":
            return 0
        if not self.sliding.device.startswith("cuda"):
            # A document that a span cuts is computed twice.
            return 4 * self.sliding.seq_len if self.options.context == "documents" else 0
        count = 1 if self.ranks is None else self.ranks.count
        if self.options.context == "documents":
            return 128 * count * self.sliding.seq_len
        from evalkit.prequential.sliding import SPAN_WINDOWS

        return count * SPAN_WINDOWS * self.sliding.stride

    @property
    def vocab_size(self) -> int:
        """Number of token ids that probabilities are given for."""
        if isinstance(self.artifact, ModuleSource):
            return model_vocabulary(self.artifact.model, self.tokenizer.vocab_size, self.artifact.path)
        return self.tokenizer.vocab_size

    def find_leak(self) -> Leak | None:
        """Return where a user's module looks ahead, by a quick test; None where it does not, or is evalkit's own."""
        if not isinstance(self.artifact, ModuleSource) or self.sliding is None or self.artifact.is_untouched:
            return None
        import torch

        from evalkit.network.causality import find_leak
        from evalkit.prequential.sliding import placed

        network = placed(self._module_network(self.artifact), self.sliding)
        device = torch.device(self.sliding.device)
        return find_leak(network, self.sliding.seq_len, device, ids_below=self.tokenizer.vocab_size)

    def _module_network(self, source: ModuleSource) -> Network:
        from evalkit.network.network import Network

        return Network(model=source.model, vocab_size=self.vocab_size, name=f"the model {source.path}")

    def make_forecaster(self, profile: Profile | None = None) -> Forecaster:
        """Return a forecaster that has learned nothing; with a profile, one that times itself."""
        if profile is None:
            return self._make_forecaster()
        with profile.phase("load"):
            forecaster = self._make_forecaster()
        mixer = getattr(forecaster, "mixer", None)
        if mixer is not None:
            with profile.phase("compile"):
                self._compile_mixer()
            profile.time_methods(mixer, "mix", ("score", "extend", "commit", "score_batch", "observe_chunk"))
        profile.time_methods(forecaster, "score", ("score",))
        profile.time_methods(forecaster, "train" if self.options.ttt else "score", ("observe",))
        return forecaster

    def _make_forecaster(self) -> Forecaster:
        network = self.make_network()
        if self.mixer is not None:
            from evalkit.mixers import Mixer
            from evalkit.prequential.mixed import MixedForecaster

            return MixedForecaster(network, Mixer(self.mixer), self.vocab_size)
        assert network is not None  # ScoreOptions asks for a mixer when there is no artifact
        if self.options.mixer == "none":
            return network
        from evalkit.mixers.published import PublishedMixer
        from evalkit.prequential.published import PublishedMixedForecaster
        from evalkit.ttt.forecaster import TTTForecaster

        assert self.sliding is not None
        assert self.ttt is not None
        assert isinstance(network, TTTForecaster)
        return PublishedMixedForecaster(
            network,
            PublishedMixer(self.vocab_size, eta=0.1),
            seq_len=self.sliding.seq_len,
            stride=self.sliding.stride,
            batch_windows=self.sliding.batch_windows or PUBLISHED_BATCH,
            chunk_tokens=self.ttt.chunk_tokens,
        )

    def _compile_mixer(self) -> None:
        """Have the online mixer's functions compiled (or fetched from numba's cache) by a mixer that is thrown away."""
        if self.mixer is None:
            return
        import numpy as np

        from evalkit.mixers import Mixer

        mixer = Mixer(self.mixer)
        tokens = np.zeros(3, dtype=np.int64)
        known = None if self.artifact is None else np.full(2, -1.0)
        mixer.score(tokens, 1, 3, known, known, None if known is None else -known)
        mixer.commit(3)

    def make_network(self) -> NetworkForecaster | None:
        """Return the forecaster of the network alone, with its test-time training; None without a network."""
        if self.artifact is None or self.sliding is None:
            return None
        model: GPT | Network
        if isinstance(self.artifact, ModuleSource):
            model = self._module_network(self.artifact)
        else:
            assert self.resolved is not None
            with self._compiling(self.resolved.config):
                model = self.artifact.build(self.resolved.config)
            if self.streaming is not None:
                from evalkit.prequential.streaming import StreamingForecaster

                return StreamingForecaster(model, self.streaming)
        if self.ttt is None:
            from evalkit.prequential.sliding import SlidingForecaster

            return SlidingForecaster(model, self.sliding, self.ranks)
        from evalkit.ttt.forecaster import TTTForecaster

        return TTTForecaster(
            model,
            self.sliding,
            self.ttt,
            self.tokenizer.byte_table,
            num_bytes=self.num_bytes,
            document_token=self.tokenizer.bos_id if self.tokenizer.bos_id >= 0 else None,
            num_chunks=-(-(len(self.stream) - 1) // self.ttt.chunk_tokens) if self.ttt.schedule == "cosine" else None,
            ranks=self.ranks,
        )

    def _compiling(self, config: ModelConfig) -> AbstractContextManager[None]:
        """Compile while the weights are being decoded, where anything is compiled."""
        from evalkit.prequential.sliding import compiled_meanwhile

        several = self.ranks is not None  # they would have to agree on their batches in the other thread
        if self.sliding is None or not self.sliding.compile or self.streaming is not None or several:
            return nullcontext()
        return compiled_meanwhile(config, self.sliding)

    def settings(self) -> dict[str, dict[str, str]]:
        """The ``--set`` overrides by section, with what a script told as if it had been given so."""
        settings = {section: dict(items) for section, items in self.options.settings.items()}
        if self.options.source is not None and self.resolved is not None:
            config, origins = self.resolved.config, self.resolved.origins
            told = {name: shown(getattr(config, name)) for name in NOT_INFERABLE if origins[name] != "default"}
            settings["model"] = told | settings.get("model", {})
        return settings

    def subject(self) -> dict[str, Any]:
        """What is scored and how, as far as a legality check of it must agree: all but the text and the hardware."""
        options, window = self.options, self.sliding
        return {
            "artifact_sha256": self.artifact.sha256 if self.artifact else None,
            "tokenizer_sha256": self.tokenizer.sha256,
            "token_bytes_sha256": self.sidecar.sha256 if self.sidecar else None,
            "mixer": options.mixer,
            "ttt": options.ttt,
            "context": options.context if self.artifact else None,
            "seq_len": window.seq_len if window else None,
            "stride": window.stride if window else None,
            "settings": self.settings(),
        }

    def identity(self) -> dict[str, Any]:
        """Everything that determines the scores, for the key of an interrupted run."""
        return {
            "version": __version__,
            "artifact": self.artifact.sha256 if self.artifact else None,
            "tokenizer": self.tokenizer.sha256,
            "tokens": self.stream.sha256(),
            "token_bytes": self.sidecar.sha256 if self.sidecar else None,
            "model": self.resolved.config.to_dict() if self.resolved else None,
            "sliding": dataclasses.asdict(self.sliding) | {"threads": 0} if self.sliding else None,
            "mixer": self.options.mixer,
            "ttt": self.options.ttt,
            "context": self.options.context,
            "reliability": self.options.reliability,
            "settings": {section: dict(values) for section, values in self.options.settings.items() if values},
        }


def open_session(options: ScoreOptions) -> Session:
    """Open every input and check that they fit together.

    Raises:
        InputError: something is missing, damaged, or does not fit.
    """
    with timed("opened artifact and tokenizer"):
        session = open_model(options)
    tokenizer = session.tokenizer
    with timed("opened and checked the tokens"):
        stream, sidecar = _open_stream(options, tokenizer)
        if options.limit_tokens:
            stream = stream.truncated(options.limit_tokens + 1)
            sidecar = sidecar and sidecar.truncated(options.limit_tokens + 1)
        stream.validate(tokenizer)
        sliding = session.sliding
        if sliding is not None and sliding.document_token is not None and not stream.count(sliding.document_token):
            raise InputError(
                f"--context documents: the stream has no document, since BOS (id {tokenizer.bos_id}), which opens one, "
                f"is nowhere in it; use --context sliding, or tokenise the text with BOS before each document"
            )
    LOG.debug("stream: %s tokens to score, of %s", f"{len(stream) - 1:,}", ", ".join(stream.names))
    sliding = compiled_if_long(session.sliding, session.artifact, len(stream))
    return dataclasses.replace(session, stream=stream, sidecar=sidecar, sliding=sliding)


def _open_stream(options: ScoreOptions, tokenizer: TextTokenizer) -> tuple[TokenStream, Sidecar | None]:
    """Open the tokens, and the bytes of each where shards say them."""
    if options.token_bytes is None:
        if options.tokens is not None:
            return open_shards(options.tokens), None
        return tokenize_file(str(options.text), tokenizer), None
    if options.text == "-" and options.tokens is None:
        raise InputError("--text - can be read once, and --token-bytes is compared with it as well: name a file")
    shards, sidecar = open_with_sidecar(options.tokens, options.token_bytes)
    stream = tokenize_file(str(options.text), tokenizer) if shards is None else shards
    stream.validate(tokenizer)
    sidecar = audited(sidecar, stream, tokenizer, read_documents(options.text) if options.text else None)
    counted = sum(int(part.sum(dtype="int64")) for part in sidecar.counts.parts)
    if sidecar.documents is None and counted > sidecar.tokenizer_bytes:
        LOG.warning(
            "--token-bytes counts %s bytes, the text that the tokens decode to has %s: give the original with --text "
            "to have them compared",
            f"{counted:,}",
            f"{sidecar.tokenizer_bytes:,}",
        )
    return stream, sidecar


def open_model(options: ScoreOptions) -> Session:
    """Open artifact and tokenizer only; the stream is empty.

    Raises:
        InputError: something is missing, damaged, or does not fit.
    """
    artifact: Artifact | ModuleSource | None = None
    resolved = sliding = None
    dtype_because = None
    if options.module is not None:
        named = isinstance(options.module, str)
        artifact = open_module(options.module, options.weights) if named else of_object(options.module)
    if options.artifact is not None:
        artifact = load_artifact(options.artifact)
        source = read_source_of(artifact, options.source, options.log)
        resolved = artifact.resolve(options.recipe, options.settings.get("model"), source)
        LOG.debug("artifact: %s, %s, %s", artifact.path, artifact.format, artifact.compression)
        for name, value in resolved.config.to_dict().items():
            LOG.debug("model.%s = %s (from %s)", name, value, resolved.origins[name])
    tokenizer = open_tokenizer(options.tokenizer)
    if resolved is not None and resolved.config.vocab_size != tokenizer.vocab_size:
        raise TokenError(
            f"tokenizer {tokenizer.path} has {tokenizer.vocab_size} pieces, the model {resolved.config.vocab_size}: "
            f"wrong artifact or wrong --tokenizer"
        )
    made_with = artifact.metadata.get("tokenizer_sha256") if isinstance(artifact, Artifact) else None
    if artifact is not None and made_with and made_with != tokenizer.sha256:
        raise TokenError(
            f"{artifact.path} was exported with another tokenizer (sha256 {made_with[:12]}) than {tokenizer.path} "
            f"({tokenizer.sha256[:12]}): its ids would stand for other text"
        )
    options = dataclasses.replace(options, device=choose_device(options, artifact))
    if artifact is not None:
        dtype, dtype_because = choose_dtype(options, artifact)
        LOG.debug("dtype: %s (%s)", dtype, dtype_because)
        sliding = sliding_config(options, artifact, resolved, tokenizer, dtype)
    return Session(
        options=options,
        tokenizer=tokenizer,
        stream=TokenStream(parts=(), names=()),
        artifact=artifact,
        resolved=resolved,
        sliding=sliding,
        dtype_because=dtype_because,
        streaming=streaming_config(options, sliding),
        mixer=mixer_config(options, tokenizer, artifact),
        ttt=ttt_config(options),
        code=_code_files(options.code, artifact),
    )


def _code_files(paths: tuple[str, ...], artifact: Artifact | ModuleSource | None) -> tuple[SourceFile, ...]:
    """Return the files of ``--code``, each once, and none that the model's own bytes hold already."""
    own = artifact.shipped if artifact is not None else ()
    known = {Path(path).resolve() for path in own}
    files = []
    for path in paths:
        if not Path(path).exists():
            raise InputError(f"--code {path} does not exist")
        if Path(path).resolve() not in known:
            known.add(Path(path).resolve())
            files.append(identify(path))
    return tuple(files)
