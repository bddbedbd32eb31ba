"""Reads ``submission.json`` in its many spellings."""

from __future__ import annotations

import re
from collections.abc import Iterable

from evalkit.verify.json_leaves import read_leaves
from evalkit.verify.statements import Declared, Leaf, Number, SeedResult, Text

_HEADLINES = (
    "val_bpb", "mean_val_bpb", "val_bpb_mean", "val_bpb_3seed_mean", "three_seed_mean_bpb", "mean_bpb", "val_bpb_exact",
    "bpb", "score", "final_val_bpb", "best_val_bpb",
)  # fmt: skip
_OTHER_SCORE = re.compile(
    r"std|stdev|delta|base|prior|previous|improv|pre_?quant|pre_?ttt|reference|sota|gain|min|max|merged|vs|float|ema|range|target|threshold",
    re.I,
)
_GROUPS = ("results", "result", "metrics", "scores", "final", "summary", "evaluation", "performance")
_LOSSES = ("val_loss", "mean_val_loss", "val_loss_mean", "val_loss_nats")
_TOTAL = re.compile(
    r"^(?:bytes_total|total_bytes|total_size_bytes|artifact_bytes(?:_max|_mean|_total)?|artifact_size_bytes|bytes_total_\w+|total_artifact_bytes|submission_bytes|total_submission_size(?:_bytes)?)$"
)
_NUMERIC = re.compile(r"^\s*~?(\d+\.\d+|\d[\d,_]{6,})(?:\s*(?:bpb|bytes|\(.*\)))?\s*$")
_SEED_KEY = re.compile(r"^(?:seed[_ -]?)?(\d{1,6})$", re.I)
_OLDER = re.compile(
    r"pre[-_]?fix|before|old|previous|prior|base|reference|ablation|invalid|superseded|original|without|no_", re.I
)
_LISTS = re.compile(r"seed|result|run|log", re.I)
_BY_SEED = (
    "seed_results", "val_bpb_seeds", "seeds", "per_seed", "seed_bpb", "per_seed_bpb", "val_bpb_by_seed",
)  # fmt: skip


def find_submission(files: dict[str, int]) -> str | None:
    """Return the path of ``submission*.json`` nearest the top."""
    names = [f for f in files if re.fullmatch(r"submission[\w.-]*\.json", f.rpartition("/")[2], re.I)]
    return min(names, key=lambda f: (f.count("/"), f.rpartition("/")[2] != "submission.json", f), default=None)


def read_declared(text: Text) -> Declared:
    """Return what ``submission.json`` claims; never raises, a broken file is read as far as it goes."""
    leaves, problem = read_leaves(text.file, "\n".join(text.lines))
    top = {leaf.path[0].lower(): leaf for leaf in leaves if len(leaf.path) == 1}
    headline = _headline(top, leaves)
    results = _results(leaves)
    return Declared(
        file=text.file,
        leaves=tuple(leaves),
        headline=headline,
        loss=_pick(top, _LOSSES),
        totals=tuple(
            n
            for leaf in leaves
            if leaf.path and _TOTAL.match(leaf.path[-1].lower()) and (n := _as_number(leaf)) and n.value > 100_000
        ),
        seeds=_seeds(leaves) or tuple(dict.fromkeys(r.seed for r in results)),
        results=_of_headline(results, headline),
        problem=problem,
    )


def _headline(top: dict[str, Leaf], leaves: list[Leaf]) -> Number | None:
    for key in _HEADLINES:
        if key in top and (number := _plausible(top[key])):
            return number
    for key, leaf in top.items():
        if "bpb" in key and not _OTHER_SCORE.search(key) and (number := _plausible(leaf)):
            return number
    for wanted in _HEADLINES:  # {"val_bpb": {"mean": 1.08}} or {"results": {"mean_val_bpb": 1.08}}
        for leaf in leaves:
            names = [p.lower() for p in leaf.path]
            if len(names) == 2 and (
                (names[0] == wanted and names[1] in ("mean", "value", "final"))
                or (names[1] == wanted and names[0] in _GROUPS)
            ) and (number := _plausible(leaf)):  # fmt: skip
                return number
    return None


