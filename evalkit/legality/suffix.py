"""Change tokens after t; the scores up to t stay put.

Every span is scored again with its tokens from j on replaced, for every j (or as many as the time allows, the
borders first): row j tests position j - 1 at distance one and all earlier positions of the span at greater
distances. Tokens of later spans need no test: they do not exist in the process, and what reaches for them anyway is
the business of the reach and replay audits.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy import stats

from evalkit.legality.context import ENOUGH, Context
from evalkit.legality.driver import advance, spans
from evalkit.legality.hosts import Fault, Floats, Host, Ids
from evalkit.legality.noise import (
    BFLOAT16,
    EXACT,
    FLOAT32,
    P_SYSTEMATIC,
    ROUNDING,
    NoiseProfile,
    difference,
    moved,
    one_sided_gain,
    two_groups,
)
from evalkit.legality.replay import span_means

AUDIT = "suffix"
REPLICATES = 48
"""Calls per template at a position whose score has moved."""

SWEEPS = 3
"""Passes over the stream at most, each with other tokens in place of the later ones."""

AGAIN = 256
"""Calls per template at a position that the first ones leave in doubt."""


@dataclass(kw_only=True)
class Moves:
    """What the perturbations moved, per scored position (index 0 is position 1).

    Attributes:
        largest: Largest absolute move in nats; NaN where nothing was tested.
        gain: Mean of perturbed minus real score: positive where knowing the real future lowers the score.
        nearest: Whether the next token itself was changed while this position was watched.
        rows: For each position the perturbed span that moved it most.
        bounds: For each of these positions its span.
        stops: Where the spans that were tested stop.
        pairs: Pairs of a position and a perturbation behind it.
        squares: Sum of the squared moves of all pairs, nats^2.
    """

    largest: Floats
    gain: Floats
    nearest: np.ndarray[tuple[int], np.dtype[np.bool_]]
    rows: dict[int, Ids] = field(default_factory=dict)
    bounds: dict[int, tuple[int, int]] = field(default_factory=dict)
    stops: set[int] = field(default_factory=set)
    pairs: int = 0
    squares: float = 0.0


def replacement(real: Ids, context: Context, rng: np.random.Generator) -> Ids:
    """Return tokens that differ from ``real`` everywhere: random ones, some of the stream, some document starts."""
    size = len(real)
    uniform = rng.integers(0, context.vocab_size, size=size, dtype=np.int64)
    seen = context.tokens[rng.integers(0, len(context.tokens), size=size)]
    coin = rng.random(size)
    drawn = np.where(coin < 0.55, uniform, seen)
    if 0 <= context.options.bos < context.vocab_size:
        drawn = np.where(coin > 0.95, context.options.bos, drawn)
    shift = 1 + rng.integers(0, max(context.vocab_size - 1, 1), size=size)
    return np.where(drawn == real, (real + shift) % context.vocab_size, drawn)


def staircase(real: Ids, offsets: Ids, context: Context, rng: np.random.Generator) -> Ids:
    """Return one row per offset j: ``real`` up to j, other tokens from j on (in every fourth row at j alone)."""
    rows = np.repeat(real[None, :], len(offsets), axis=0)
    for index, j in enumerate(offsets.tolist()):
        stop = j + 1 if rng.random() < 0.25 else len(real)
        rows[index, j:stop] = replacement(real[j:stop], context, rng)
    return rows


def pick_offsets(real: Ids, limit: int, bos: int, rng: np.random.Generator) -> Ids:
    """Return at most ``limit`` offsets in ``1..len - 1``: first, last, document starts, then random ones."""
    every = np.arange(1, len(real), dtype=np.int64)
    if len(every) <= limit:
        return every
    borders = [1, len(real) - 1, *(np.flatnonzero(real[1:] == bos) + 1).tolist()]
    first = np.unique(np.array(borders[:limit], np.int64))
    rest = rng.permutation(np.setdiff1d(every, first))[: max(limit - len(first), 0)]
    return np.sort(np.concatenate([first, rest]))


def sweep(context: Context, host: Host, rng: np.random.Generator, moves: Moves, seconds: float) -> None:
    """Pass over the stream once, perturbing every span; stop where the time is up."""
    began = time.monotonic()
    host.fresh(int(context.tokens[0]))
    per_row = context.base.call_seconds
    end = len(context.tokens)
    for start, stop in spans(host, end, context.options.span):
        real = context.tokens[start:stop]
        if stop - start > 1:
            left = seconds - (time.monotonic() - began)
            if left < 0:
                break
            spans_left = max(1.0, (end - start) / (stop - start))
            limit = max(1, int(left / spans_left / max(per_row, 1e-6)) - 1)
            if context.settled:
                limit = min(limit, ENOUGH)
            offsets = pick_offsets(real, limit, context.options.bos, rng)
            rows = staircase(real, offsets, context, rng)
            clock = time.monotonic()
            values = host.score(np.concatenate([real[None, :], rows]), isolated=not context.recallable)
            cost = (time.monotonic() - clock) / len(values)
            per_row = 0.7 * per_row + 0.3 * cost
            compare_with_ledger(context, start, values[0])
            watch(context, moves, start, stop, offsets, rows, values[1:])
        advance(host, real)


def compare_with_ledger(context: Context, start: int, scores: Floats) -> None:
    """Compare the real span, asked for in the state that the ledger's own call met, with the ledger.

    Where a fresh process repeats every score, only a forecaster that knows who asks can answer otherwise here.
    """
    gap = np.abs(difference(context.base.nats[start - 1 : start - 1 + len(scores)], scores))
    gap = np.where(np.isfinite(gap), gap, np.inf)
    worst = int(np.argmax(gap))
    if context.repeats and gap[worst] > (EXACT if context.grid == "float64" else FLOAT32):
        context.find(
            AUDIT,
            "ledger",
            start + worst,
            {**context.size(float(gap[worst])), "score": float(scores[worst])},
            f"Asked for among other spans, the same tokens after the same prefix score {scores[worst]:.6g} nats; alone "
            f"they scored {gap[worst]:.6g} nats apart, in every fresh process. The answer depends on who asks.",
        )


def watch(context: Context, moves: Moves, start: int, stop: int, offsets: Ids, rows: Ids, values: Floats) -> None:
    """Note how far the rows moved the scores before their first changed token."""
    real = context.base.nats[start - 1 : stop - 1]
    before = np.arange(stop - start)[None, :] < offsets[:, None]
    gap = np.where(before, difference(real[None, :], values), 0.0)
    gap = np.where(np.isfinite(gap), gap, 10 * ROUNDING)
    gap = np.where(moved(np.broadcast_to(real, gap.shape), real + gap), gap, 0.0)
    size = np.abs(gap)
    moves.pairs += int(before.sum())
    moves.squares += float(np.sum(gap**2))
    moves.stops.add(stop)
    count = np.maximum(before.sum(axis=0), 1)
    for offset in range(stop - start - 1):
        if not before[:, offset].any():
            continue
        index = start + offset - 1
        worst = int(np.argmax(size[:, offset]))
        if not moves.largest[index] >= size[worst, offset]:
            moves.largest[index] = size[worst, offset]
            if size[worst, offset] > 0:
                moves.rows[index] = rows[worst]
                moves.bounds[index] = (start, stop)
        moves.gain[index] = float(gap[:, offset].sum() / count[offset])
        moves.nearest[index] |= bool(np.any(offsets == offset + 1))


def confirm(
    context: Context, host: Host, moves: Moves, candidates: list[int], rng: np.random.Generator
) -> dict[int, dict[str, float]]:
    """Examine single positions again, each in its span: see :func:`examine`."""
    verdicts: dict[int, dict[str, float]] = {}
    by_start: dict[int, list[int]] = {}
    for index in candidates:
        by_start.setdefault(moves.bounds[index][0], []).append(index)
    host.fresh(int(context.tokens[0]))
    for start, stop in spans(host, len(context.tokens), context.options.span):
        real = context.tokens[start:stop]
        for index in by_start.pop(start, []):
            pair = np.stack([real, moves.rows[index]])
            verdicts[index] = examine(context, host, pair, index + 1 - start, rng)
        if not by_start or context.left() < 0:
            break
        advance(host, real)
    return verdicts


def examine(context: Context, host: Host, pair: Ids, offset: int, rng: np.random.Generator) -> dict[str, float]:
    """Ask whether a move repeats, and whether it is tied to the later tokens or mere noise.

    ``pair`` holds the real span and the one that moved the score at ``offset`` most. In 2 x 48 new calls the later
    tokens are those of one or the other, each replaced at random with probability 0.1 and one of them always. A leak
    follows its template; noise that depends on the content of the batch does not (Welch's t-test). What these leave in
    doubt gets 2 x 256 more.
    """
    isolated = not context.recallable
    values = host.score(np.concatenate([pair, pair]), isolated=isolated)[:, offset]
    repeats = not moved(values[:2], values[2:]).any()
    facts = {"repeats": float(repeats), "move": float(values[1] - values[0]), "p_value": 1.0}

    def follow(count: int, share: float) -> None:
        if context.left() > 0:
            rows = replicates(context, pair, offset, count, share, rng)
            scores = host.score(rows, isolated=isolated)[:, offset]
            facts["tied"], facts["p_value"] = two_groups(scores[:count], scores[count:])

    if pair.shape[1] - offset - 1 >= 2:
        follow(REPLICATES, 0.1)
        if P_SYSTEMATIC <= facts["p_value"] < 0.05:
            follow(AGAIN, 0.1)
        # A leak through a choice among few (a temperature of a list) follows its template part of the time; where most
        # scores repeat to the bit, and calls are cheap, it gets the template with one token replaced as well.
        exact = context.recallable and context.noise.exact and context.grid == "float64"
        if facts["p_value"] >= P_SYSTEMATIC and exact:
            follow(AGAIN, 0.0)
    return facts


def replicates(
    context: Context, templates: Ids, offset: int, count: int, share: float, rng: np.random.Generator
) -> Ids:
    """Return ``count`` rows of each template, a ``share`` of the tokens after ``offset`` replaced, at least one."""
    rows = np.repeat(templates, count, axis=0)
    noise = rng.integers(0, context.vocab_size, size=rows.shape, dtype=np.int64)
    later = np.arange(rows.shape[1]) > offset
    swap = rng.random(rows.shape) < share
    # at least one token beyond the next is another, so that no two calls are the same
    swap[np.arange(len(rows)), rng.integers(offset + 2, rows.shape[1], size=len(rows))] = True
    return np.where(later & swap, noise, rows)


def conclude(context: Context, host: Host, moves: Moves, rng: np.random.Generator) -> None:
    """Tell leaks from noise and record findings."""
    tested = np.isfinite(moves.largest)
    sizes = np.where(tested, moves.largest, 0.0)
    rms = (moves.squares / max(moves.pairs, 1)) ** 0.5
    noise = NoiseProfile.measured(context.grid, moves.largest[tested], call=context.call_noise, rms=rms)
    context.noise = noise
    over = np.flatnonzero(sizes > noise.material())
    gain, gain_p = one_sided_gain(span_means(context, np.where(tested, moves.gain, 0.0)))
    context.cover(
        AUDIT,
        positions=int(tested.sum()),
        positions_at_distance_one=int(moves.nearest.sum()),
        pairs=moves.pairs,
        tolerance_nats=noise.material(),
        noise_median_nats=noise.median,
        noise_of_content=noise.content,
        largest_nats=noise.largest,
        positions_over=len(over),
        mean_gain_nats=gain,
        gain_p_value=gain_p,
    )
    if len(over) == 0:
        return
    ranked = over[np.argsort(-sizes[over])]
    room = [i for i in ranked if moves.bounds[int(i)][1] - int(i) - 1 >= 3]
    most = 6 if context.recallable else 2
    chosen = [int(i) for i in dict.fromkeys([*ranked[:most], *room[:most], *rng.permutation(room)[:most]])]
    facts = confirm(context, host, moves, chosen, rng)
    sure = [
        index
        for index, seen in facts.items()
        if (seen["repeats"] and abs(seen["move"]) > ROUNDING)
        or (seen["p_value"] < P_SYSTEMATIC and abs(seen.get("tied", 0.0)) > 0.1 * noise.material())
    ]
    if not sure and seam_p_value(moves, over) < P_SYSTEMATIC:
        sure = [i for i in chosen if moves.bounds[i][1] == i + 3]
    if not sure and gain_p < P_SYSTEMATIC and gain > FLOAT32:
        sure = chosen[:1]
    if not sure:
        context.noise = noise.innocent()
        if noise.median > 0.05 or noise.largest > BFLOAT16:
            context.gap(
                f"scores move with the later tokens of their span, by {noise.median:.3g} nats at most positions and by "
                f"up to {noise.largest:.3g}: more than float noise should, and not proven to be a leak"
            )
        return
    context.moved.update(int(index) + 1 for index in over)
    for index in sure:
        seen = facts.get(index, {"move": 0.0, "p_value": 1.0})
        start, stop = moves.bounds[index]
        changed = np.flatnonzero(moves.rows[index] != context.tokens[start:stop]) + start
        context.find(
            AUDIT,
            "causality",
            index + 1,
            {
                **context.size(abs(seen["move"])),
                "first_changed": int(changed[0]),
                "distance": int(changed[0]) - index - 1,
                "p_value": seen["p_value"],
                "positions_over": len(over),
                "mean_gain_nats": gain,
                "mean_gain_bpb": context.size(gain)["bpb"],
            },
            f"Changing the tokens from {int(changed[0])} on moved the score of this position by "
            f"{abs(seen['move']):.6g} nats (span {start}:{stop}, {len(over)} positions moved so).",
        )


def seam_p_value(moves: Moves, over: npt.NDArray[np.intp]) -> float:
    """Return the p-value that the last position but one of the spans moves no more often than others do.

    There only one later token exists, so noise that depends on it looks like a leak; but noise spares no position.
    """
    tested = np.flatnonzero(np.isfinite(moves.largest))
    seams = {index for index in tested.tolist() if index + 3 in moves.stops}
    hits = sum(int(index) in seams for index in over.tolist())
    others = len(tested) - len(seams)
    rate = (len(over) - hits + 1) / (others + 1)
    return float(stats.binom.sf(hits - 1, len(seams), min(rate, 1.0))) if hits >= 3 else 1.0


def audit(context: Context, host: Host, seconds: float, rng: np.random.Generator) -> None:
    """Run the suffix audit for about ``seconds``."""
    count = len(context.base.nats)
    moves = Moves(largest=np.full(count, np.nan), gain=np.zeros(count), nearest=np.zeros(count, dtype=np.bool_))
    try:
        sweeps = 0
        began = time.monotonic()
        most = 1 if context.settled or not context.recallable else SWEEPS
        while sweeps < most and (sweeps == 0 or (time.monotonic() - began) * (1 + 1 / sweeps) < seconds):
            sweep(context, host, rng, moves, seconds - (time.monotonic() - began))
            sweeps += 1
    except Fault as fault:
        context.failed(AUDIT, fault, real=False)
    with contextlib.suppress(Fault):
        conclude(context, host, moves, rng)
    seams = any(stop - start > 1 for start, stop in context.base.spans)
    share = float(np.mean(moves.nearest)) if count else 1.0
    # our own forecasters are handed buffers that hold nothing later: for them a sample is enough
    needed = min(200, 0.5 * count) if host.remote else min(8, 0.5 * count)
    if seams and count and moves.nearest.sum() < needed:
        context.gap(f"suffix: only {int(moves.nearest.sum())} of {count} positions were tested ({share:.0%})")
