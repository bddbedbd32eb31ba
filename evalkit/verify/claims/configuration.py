"""Configuration: were the runs of one claim made with the same active settings."""

from __future__ import annotations

import re

from evalkit.verify.claim import CONTRADICTED, HOLDS, NOT_STATED, Claim, places
from evalkit.verify.statements import Folder, Run
from evalkit.verify.support import same, seed_of

_FREE = re.compile(
    r"^.$|seed|_id$|run_id|rank|path|file|dir|port|host|log|time|date|device|world|wandb|name|cache|dataset|tokenizer|resume|_every$|_freq|"
    r"wallclock|reserve|train_shards|memory|pattern|shards|start|step|artifact|enabled$|frac|git|hash|tokens$|backend|params|bytes|legal|scale$",
    re.I,
)


def check_configuration(folder: Folder, runs: list[Run]) -> list[Claim]:
    """Return whether settings agree between the claimed runs, and whether each seed's numbers are of one run."""
    claims = [c for c in (_mixed_rows(folder), _settings(runs), _parameters(runs)) if c]
    if claims:
        return claims
    with_settings = [r for r in runs if r.settings]
    if len(with_settings) < 2:
        return [Claim("configuration", NOT_STATED, "fewer than two claimed logs print their settings")]
    sizes = sorted({code.value for r in runs for kind, code in r.codes if kind == "raw"})
    note = f"; their code has {' and '.join(f'{s:,.0f}' for s in sizes)} bytes" if len(sizes) > 1 else ""
    return [Claim("configuration", HOLDS, f"{len(with_settings)} logs print the same active settings{note}")]


def _settings(runs: list[Run]) -> Claim | None:
    rows = [r for r in runs if len(r.settings) >= 3]
    for run in rows[1:]:
        for key, (value, _) in run.settings.items():
            other = rows[0].settings.get(key)
            if other is not None and not (
                _FREE.search(key.rpartition(".")[2]) or _same_value(value, other[0]) or _is_place(value)
            ):
                return _differ(key, rows[0], run)
    return None


def _differ(key: str, one: Run, two: Run) -> Claim:
    (a, first), (b, second) = one.settings[key], two.settings[key]
    said = f"the runs of one claim differ in {key}: {a} in {one.file}, {b} in {two.file}"
    return Claim("configuration", CONTRADICTED, said, a, b, places(first, second))


def _same_value(a: str, b: str) -> bool:
    if a == b:
        return True
    try:
        return float(a) == float(b)
    except ValueError:
        return a.lower() == b.lower()


def _is_place(value: str) -> bool:
    return "/" in value or bool(re.search(r"\.(?:pt|ptz|bin|model|txt|log|npz)$|[\d.]+(?:ms|s|MiB)$", value))


def _parameters(runs: list[Run]) -> Claim | None:
    key = "model_params"
    counted = [r for r in runs if key in r.settings]
    other = next((r for r in counted if r.settings[key][0] != counted[0].settings[key][0]), None)
    return None if other is None else _differ(key, counted[0], other)


def _mixed_rows(folder: Folder) -> Claim | None:
    """Return a contradiction where a seed's score is of one run and its bytes are of another."""
    for result in folder.declared.results:
        if result.bpb is None or result.bytes_total is None:
            continue
        own = [r for r in folder.runs if seed_of(r) in (None, result.seed)]
        scored = [r for r in own if any(same(result.bpb, s.bpb) for s in r.finals)]
        sized = [r for r in own if any(abs(t.value - result.bytes_total.value) < 1 for _, t in r.totals)]
        if len({r.file for r in (*scored, *sized)}) != 1 or not scored or not sized or any(r in sized for r in scored):
            continue
        if not scored[0].totals or len(scored) > 1 or len(sized) > 1:
            continue
        score = next(s for s in scored[0].finals if same(result.bpb, s.bpb))
        total = next(t for _, t in sized[0].totals if abs(t.value - result.bytes_total.value) < 1)
        said = f"seed {result.seed}: the score is of one run in {scored[0].file}, the bytes of another"
        lines = places(result.place, score.bpb, scored[0].totals[-1][1], total)
        return Claim("configuration", CONTRADICTED, said, result.bpb.value, result.bytes_total.value, lines)
    return None
