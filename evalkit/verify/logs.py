"""Reads training and evaluation logs of every spelling that the challenge has seen into runs.

A log is untrusted text, often with the whole script in front of the output: a line counts only where it is laid out as
output with digits in place, and never where it holds a format string.
"""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import islice

from evalkit.verify.statements import Number, Place, Run, Score, Text

MAX_OUTPUT = 500
"""Characters of a line that are looked at: lines of output are shorter, and patterns cost more than a line is long."""

_NUMBER = r"(\d[\d,]{0,30}(?:\.\d+)?(?:[eE]-?\d\d?)?)"  # finite, whatever its digits
_PREFIX = re.compile(
    r"^(?:\[?\d{4}-\d\d-\d\d[T ][\d:.,]+(?:Z|[+-]\d\d:?\d\d)?\]?|\[?rank ?\d+\]?:?|\[[\d:.]+\]|\d+:)\s+", re.I
)
_BPB = re.compile(
    r"(?<![\w.])((?:[a-z0-9]+[_ -]){0,6}?(?:bpb|bits[_ ]per[_ ]byte))(?:[_ ]?exact)?"
    r"\**\s*(?:[:=]|is)\s*\**\s*(\d+\.\d+)",
    re.I,
)
_LOSS = re.compile(r"(?<![\w.])(?:val_|val )?loss\**\s*[:=]\s*(\d{1,30}\.\d+)", re.I)
_EVAL_TIME = re.compile(r"eval_?time\**\s*[:=]\s*" + _NUMBER + r"\s*(ms|s)\b", re.I)
_BYTES = re.compile(r"(?<![\w])bytes[=:]\s*" + _NUMBER, re.I)
_TOKENS = re.compile(r"(?<![\w])tokens[=:]\s*" + _NUMBER, re.I)
_STEP = re.compile(
    r"^(?:step\s*[:= ]?\s*)?(\d+)\s*/\s*\d+\b|^step\s*[:=]?\s*\d+|^\[?(?:it|iter)\w*\s*[:=]?\s*\d+", re.I
)
_PROGRESS = re.compile(
    r"chunk\s*[\[:=]?\s*\d|\bchunk\b|ttt_?(?:chunk|progress|batch)|tt[pg]\w*:|running|batch\s*[:=]?\s*\d|rank \d|"
    r"\d+\s*%|windows?\s*[:=]?\s*\d+\s*/|"
    r"progress|\bdoc(?:s|ument)?\s+\d+\s*/|\bphase\b.*\d+/\d+\b|epoch\s*[:=]?\s*\d",
    re.I,
)
_DIAGNOSTIC = re.compile(
    r"diagnostic|pre[-_ ]?quant|post[-_ ]?ema|post[-_ ]?swa|pre[-_ ]?ttt|before|baseline|"
    r"\bema\b|unquantized|fp32|float|raw_model|"
    r"target|previous|record|sota|delta|gain|improve|\bbest so far|threshold|reference|bpb:enabled",
    re.I,
)
_STOP = re.compile(
    r"(?:stopping_early|stopped|training_complete|train(?:ing)? (?:done|finished)).*?train_time:\s*"
    + _NUMBER
    + r"\s*(ms|s|m)\b",
    re.I,
)
_TRAIN_TIME = re.compile(r"train_time:\s*" + _NUMBER + r"\s*(ms|s|m)\b", re.I)
_STEP_AVG = re.compile(r"step_avg:\s*" + _NUMBER + r"\s*ms", re.I)
_TOTAL = re.compile(
    r"total[ _](?:[A-Za-z0-9+.-]+[ _]){0,3}?(?:submission|artifact)(?:[ _]size)?\s*([\w+./-]*)"
    r"\s*(?:\([^)]*\))?\s*[:=]\s*" + _NUMBER + r"(?!\s*[MK]i?B|\.\d)",
    re.I,
)
_MODEL = re.compile(
    r"^\W*(?:serialized|compressed|quantized|saved compressed)\b[\w ]*?model\s*([\w+./-]*)\s*(?:\([^)]*\))?\s*[:=]\s*"
    + _NUMBER
    + r"\s*bytes",
    re.I,
)
_CODE = re.compile(r"code[_ ]size\s*(\([^)]*\))?\s*[:=]\s*" + _NUMBER, re.I)
_VAL_TOKENS = re.compile(
    r"(?:^val_tokens|^val_loader\b.*\btokens|^\W*val(?:idation)?[ _]tokens)\s*[:=]\s*" + _NUMBER, re.I
)
_SEED = re.compile(r"^\W*seed\s*[:=]\s*(\d{1,30})\b", re.I)
_SETTING = re.compile(r"^\s{1,6}([a-z][a-z0-9_]*): (.*)$")
_PAIR = re.compile(r"(?<!\S)([A-Za-z][A-Za-z0-9_]*)[:=](\S+)")
_LONE = re.compile(r"^([a-z][a-z0-9_]*): (\S+)$")
_ANNOTATION = re.compile(r"(?:int|float|str|bool|Tensor|dict|list|tuple|Any)\b|.*[,(]$")
_PAIR_LINE = re.compile(r"^(?:[A-Za-z][A-Za-z0-9_]*:\S+)(?: [A-Za-z][A-Za-z0-9_]*:\S+)*$")
_ENABLED = re.compile(r"^([A-Za-z][\w ]*):\s*enabled\b(.*)$")
_START = re.compile(r"^(?:model_params|train_loader|val_loader|hyperparameters|seed)\b", re.I)
_SOURCE = re.compile(
    r"""[fF]["']|\b(?:log0?|print|format)\(|\bself\.|^\s*(?:def|return|if|for|elif|while|import|from|raise|assert)\b.*[:()]|"""
    r"""^\s*#|\w\([^()]*\)\s*$|[=+]= |, \w+ = |\w\[\w+\]"""
)
"""Marks of Python source, which many logs print before their output."""

