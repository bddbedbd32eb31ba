"""Read the settings of a system from its own training script, and from the log of its run.

The script's model is built and followed symbolically (:mod:`evalkit.source.trace`). Settings proposed from what was
found count only if evalkit's own model with them is, operation for operation, what the script computes; what differs is
named with its line. So a reading is right, or it is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evalkit.artifact.infer import infer_from_shapes
from evalkit.source.interpret import Interpreter
from evalkit.source.log import Printed, read_log
from evalkit.source.matching import Match, match_model
from evalkit.source.script import Script, read_script
from evalkit.source.symbols import Node
from evalkit.source.trace import Trace, trace_script
from evalkit.source.values import Setting, Stuck

_SIZES = {
    "vocab_size": ("vocab_size",),
    "num_layers": ("num_layers", "n_layer"),
    "model_dim": ("model_dim", "n_embd", "embedding_dim"),
    "num_heads": ("num_heads", "n_head"),
    "num_kv_heads": ("num_kv_heads",),
    "tie_embeddings": ("tie_embeddings",),
    "bigram_buckets": ("bigram_vocab_size", "bigram_buckets"),
    "bigram_dim": ("bigram_dim",),
    "trigram_buckets": ("trigram_vocab_size", "trigram_buckets"),
    "value_embed_dim": ("ve_dim",),
}
"""Sizes that shapes reveal, and the names that scripts give them."""

_NAMES = {
    "rope_base": ("rope_base",),
    "rope_dims": ("rope_dims", "rope_partial_dims"),
    "rope_train_len": ("rope_train_seq_len", "train_seq_len"),
    "logit_softcap": ("logit_softcap",),
    "ln_scale": ("ln_scale",),
    "xsa_last_n": ("xsa_last_n", "xsa_layers"),
    "value_embed_layers": ("ve_layers",),
    "layer_order": ("num_loops", "recur_layers"),
    "parallel_form": ("parallel_start_layer",),
    "parallel_start": ("parallel_start_layer",),
    "attention_gate_scale": ("sparse_attn_gate_scale",),
    "leaky_slope": ("leaky_slope", "negative_slope"),
}
"""Settings, and the hyperparameters that scripts set them by."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """A value and where it is written.

    Attributes:
        variable: environment variable that could have changed it in the run, where neither script nor log rules it out.
        doubtful: the run's sizes are not the script's, so that the variable may have been set as well.
    """

    value: Any
    origin: str
    variable: str | None = None
    doubtful: bool = False


@dataclass(frozen=True, kw_only=True)
class SourceReading:
    """What a script and a log tell of a model.

    Attributes:
        label: the script's name, as origins quote it.
        settings: fields of the model's configuration that no shape reveals.
        problems: what was not understood, or contradicts the artifact; a sentence each.
        understood: whether evalkit's model computes what the script's model computes.
        fits: whether the script's model has the artifact's tensors; True without an artifact.
        seq_len: window in tokens that the script scores with; 0 where it does not say.
        shapes: shape of every learned tensor of the model as the script builds it, by the artifact's names.
    """

    label: str
    settings: dict[str, Found] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    understood: bool = False
    fits: bool = True
    seq_len: int = 0
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict, repr=False)


def read_source(
    path: str, logs: Sequence[str] = (), *, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> SourceReading:
    """Read a script, and the logs of its run.

    Args:
        path: the script. It is parsed, never executed.
        logs: texts that tell what ran: a log, or a page with the command line.
        shapes: shape of every tensor of the artifact, by model name; None to read the script for itself.

    Raises:
        InputError: a file cannot be read, or the script is no Python.
    """
    script = read_script(path)
    try:
        return _Reader(script, logs, shapes).read()
    except Stuck as stuck:
        where = f"{script.label}:{stuck.line}" if stuck.line else script.label
        return SourceReading(label=script.label, problems=(f"{where} cannot be followed: {stuck.reason}",))
    except (RecursionError, OverflowError, MemoryError) as error:
        reason = f"{script.label} cannot be followed to its end ({type(error).__name__})"
        return SourceReading(label=script.label, problems=(f"{reason}: {error}"[:200],))


class _Reader:
    def __init__(self, script: Script, logs: Sequence[str], shapes: Mapping[str, tuple[int, ...]] | None) -> None:
        self.script, self.shapes = script, shapes
        self.logs = [read_log(log) for log in logs]
        self.problems: list[str] = []
        self.environment: dict[str, Printed] = {}
        self.printed: dict[str, Printed] = {}
        self.disputed: dict[str, str] = {}

    def read(self) -> SourceReading:
        defaults = Interpreter(self.script.tree)
        self._read_logs(defaults)
        trace = self._trace()
        match = match_model(trace)
        fits = self._compare_shapes(trace)
        doubt = bool(self.problems)
        found = {name: self._found(name, value, trace, match, doubt) for name, value in match.settings.items()}
        self.problems += [
            self.disputed[alias]
            for name, item in found.items()
            if item.doubtful
            for alias in _NAMES.get(name, ())
            if alias in self.disputed
        ]
        doubtful = [name for name, item in found.items() if item.doubtful]
        if doubtful:
            self.problems.append(
                f"the run was made with other settings than the script's defaults, so {', '.join(doubtful)} may be "
                f"others as well: give the run's log (or a page with its command line) with --log, or the values with "
                f"--set"
            )
        if match.difference is not None:
            self.problems.append(_describe(match.difference, self.script.label))
        return SourceReading(
            label=self.script.label,
            settings=found,
            problems=tuple(self.problems),
            understood=match.difference is None,
            seq_len=_sequence_length(trace.interpreter.settings, self.disputed),
            fits=fits,
            shapes={name: shape for name, shape in trace.parameters.items() if shape is not None},
        )

    def _trace(self) -> Trace:
        """Follow the script as it is, or at the artifact's sizes where its own are others."""
        environment = {name: str(printed.value) for name, printed in self.environment.items()}
        printed = {name: printed.value for name, printed in self.printed.items()}
        trace = trace_script(self.script.tree, environment, printed)
        if self.shapes is None or not _misfits(trace, self.shapes):
            return trace
        return trace_script(self.script.tree, environment, printed | self._sizes(trace))

    def _read_logs(self, defaults: Interpreter) -> None:
        wanted = {name for names in (*_SIZES.values(), *_NAMES.values()) for name in names} | {"mlp_mult"}
        variables = {s.variable: name for name, s in defaults.settings.items() if name in wanted and s.variable}
        for log in self.logs:
            environment, disputed = log.environment(defaults.variables)
            printed, disputed_values = log.values({name: s.value for name, s in defaults.settings.items()})
            self.environment |= environment
            self.printed |= printed
            for name in sorted({variables[v] for v in disputed & set(variables)} | (disputed_values & wanted)):
                self.disputed[name] = f"{log.label} gives {name} different values"

    def _sizes(self, trace: Trace) -> dict[str, Any]:
        """Return the artifact's sizes under the script's names, and note where the script says otherwise."""
        assert self.shapes is not None
        settings, sizes = trace.interpreter.settings, infer_from_shapes(self.shapes)
        for kind in ("bigram", "trigram"):
            if f"{kind}.embed.weight" in trace.parameters:
                sizes.setdefault(f"{kind}_buckets", 0)
        wanted = {alias: sizes[name] for name, aliases in _SIZES.items() if name in sizes for alias in aliases}
        wanted["mlp_mult"] = sizes["mlp_hidden"] / sizes["model_dim"]
        wanted["embedding_dim"] = self.shapes["tok_emb.weight"][1]
        forced = {}
        for name, value in wanted.items():
            setting = settings.get(name)
            if setting is None or not isinstance(setting.value, int | float):
                continue
            kept = type(setting.value)(value) if value == int(value) else value
            forced[name] = kept
            if abs(setting.value - value) > 1e-9:
                origin = self.printed[name].origin if name in self.printed else f"{self.script.label}:{setting.line}"
                self.problems.append(f"{origin} says {name} {setting.value}, the artifact has {kept}")
        return forced

    def _compare_shapes(self, trace: Trace) -> bool:
        """Return whether the script's model has the artifact's tensors; note what differs."""
        if self.shapes is None:
            self.problems += [
                f"{log.label} counts {log.model_parameters:,} parameters, the script's model {trace.count:,} "
                f"with these settings"
                for log in self.logs
                if log.model_parameters and trace.count is not None and trace.count != log.model_parameters
            ]
            return True
        misfits = _misfits(trace, self.shapes)
        self.problems += misfits
        return not misfits

    def _found(self, name: str, value: Any, trace: Trace, match: Match, doubt: bool) -> Found:
        settings, label = trace.interpreter.settings, self.script.label
        for alias in _NAMES.get(name, ()):
            if alias in self.printed and _agrees(name, value, self.printed[alias].value):
                return Found(value=value, origin=self.printed[alias].origin)
            variable: str | None = alias.upper()
            line = trace.interpreter.variables.get(alias.upper())
            if alias in settings:
                agrees = _agrees(name, value, settings[alias].value)
                variable, line = settings[alias].variable, settings[alias].line if agrees else None
            if line is None:
                continue
            if variable in self.environment:
                return Found(value=value, origin=self.environment[variable].origin)
            doubtful = (doubt and variable is not None) or alias in self.disputed
            return Found(value=value, origin=f"{label}:{line}", variable=variable, doubtful=doubtful)
        return Found(value=value, origin=f"{label}:{match.lines.get(name, trace.line)}")


