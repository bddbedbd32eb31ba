"""Options that several commands share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from evalkit.plumbing.constants import CONTEXTS, MIXERS, SECTIONS, SIZE_CAP
from evalkit.plumbing.errors import InputError
from evalkit.plumbing.settings import by_section, split_settings

if TYPE_CHECKING:
    from evalkit.verbs.options import ScoreOptions


limit_tokens_option = click.option(
    "--limit-tokens", type=int, default=0, help="Score at most this many tokens (default: 0, which is all)."
)
stride_option = click.option(
    "--stride", type=int, default=64, show_default=True, help="Distance between windows in tokens."
)
recipe_option = click.option(
    "--recipe", metavar="NAME", help="System that wrote the artifact (default: recognised where no other can have)."
)
source_option = click.option(
    "--source", metavar="FILE.py", help="Its training script, to read its settings from; it is never executed."
)
log_option = click.option(
    "--log", metavar="FILE", help="With --source: log of its run, or a page with its command line."
)
token_bytes_option = click.option(
    "--token-bytes",
    metavar="GLOB",
    help="Shards that say how many bytes each token stands for; --text is then the original to compare with.",
)
code_option = click.option(
    "--code", multiple=True, metavar="FILE", help="Code that ships with the model; its bytes count."
)
container_option = click.option(
    "--container",
    type=click.Choice(["evalkit", "torch-zstd", "torch-xz", "torch-zlib", "torch-brotli"]),
    default="evalkit",
    show_default=True,
    help="evalkit's own, or the published layouts.",
)
target_bytes_option = click.option(
    "--target-bytes", type=int, default=SIZE_CAP, show_default=True, help="Cap on artifact plus code."
)
fit_option = click.option(
    "--fit", is_flag=True, help="Give every tensor its own step, so that the file just fits at the lowest loss."
)
ttt_option = click.option("--ttt", is_flag=True, help="Train on what has been scored (test-time training).")


TOKENIZER_HELP = "SentencePiece .model, Hugging Face tokenizer.json, or the word bytes."


def all_of(*decorators: Callable[..., Any]) -> Callable[..., Any]:
    """Return the decorator that adds several options, in their order."""
    return lambda command: functools.reduce(lambda made, decorate: decorate(made), reversed(decorators), command)


module_options = all_of(
    click.option(
        "--module",
        metavar="FILE.py:FACTORY",
        help="Your own model in place of ARTIFACT: FACTORY() returns it, and model(ids) returns logits.",
    ),
    click.option("--weights", metavar="FILE", help="File or folder that FACTORY is called with."),
)
scored_stream_options = all_of(
    click.option("--tokens", metavar="GLOB", help="The shards that were scored (default: as the report names them)."),
    click.option("--tokenizer", metavar="MODEL", help=f"{TOKENIZER_HELP} Default: as the report names it."),
)
"""Of commands that read the stream behind a report."""


def _none_one_or_several(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> str | tuple[str, ...] | None:
    return values[0] if len(values) == 1 else values or None


text_options = all_of(
    click.option(
        "--tokens",
        metavar="GLOB",
        multiple=True,
        callback=_none_one_or_several,
        help="Token shards to score (quote the glob); may be given several times.",
    ),
    click.option("--text", metavar="FILE", help="Text, or documents as JSON lines, to tokenise and score."),
    token_bytes_option,
    limit_tokens_option,
)


def model_options(*, tokenizer_required: bool) -> Callable[..., Any]:
    """Return a decorator that adds the options that say how an artifact is scored."""
    return all_of(
        module_options,
        click.option("--tokenizer", metavar="MODEL", required=tokenizer_required, help=TOKENIZER_HELP),
        recipe_option,
        source_option,
        log_option,
        click.option(
            "--set",
            "settings",
            metavar="KEY=VALUE",
            multiple=True,
            help=f"Override a setting, such as model.rope_base=50000. Sections: {', '.join(SECTIONS)}.",
        ),
        click.option("--seq-len", type=int, help="Window in tokens (default: the recipe's)."),
        stride_option,
        click.option(
            "--mixer",
            type=click.Choice(MIXERS),
            default="none",
            show_default=True,
            help="Mix in online experts; 'published' is PR849's mixer, which is no probability model.",
        ),
        ttt_option,
        click.option(
            "--context",
            type=click.Choice(CONTEXTS),
            default="sliding",
            show_default=True,
            help="What a token may depend on: sliding windows of the stream; documents: of its own document alone; "
            "streaming: keys and values are kept, many times faster. Each is another number.",
        ),
        click.option(
            "--device", default="auto", show_default=True, help="cpu, cuda, or auto: a GPU where there is one."
        ),
        click.option(
            "--dtype",
            type=click.Choice(["auto", "float32", "bfloat16"]),
            default="auto",
            show_default=True,
            help="Matrices: auto is bfloat16 for models of 10M parameters and more where it was measured to be faster.",
        ),
        click.option("--batch-windows", type=int, default=0, help="Windows at a time on a GPU (default: fill it)."),
        click.option("--threads", type=int, default=0, help="CPU threads (default: all)."),
    )


def training_options(*, tokenizer_required: bool) -> Callable[..., Any]:
    """Return a decorator that adds the options that say what to train, on what and for how long."""
    use = TOKENIZER_HELP if tokenizer_required else f"For bits per byte: {TOKENIZER_HELP}"
    return all_of(
        click.option(
            "--recipe", metavar="NAME", help="What to train, or a recipe.toml of an earlier run (--resume knows)."
        ),
        click.option("--data", default="data", show_default=True, metavar="DIR", help="Folder with token shards."),
        click.option("--tokenizer", required=tokenizer_required, metavar="MODEL", help=use),
        click.option("--out", default="runs/last", show_default=True, metavar="DIR", help="Folder for everything."),
        click.option(
            "--set", "settings", metavar="KEY=VALUE", multiple=True, help="Override, such as train.seq_len=1024."
        ),
        click.option(
            "--scale",
            metavar="SIZE",
            help="Keep the features, smaller: WIDTHxDEPTH, or a fraction. Fewer tokens a step too, unless --set says.",
        ),
        click.option("--steps", type=int, help="Stop after so many steps (no clock then, unless --max-seconds says)."),
        click.option("--max-seconds", type=float, help="Stop after this many seconds of training."),
        click.option("--resume", is_flag=True, help="Continue the run in --out where it stopped."),
    )


def given_among(names: Iterable[str]) -> str:
    """Return those of some parameters that stand on the command line, as they are typed there; empty for none."""
    context = click.get_current_context()
    given = [name for name in names if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    return ", ".join(f"--{name.replace('_', '-')}" for name in given).replace("--settings", "--set")


def score_options(artifact: str | None, values: dict[str, Any]) -> ScoreOptions:
    """Build :class:`ScoreOptions` from the values of the shared options."""
    from evalkit.verbs.options import ScoreOptions

    settings = by_section(split_settings(values.pop("settings")), SECTIONS)
    return ScoreOptions(artifact=artifact, settings=settings, **values)


def artifact_and(first: str | None, second: str | None, module: str | None, name: str) -> tuple[str | None, str]:
    """Return the artifact and the file behind it, of a command that takes ``ARTIFACT FILE`` or ``--module ... FILE``.

    Raises:
        InputError: one is missing, or an artifact stands beside a module.
    """
    if module is None and first is not None and second is not None:
        return first, second
    if module is not None and first is not None and second is None:
        return None, first
    if module is not None and second is not None:
        raise InputError(f"{first} and --module {module} are different models: give one of them, and {name}")
    raise InputError(f"expected ARTIFACT and {name}, or --module FILE.py:FACTORY and {name}")


def require_one(artifact: str | None, module: str | None, *, no_model: bool) -> None:
    """Require exactly one of an artifact, a module, and ``--no-model``.

    Raises:
        InputError: none or several were given.
    """
    if artifact is not None and artifact.endswith(".bin") and (module is not None or no_model):
        raise InputError(f"{artifact} is one file too many: quote the pattern of --tokens, so that the shell leaves it")
    given = [name for name in (artifact, module and f"--module {module}", no_model and "--no-model") if name]
    if len(given) > 1:
        raise InputError(f"{' and '.join(map(str, given))} are different models: give one of them")
    if not given:
        raise InputError(
            "name the artifact to score, give your own model with --module FILE.py:FACTORY, or --no-model for the "
            "online mixer alone"
        )