_KEYS = (
    "bpb",
    "time",
    "size",
    "bytes",
    "tokens",
    "seed",
    "total",
    "bits",
    "enabled",
    "train_loader",
    "gptq",
    "params",
    "shards",
    ":",
)


def looks_like_log(text: Text) -> bool:
    """Whether a text file has lines that only a run prints: one in a ``.log``, else two."""
    enough = 1 if text.file.lower().endswith(".log") else 2
    marks = (line for line in text.lines if _is_output(line[:MAX_OUTPUT]))
    return len(list(islice(marks, enough))) == enough


def _is_output(line: str) -> bool:
    low = line.lower()
    return "{" not in line and bool(
        ("bpb" in low and _BPB.search(line))
        or (("train_loss" in low or "train loss" in low) and _LOSS_DIGITS.search(line))
        or ("submission" in low and _TOTAL.search(line))
        or ("stopping_early" in low and _STOP.search(line))
    )


_LOSS_DIGITS = re.compile(r"loss\D{0,3}\d+\.\d+", re.I)


def read_log(text: Text) -> list[Run]:
    """Return the runs of a log in order; a new one begins where settings are printed again after a score or a stop."""
    runs = [Run(text.file)]
    block = False  # inside an indented block of settings
    for index, whole in enumerate(text.lines):
        raw = whole[:MAX_OUTPUT]
        low = raw.lower()
        if not raw or not any(key in low for key in _KEYS):
            block = block and bool(raw.strip())
            continue
        if _SOURCE.search(raw):
            continue
        line = raw.strip()
        while prefix := _PREFIX.match(line):
            if line[prefix.end() :] == "" or line[prefix.end() :][0] in ":/":
                break
            line = line[prefix.end() :]
        run = runs[-1]
        heading = line.rstrip(":").lower() == "hyperparameters"
        begins = _START.match(line) and _DIGIT.search(line) and "=" not in line.split(":")[0]
        if (begins or heading) and (run.finals or run.train_ms or (heading and run.settings)):
            run = Run(text.file)
            runs.append(run)
        if heading:
            block = True
            continue
        _read_line(run, line, raw, low, text.place(index), block)
        if not _SETTING.match(raw):
            block = False
    kept: list[Run] = []
    for run in runs:
        # What a launcher and the program both write into one file is one run.
        same = any(_values(run) == _values(other) for other in kept if _values(run))
        if not same and (run.scores or run.totals or run.train_ms or run.tokens or run.models):
            kept.append(run)
    return kept


def _values(run: Run) -> list[float]:
    return sorted({s.bpb.value for s in run.finals})


_DIGIT = re.compile(r"\d")