def _misfits(trace: Trace, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return where the script's model has other tensors than the artifact."""
    ours = {name: shape for name, shape in trace.parameters.items() if shape is not None}
    lacking, surplus = sorted(set(trace.parameters) - set(shapes)), sorted(set(shapes) - set(trace.parameters))
    found = []
    for names, what in ((lacking, "has no tensor"), (surplus, "has a tensor that the script's model has not:")):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            found.append(f"the artifact {what} {', '.join(names[:3])}{more}")
    for name, shape in sorted(ours.items()):
        if name in shapes and _squeezed(shape) != _squeezed(shapes[name]):
            found.append(f"{name} has shape {shape} in the script's model and {tuple(shapes[name])} in the artifact")
            break
    return found


def _agrees(name: str, value: Any, stated: Any) -> bool:
    """Whether a hyperparameter is where a setting comes from: its number is the same, or it is no number."""
    if name in ("layer_order", "parallel_form", "parallel_start", "value_embed_layers", "xsa_last_n"):
        return True
    return not isinstance(stated, int | float) or float(stated) == float(value)


def _squeezed(shape: Sequence[int]) -> tuple[int, ...]:
    return () if tuple(shape) in ((1,), ()) else tuple(shape)


def _sequence_length(settings: Mapping[str, Setting], disputed: Mapping[str, str]) -> int:
    for name in ("eval_seq_len", "train_seq_len", "seq_len"):
        if name in disputed:
            return 0
        if name in settings and isinstance(value := settings[name].value, int) and value > 0:
            return value
    return 0


def _describe(node: Node, label: str) -> str:
    where = f"{label}:{node.line}" if node.line else label
    inside = (node, *(argument for argument in node.args if isinstance(argument, Node)))
    unknown = next((n for n in inside if n.op == "unknown"), None)
    what = f"something not worked out: {unknown.args[0]}" if unknown else node.op.replace("call ", "")
    return f"{where} computes something that evalkit's model does not know ({what})"
