"""Size: model and code under the cap, in decimal bytes, by the log's own numbers.

Three habits of counting code: the raw script, a script that was wrapped before the run, and a compressed form that the
log prints while the readable script ships. A total is only called over where it is over in every count that the folder
allows.
"""

from __future__ import annotations

from evalkit.plumbing.constants import SIZE_CAP
from evalkit.verify.claim import CONTRADICTED, HOLDS, NOT_STATED, Claim, nearest_to_limit, places, within_one_run
from evalkit.verify.statements import Folder, Number, Run


def check_size(folder: Folder, runs: list[Run]) -> list[Claim]:
    """Return whether what ships fits, for the runs that the claim is about."""
    claims = within_one_run([c for run in runs or folder.runs if (c := _run(folder, run))], runs)
    if stated := _stated(folder, runs):
        claims = [stated, *claims]
    if claims:
        return nearest_to_limit(claims)
    largest = max(folder.declared.totals, key=lambda t: t.value, default=None)
    if largest is not None and largest.value <= SIZE_CAP:
        said = f"no log prints the size that {folder.declared.file} states"
        return [Claim("size", NOT_STATED, said, largest.value, None, places(largest))]
    return [Claim("size", NOT_STATED, "neither a log nor submission.json states the size")]


def _stated(folder: Folder, runs: list[Run]) -> Claim | None:
    over = [t for t in folder.declared.totals if SIZE_CAP < t.value < 100e6]
    worst = max(over, key=lambda t: t.value, default=None)
    smaller = [c for run in runs or folder.runs if (c := _smallest(folder, run)) and c[0] <= SIZE_CAP]
    if worst is None or smaller:  # the file counts the script raw, as some logs do
        return None
    said = (
        f"{folder.declared.file} states {worst.value:,.0f} bytes, {worst.value - SIZE_CAP:,.0f} over the cap of "
        f"{SIZE_CAP:,}"
    )
    return Claim("size", CONTRADICTED, said, worst.value, worst.value, places(worst))


def _run(folder: Folder, run: Run) -> Claim | None:
    smallest = _smallest(folder, run)
    if smallest is None:
        return None
    size, how, lines = smallest
    stated = folder.declared.totals
    closest = min(stated, key=lambda t: abs(t.value - size), default=None)
    model_only = next((t for t in stated for _, m in run.models if abs(t.value - m.value) < 1), None)
    if size <= SIZE_CAP:
        said = f"{size:,.0f} bytes ({how}), {SIZE_CAP - size:,.0f} under the cap"
        return Claim("size", HOLDS, said, closest.value if closest else None, size, places(closest, *lines))
    named = model_only or closest
    why = "; the stated total is the model without code" if model_only else ""
    said = f"{run.file}: {size:,.0f} bytes ({how}), {size - SIZE_CAP:,.0f} over the cap of {SIZE_CAP:,}{why}"
    return Claim("size", CONTRADICTED, said, named.value if named else None, size, places(named, *lines))


def _smallest(folder: Folder, run: Run) -> tuple[float, str, list[Number]] | None:
    """Return the smallest total that the run and the files allow, how it was counted, and the lines."""
    model = _model(run)
    counts: list[tuple[float, str, list[Number]]] = []
    checkpoint = {m.value for c, m in run.models if not c}
    for codec, total in run.totals:
        raw_checkpoint = not codec and any(total.value >= m for m in checkpoint) and any(c for c, _ in run.models)
        # Model without code, written as the total: what ships has code as well.
        bare = model is not None and total.value <= model.value
        if total.value > 100_000 and not bare and not (raw_checkpoint and total.value > 2 * SIZE_CAP):
            counts.append((total.value, "as logged", [total]))
    if model is not None:
        counts += [(model.value + code, how, [model, *line]) for code, how, line in _codes(folder, run)]
    return min(counts, key=lambda c: c[0], default=None)


def _model(run: Run) -> Number | None:
    named = [m for codec, m in run.models if codec and m.value < 10 * SIZE_CAP]
    return min(named, key=lambda m: m.value, default=None)


def _codes(folder: Folder, run: Run) -> list[tuple[float, str, list[Number]]]:
    """Return the counts of code that the folder allows."""
    counts: list[tuple[float, str, list[Number]]] = []
    compressed = [c for kind, c in run.codes if kind == "compressed"]
    raw = [c for kind, c in run.codes if kind == "raw"]
    if compressed:
        return [(c.value, "model and compressed code as logged", [c]) for c in compressed]
    script = folder.script
    if script is not None:
        hidden = sum(size for _, size in script.hidden)
        if hidden:
            names = ", ".join(name for name, _ in script.hidden)
            return [(script.size + hidden, f"model, {script.file} and {names}, which it executes", raw[:1])]
        counts.append((script.size, f"model and {script.file} as shipped", raw[:1]))
        if not raw and not run.totals:
            counts.append((script.packed, f"model and {script.file} compressed", []))
    elif raw:
        counts += [(c.value, "model and code as logged", [c]) for c in raw]
    return counts