def _read_line(run: Run, line: str, raw: str, low: str, place: Place, block: bool) -> None:
    if block and (m := _SETTING.match(raw)):
        run.settings.setdefault(m.group(1), (m.group(2).strip(), place))
    if m := _SEED.match(line):
        run.seed = _number(m.group(1), place)
        return
    if "bpb" in low or "bits per byte" in low or "bits_per_byte" in low:
        _read_score(run, line, place)
    if "time" in low and "eval" not in low:
        _read_time(run, line, place)
    if "submission" in low or "artifact" in low or "total" in low:
        for m in _TOTAL.finditer(line):
            run.totals.append((m.group(1).lower(), _number(m.group(2), place)))
    if "bytes" in low:
        if m := _MODEL.match(line):
            run.models.append((m.group(1).lower(), _number(m.group(2), place)))
        if m := _CODE.search(line):
            compressed = m.group(1) and "uncompressed" not in m.group(1) and "compress" in m.group(1)
            run.codes.append(("compressed" if compressed else "raw", _number(m.group(2), place)))
    if "tokens" in low and (m := _VAL_TOKENS.search(line)):
        run.tokens = _number(m.group(1), place)
    if "step" not in low:
        _read_settings(run, line, low, place)


def _read_settings(run: Run, line: str, low: str, place: Place) -> None:
    """Read settings outside an indented block: before training all of them, later only what is said to be enabled."""
    if m := _ENABLED.match(line):
        for key, value in _PAIR.findall(m.group(2)):
            run.settings.setdefault(f"{m.group(1)}.{key}", (value, place))
    elif run.train_ms or run.finals or "loss" in low or "bpb" in low:
        return
    elif (m := _LONE.match(line)) and not _ANNOTATION.match(m.group(2)):
        run.settings.setdefault(m.group(1), (m.group(2), place))
    elif _PAIR_LINE.match(line) and not _STEP.match(line):
        for key, value in _PAIR.findall(line):
            run.settings.setdefault(key, (value, place))


def _read_score(run: Run, line: str, place: Place) -> None:
    found = [m for m in _BPB.finditer(line) if 0.001 < float(m.group(2)) < 50]
    if not found:
        return
    named = [m for m in found if m.group(1).lower() == "val_bpb"]
    losses = _LOSS.findall(line)
    label = _label(line[: found[0].start()])
    kind = "final"
    if _STEP.match(line):
        kind = "step"
    elif _PROGRESS.search(line):
        last = re.search(r"\[?(\d+)\s*/\s*(\d+)\]?", line)
        kind = "final" if last and last.group(1) == last.group(2) and "rank" not in line else "progress"
    elif _DIAGNOSTIC.search(line[: found[0].end()].lower().replace("diagnostic quantized", "")):
        kind = "diagnostic"
    seconds = None
    if m := _EVAL_TIME.search(line):
        seconds = float(m.group(1).replace(",", "")) / (1000 if m.group(2).lower() == "ms" else 1)
    scored = _BYTES.search(line)
    tokens = _TOKENS.search(line)
    for m in found:
        own = label if len(found) == 1 or m in named else f"{label}.{m.group(1).lower()}"
        paired = losses and (m in named or len(found) == 1)
        run.scores.append(
            Score(
                label=own or m.group(1).lower(),
                kind=kind,
                bpb=_number(m.group(2), place),
                loss=_number(losses[0], place) if paired else None,
                eval_seconds=seconds,
                bytes_scored=int(float(scored.group(1).replace(",", ""))) if scored else None,
                tokens_scored=int(float(tokens.group(1).replace(",", ""))) if tokens else None,
            )
        )
    if kind == "step" and (m := _STEP_AVG.search(line)):
        run.step_ms = float(m.group(1).replace(",", ""))


def _label(words: str) -> str:
    """Return the words of a score line before its numbers, without what differs from line to line."""
    words = _LOSS.sub("", words)
    words = re.sub(r"\b(?:val_?loss|stride|tokens|bytes|docs|time)\s*[:=]\s*[\d.,]+\w*", "", words, flags=re.I)
    words = re.sub(r"[^a-z0-9+]+", "_", words.lower()).strip("_")
    return re.sub(r"_?exact$", "", words)


def _read_time(run: Run, line: str, place: Place) -> None:
    if m := _STOP.search(line):
        run.train_ms.append(_milliseconds(m.group(1), m.group(2), place))
    elif (m := _TRAIN_TIME.search(line)) and _STEP.match(line):
        time = _milliseconds(m.group(1), m.group(2), place)
        # Minutes with one decimal: no better than six seconds.
        run.train_ms.append(replace(time, decimals={"ms": 0, "s": -3, "m": -4}[m.group(2).lower()]))
    if m := _STEP_AVG.search(line):
        run.step_ms = float(m.group(1).replace(",", ""))


def _milliseconds(digits: str, unit: str, place: Place) -> Number:
    value = float(digits.replace(",", "")) * {"ms": 1, "s": 1000, "m": 60_000}[unit.lower()]
    return Number(value, 0, place)


def _number(digits: str, place: Place) -> Number:
    digits = digits.replace(",", "")
    return Number(float(digits), len(digits.partition(".")[2]), place)