def _plausible(leaf: Leaf) -> Number | None:
    number = _as_number(leaf)
    return number if number and 0 < number.value < 20 else None


def _as_number(leaf: Leaf) -> Number | None:
    if leaf.number:
        return leaf.number
    if isinstance(leaf.value, str) and (m := _NUMERIC.match(leaf.value)):
        digits = m.group(1).replace(",", "").replace("_", "")
        return Number(float(digits), len(digits.partition(".")[2]), leaf.place)
    return None


def _seeds(leaves: list[Leaf]) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for leaf in leaves:
        names = [p.lower() for p in leaf.path]
        named = names == ["seed"] or (names[0] == "seeds" and len(names) == 2 and names[1].isdigit())
        if named and isinstance(leaf.value, float) and not leaf.decimals:
            found[str(int(leaf.value))] = None
    return tuple(found)


def _results(leaves: list[Leaf]) -> tuple[SeedResult, ...]:
    """Return per-seed values, from ``seed_results: {"42": {...}}``, ``seed_42: {...}`` or a list."""
    groups: dict[tuple[str, ...], list[Leaf]] = {}
    for leaf in leaves:
        if 2 <= len(leaf.path) <= 4:
            groups.setdefault(leaf.path[:-1], []).append(leaf)
    results = []
    for path, group in groups.items():
        named = {leaf.path[-1].lower(): leaf for leaf in group}
        seed = None
        if _OLDER.search(" ".join(path)):
            continue
        if "seed" in named and isinstance(named["seed"].value, float):
            seed = str(int(named["seed"].value))
        elif (
            (m := _SEED_KEY.match(path[-1]))
            and (len(path) == 1 or _LISTS.search(path[-2]))
            and not _is_index(path, groups)
        ):
            seed = m.group(1)
        elif len(path) == 1 and path[0].lower() in _BY_SEED:
            for leaf in group:  # {"42": 1.08, ...}
                number = _plausible(leaf)
                if number and (m := _SEED_KEY.match(leaf.path[-1])) and not _is_list(group):
                    results.append(SeedResult(m.group(1), bpb=number, place=leaf.place, group=path))
            continue
        if seed is None:
            continue
        bpb = next(
            (n for k in (*_HEADLINES, "bpb", "ttt_bpb", "sliding_bpb") if k in named and (n := _plausible(named[k]))),
            None,
        )
        results.append(
            SeedResult(
                seed,
                bpb=bpb,
                bytes_total=_pick(named, ("bytes_total", "artifact_bytes", "total_bytes", "artifact_size_bytes")),
                place=(bpb.place if bpb else group[0].place),
                group=path[:-1],
            )
        )
    return tuple(results)


def _of_headline(results: tuple[SeedResult, ...], headline: Number | None) -> tuple[SeedResult, ...]:
    """Return the rows that the headline is of: files also list ablations, reruns and the seeds of earlier records."""
    groups: dict[tuple[str, ...], list[SeedResult]] = {}
    for result in results:
        groups.setdefault(result.group, []).append(result)

    def distance(rows: Iterable[SeedResult]) -> float:
        values = [r.bpb.value for r in rows if r.bpb]
        if not values or headline is None:
            return 0.0
        return min(abs(v - headline.value) for v in (sum(values) / len(values), *values[:1], min(values)))

    near = [rows for rows in groups.values() if distance(rows) < 3e-4]
    return tuple(min(near, key=distance)) if near else ()


def _pick(named: dict[str, Leaf], keys: tuple[str, ...]) -> Number | None:
    return next((n for k in keys if k in named and (n := _as_number(named[k]))), None)


def _is_list(group: list[Leaf]) -> bool:
    return [leaf.path[-1] for leaf in group] == [str(i) for i in range(len(group))]


def _is_index(path: tuple[str, ...], groups: dict[tuple[str, ...], list[Leaf]]) -> bool:
    """Whether the last name is the index of a list: its siblings are 0, 1, 2, ..."""
    siblings = [p[-1] for p in groups if p[:-1] == path[:-1]]
    return siblings == [str(i) for i in range(len(siblings))] and len(siblings) > 0 and path[-1].isdigit()
