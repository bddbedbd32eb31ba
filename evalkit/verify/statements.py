"""What is read from a folder: statements, each with the file and line it stands on."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

TEXT_CHARACTERS = 300
"""Characters of a quoted line that a report shows."""


@dataclass(frozen=True)
class Place:
    """A line of a file, as found.

    Attributes:
        file: path below the folder, with ``/``.
        line: counted from 1.
        text: the line, cut after 300 characters.
    """

    file: str
    line: int
    text: str


@dataclass(frozen=True)
class Number:
    """A number as printed.

    Attributes:
        value: the number.
        decimals: digits after the point as printed; 17 for a float written in full by a program is fine.
        place: where it stands.
    """

    value: float
    decimals: int
    place: Place

    @property
    def unit(self) -> float:
        """One unit of the last printed digit."""
        return 10.0**-self.decimals


@dataclass(frozen=True)
class Score:
    """A line of a log that gives bits per byte.

    Attributes:
        label: words before the numbers, without ``_exact`` and the like: ``quantized_ttt_phased``.
        kind: ``final``, ``diagnostic`` (of weights that do not ship), ``step`` or ``progress``.
        bpb: bits per byte.
        loss: nats per token on the same line.
        eval_seconds: time of this evaluation.
        bytes_scored: bytes that the line says it scored.
        tokens_scored: tokens that the line says it scored.
    """

    label: str
    kind: str
    bpb: Number
    loss: Number | None = None
    eval_seconds: float | None = None
    bytes_scored: int | None = None
    tokens_scored: int | None = None


@dataclass
class Run:
    """One training or evaluation inside a log file; a file can hold several.

    Attributes:
        file: the log.
        seed: as the run printed it.
        scores: all score lines, in order.
        totals: model plus code, in bytes, with the codec's name on the line.
        models: serialized models, in bytes.
        codes: code sizes in bytes, as ``raw`` or ``compressed``.
        train_ms: training time in milliseconds, as far as the run had come.
        step_ms: milliseconds a step, where printed.
        tokens: validation tokens.
        settings: printed settings by name.
    """

    file: str
    seed: Number | None = None
    scores: list[Score] = field(default_factory=list)
    totals: list[tuple[str, Number]] = field(default_factory=list)
    models: list[tuple[str, Number]] = field(default_factory=list)
    codes: list[tuple[str, Number]] = field(default_factory=list)
    train_ms: list[Number] = field(default_factory=list)
    step_ms: float | None = None
    tokens: Number | None = None
    settings: dict[str, tuple[str, Place]] = field(default_factory=dict)

    @property
    def finals(self) -> list[Score]:
        """Score lines of what ships."""
        return [s for s in self.scores if s.kind == "final"]


@dataclass(frozen=True)
class Leaf:
    """A value of a JSON file: the path of its keys, the value, and where it stands."""

    path: tuple[str, ...]
    value: str | float | bool | None
    decimals: int
    place: Place

    @property
    def number(self) -> Number | None:
        """The value as a number; None for everything else."""
        if isinstance(self.value, bool) or not isinstance(self.value, float):
            return None
        return Number(self.value, self.decimals, self.place)


@dataclass(frozen=True)
class SeedResult:
    """What ``submission.json`` says of one seed; ``group`` is the object or list that the seed stands in."""

    seed: str
    bpb: Number | None = None
    bytes_total: Number | None = None
    place: Place | None = None
    group: tuple[str, ...] = ()


@dataclass(frozen=True)
class Declared:
    """What ``submission.json`` claims.

    Attributes:
        file: its name, None without one.
        leaves: every value in it.
        headline: the score.
        loss: nats per token beside it.
        totals: bytes of model and code, wherever they are stated.
        seeds: seeds in the order of the file.
        results: per seed.
        problem: why the file cannot be read as JSON.
    """

    file: str | None = None
    leaves: tuple[Leaf, ...] = ()
    headline: Number | None = None
    loss: Number | None = None
    totals: tuple[Number, ...] = ()
    seeds: tuple[str, ...] = ()
    results: tuple[SeedResult, ...] = ()
    problem: str | None = None


@dataclass(frozen=True)
class Text:
    """A text file, decoded, with its lines cut to a bound."""

    file: str
    size: int
    lines: tuple[str, ...]

    def place(self, index: int) -> Place:
        """Return the place of a line, counted from 0."""
        return Place(self.file, index + 1, self.lines[index].strip()[:TEXT_CHARACTERS])


@dataclass(frozen=True)
class Script:
    """The training script that ships.

    Attributes:
        file: its path.
        size: bytes of the file.
        packed: bytes of the file when compressed with xz.
        source: Python source, unwrapped where the file is a compressed wrapper; empty where that is not possible.
        hidden: other files of the folder that it executes, with their bytes.
    """

    file: str
    size: int
    packed: int
    source: str
    hidden: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Folder:
    """Everything read from a submission folder.

    Attributes:
        path: of the folder.
        files: every regular file below it with its size; links are listed in ``notes`` and never followed.
        declared: ``submission.json``.
        runs: of all logs; files with the same content once.
        texts: README and other prose.
        tables: CSV, TSV and JSON files beside ``submission.json``.
        script: the training script.
        scripts: all Python sources by path.
        ten_minutes: whether the ten-minute rules hold; None where neither path nor file says so.
        notes: what was left out and why.
    """

    path: Path
    files: dict[str, int]
    declared: Declared
    runs: tuple[Run, ...]
    texts: tuple[Text, ...]
    tables: tuple[Text, ...]
    script: Script | None
    scripts: dict[str, str]
    ten_minutes: bool | None
    copies: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
