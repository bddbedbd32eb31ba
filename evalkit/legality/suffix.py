"""Change tokens after t; the scores up to t stay put.

Every span is scored again with its tokens from j on replaced, for every j (or as many as the options and the time
allow, the borders first): row j tests position j - 1 at distance one and all earlier positions of the span at greater
distances. Tokens of later spans need no test: they do not exist in the process, and what reaches for them anyway is
the business of the bait and replay audits.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy import special

from evalkit.legality.driver import walk
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
from evalkit.legality.outcome import Notes, Outcome
from evalkit.legality.replay import span_means
from evalkit.legality.subject import Repeatability, Subject

AUDIT = "suffix"
REPLICATES = 48
"""Calls per template at a position whose score has moved."""

SWEEPS = 3
"""Passes over the stream at most, each with other tokens in place of the later ones."""

SCORES, SCORES_OURS = 1 << 20, 1 << 12
"""Scores that the rows of all passes hold together: a stranger's, and of our own forecasters."""

MORE_REPLICATES = 256
"""Calls per template at a position that the first ones leave in doubt."""

BRIEF = 8
"""Offsets of a span that are enough where calls are costly and the verdict stands."""

TESTED, TESTED_OURS = 200, 8
"""Positions that must be tested at distance one (half of all, if fewer): a stranger's, and of our own forecasters,
which are handed buffers that hold nothing later."""


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


def replacement(subject: Subject, real: Ids, rng: np.random.Generator) -> Ids:
    """Return tokens that differ from ``real`` everywhere: random ones, some of the stream, some document starts."""
    size = len(real)
    uniform = rng.integers(0, subject.vocab_size, size=size, dtype=np.int64)
    seen = subject.tokens[rng.integers(0, len(subject.tokens), size=size)]
    coin = rng.random(size)
    drawn = np.where(coin < 0.55, uniform, seen)
    if 0 <= subject.options.bos < subject.vocab_size:
        drawn = np.where(coin > 0.95, subject.options.bos, drawn)
    shift = 1 + rng.integers(0, max(subject.vocab_size - 1, 1), size=size)
    return np.where(drawn == real, (real + shift) % subject.vocab_size, drawn)


def pick_offsets(real: Ids, limit: int, bos: int, rng: np.random.Generator) -> Ids:
    """Return at most ``limit`` offsets in ``1..len - 1``: first, last, document starts, then random ones."""
    every = np.arange(1, len(real), dtype=np.int64)
    if len(every) <= limit:
        return every
    borders = [1, len(real) - 1, *(np.flatnonzero(real[1:] == bos) + 1).tolist()]
    first = np.unique(np.array(borders[:limit], np.int64))
    rest = rng.permutation(np.setdiff1d(every, first))[: max(limit - len(first), 0)]
    return np.sort(np.concatenate([first, rest]))


class _Audit:
    """The audit of one forecaster: what it watches, and what it notes."""

    def __init__(self, subject: Subject, host: Host, known: Repeatability, rng: np.random.Generator) -> None:
        count = len(subject.base.nats)
        self.subject, self.host, self.known, self.rng = subject, host, known, rng
        self.notes = Notes(AUDIT)
        self.moves = Moves(
            largest=np.full(count, np.nan), gain=np.zeros(count), nearest=np.zeros(count, dtype=np.bool_)
        )
        self.planned = self.done = 0  # rows of the passes that have begun

    def score(self, rows: Ids) -> Floats:
        """Return the scores of alternative continuations of the prefix."""
        return self.host.score(rows, isolated=not self.known.in_place)

    def staircase(self, real: Ids, offsets: Ids) -> Ids:
        """Return one row per offset j: ``real`` up to j, other tokens from j on (in every fourth row at j alone)."""
        rows = np.repeat(real[None, :], len(offsets), axis=0)
        for index, j in enumerate(offsets.tolist()):
            stop = j + 1 if self.rng.random() < 0.25 else len(real)
            rows[index, j:stop] = replacement(self.subject, real[j:stop], self.rng)
        return rows

    def sweep(self, most: int, seconds: float) -> None:
        """Pass over the stream once, perturbing every span at up to ``most`` offsets; stop where the time is up."""
        subject, deadline = self.subject, time.monotonic() + seconds
        self.planned += sum(min(most, stop - start - 1) for start, stop in subject.base.spans)
        # few long spans get as many rows as the verdict needs, even where the time is short
        least = math.ceil(TESTED_OURS / len(subject.base.spans))
        slower = 1.0  # calls in a process of their own take longer than those of the first pass
        for start, stop in walk(self.host, subject.tokens, subject.options.span):
            real = subject.tokens[start:stop]
            if stop - start > 1:
                left = deadline - time.monotonic()
                if left < 0:
                    break
                first = max(subject.base.seconds_from(start), 1e-6)
                affordable = max(least, left / (slower * first) - 1)
                offsets = pick_offsets(real, int(min(most, affordable)), subject.options.bos, self.rng)
                rows = self.staircase(real, offsets)
                clock = time.monotonic()
                values = self.score(np.concatenate([real[None, :], rows]))
                own = max(first - subject.base.seconds_from(stop), 1e-6)
                slower = 0.7 * slower + 0.3 * (time.monotonic() - clock) / (len(values) * own)
                self.done += len(rows)
                self.compare_with_ledger(start, values[0])
                self.watch(start, stop, offsets, rows, values[1:])

    def compare_with_ledger(self, start: int, scores: Floats) -> None:
        """Compare the real span, asked for in the state that the ledger's own call met, with the ledger.

        Where a fresh process repeats every score, only a forecaster that knows who asks can answer otherwise here.
        """
        gap = np.abs(difference(self.subject.base.nats[start - 1 : start - 1 + len(scores)], scores))
        gap = np.where(np.isfinite(gap), gap, np.inf)
        worst = int(np.argmax(gap))
        if self.known.exact and gap[worst] > (EXACT if self.subject.grid == "float64" else FLOAT32):
            self.notes.find(
                "ledger",
                start + worst,
                {**self.subject.options.size(float(gap[worst])), "score": float(scores[worst])},
                f"Asked for among other spans, the same tokens after the same prefix score {scores[worst]:.6g} nats; "
                f"alone they scored {gap[worst]:.6g} nats apart, in every fresh process. The answer depends on who "
                "asks.",
            )

    def watch(self, start: int, stop: int, offsets: Ids, rows: Ids, values: Floats) -> None:
        """Note how far the rows moved the scores before their first changed token."""
        moves = self.moves
        real = self.subject.base.nats[start - 1 : stop - 1]
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

    def measure_noise(self) -> NoiseProfile:
        """Summarise the moves."""
        tested = np.isfinite(self.moves.largest)
        rms = (self.moves.squares / max(self.moves.pairs, 1)) ** 0.5
        return NoiseProfile.measured(self.subject.grid, self.moves.largest[tested], call=self.known.call_noise, rms=rms)

    def conclude(self, noise: NoiseProfile) -> tuple[NoiseProfile, frozenset[int]]:
        """Tell leaks from noise and note findings; return what is known of the noise then, and what leaks.

        Raises:
            Fault: the forecaster failed where a position was examined again.
        """
        moves = self.moves
        tested = np.isfinite(moves.largest)
        sizes = np.where(tested, moves.largest, 0.0)
        over = np.flatnonzero(sizes > noise.material())
        gain, gain_p = one_sided_gain(span_means(self.subject.base, np.where(tested, moves.gain, 0.0)))
        self.notes.cover(
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
            return noise, frozenset()
        chosen = self.choose(over[np.argsort(-sizes[over])])
        facts = self.examine(chosen, noise)
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
            if noise.median > 0.05 or noise.largest > BFLOAT16:
                self.notes.gap(
                    f"scores move with the later tokens of their span, by {noise.median:.3g} nats at most positions "
                    f"and by up to {noise.largest:.3g}: more than float noise should, and not proven to be a leak"
                )
            return noise.innocent(), frozenset()
        for index in sure:
            self.accuse(index, facts.get(index, {"move": 0.0, "p_value": 1.0}), len(over), gain)
        return noise, frozenset(int(index) + 1 for index in over)

    def choose(self, ranked: npt.NDArray[np.intp]) -> list[int]:
        """Return which of the positions that moved are examined again; ``ranked`` has the largest moves first."""
        room = [i for i in ranked if self.moves.bounds[int(i)][1] - int(i) - 1 >= 3]
        most = 6 if self.known.in_place else 2
        return [int(i) for i in dict.fromkeys([*ranked[:most], *room[:most], *self.rng.permutation(room)[:most]])]

    def examine(self, chosen: list[int], noise: NoiseProfile) -> dict[int, dict[str, float]]:
        """Examine single positions again, each in its span: see :meth:`examine_one`."""
        verdicts: dict[int, dict[str, float]] = {}
        by_start: dict[int, list[int]] = {}
        for index in chosen:
            by_start.setdefault(self.moves.bounds[index][0], []).append(index)
        for start, stop in walk(self.host, self.subject.tokens, self.subject.options.span):
            for index in by_start.pop(start, []):
                pair = np.stack([self.subject.tokens[start:stop], self.moves.rows[index]])
                verdicts[index] = self.examine_one(pair, index + 1 - start, noise)
            if not by_start:
                break
        return verdicts

    def examine_one(self, pair: Ids, offset: int, noise: NoiseProfile) -> dict[str, float]:
        """Ask whether a move repeats, and whether it is tied to the later tokens or mere noise.

        ``pair`` holds the real span and the one that moved the score at ``offset`` most. In 2 x 48 new calls the later
        tokens are those of one or the other, each replaced at random with probability 0.1 and one of them always. A
        leak follows its template; noise that depends on the content of the batch does not (Welch's t-test). What these
        leave in doubt gets 2 x 256 more.
        """
        values = self.score(np.concatenate([pair, pair]))[:, offset]
        repeats = not moved(values[:2], values[2:]).any()
        facts = {"repeats": float(repeats), "move": float(values[1] - values[0]), "p_value": 1.0}

        def follow(count: int, share: float) -> None:
            scores = self.score(self.replicates(pair, offset, count, share))[:, offset]
            facts["tied"], facts["p_value"] = two_groups(scores[:count], scores[count:])

        if pair.shape[1] - offset - 1 >= 2:
            follow(REPLICATES, 0.1)
            if P_SYSTEMATIC <= facts["p_value"] < 0.05:
                follow(MORE_REPLICATES, 0.1)
            # A leak through a choice among few (a temperature of a list) follows its template part of the time; where
            # most scores repeat to the bit, and calls are cheap, it gets the template with one token replaced as well.
            exact = self.known.in_place and noise.exact and self.subject.grid == "float64"
            if facts["p_value"] >= P_SYSTEMATIC and exact:
                follow(MORE_REPLICATES, 0.0)
        return facts

    def replicates(self, templates: Ids, offset: int, count: int, share: float) -> Ids:
        """Return ``count`` rows of each template, a ``share`` of the tokens after ``offset`` replaced, at least one."""
        rows = np.repeat(templates, count, axis=0)
        noise = self.rng.integers(0, self.subject.vocab_size, size=rows.shape, dtype=np.int64)
        later = np.arange(rows.shape[1]) > offset
        swap = self.rng.random(rows.shape) < share
        # at least one token beyond the next is another, so that no two calls are the same
        swap[np.arange(len(rows)), self.rng.integers(offset + 2, rows.shape[1], size=len(rows))] = True
        return np.where(later & swap, noise, rows)

    def accuse(self, index: int, seen: dict[str, float], positions_over: int, gain: float) -> None:
        """Note a leak at one position."""
        size = self.subject.options.size
        start, stop = self.moves.bounds[index]
        changed = int((np.flatnonzero(self.moves.rows[index] != self.subject.tokens[start:stop]) + start)[0])
        self.notes.find(
            "causality",
            index + 1,
            {
                **size(abs(seen["move"])),
                "first_changed": changed,
                "distance": changed - index - 1,
                "p_value": seen["p_value"],
                "positions_over": positions_over,
                "mean_gain_nats": gain,
                "mean_gain_bpb": size(gain)["bpb"],
            },
            f"Changing the tokens from {changed} on moved the score of this position by {abs(seen['move']):.6g} nats "
            f"(span {start}:{stop}, {positions_over} positions moved so).",
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
    return float(special.bdtrc(hits - 1, len(seams), min(rate, 1.0))) if hits >= 3 else 1.0


def audit(
    subject: Subject,
    host: Host,
    known: Repeatability,
    seconds: float,
    rng: np.random.Generator,
    *,
    brief: bool,
) -> tuple[Outcome, NoiseProfile, frozenset[int]]:
    """Run the suffix audit: up to three sweeps, ``seconds`` at most; one of few offsets where ``brief``.

    Returns:
        What the audit says, what is known of the forecaster's noise, and the positions whose scores move with later
        tokens, once that is proven to be a leak.
    """
    run = _Audit(subject, host, known, rng)
    try:
        most = SCORES if host.remote else SCORES_OURS
        least = math.ceil(TESTED_OURS / len(subject.base.spans))
        offsets = min(subject.options.offsets, BRIEF if brief else max(most // len(subject.tokens), least))
        widest = max(stop - start - 1 for start, stop in subject.base.spans)
        sweeps = max(most // (max(min(offsets, widest), 1) * len(subject.tokens)), 1)
        began = time.monotonic()
        once = brief or not known.in_place or not host.remote
        for _ in range(1 if once else min(sweeps, SWEEPS)):
            run.sweep(offsets, seconds - (time.monotonic() - began))
    except Fault as fault:
        run.notes.failed(fault, real=False)
    run.notes.cut(run.done, run.planned)
    noise, leaking = run.measure_noise(), frozenset[int]()
    try:
        noise, leaking = run.conclude(noise)
    except Fault as fault:
        run.notes.cover(examination=f"it failed: {fault}")
        run.notes.gap(f"suffix: scores moved with later tokens, and it stays open whether that is noise: {fault}")
    count, nearest = len(subject.base.nats), int(run.moves.nearest.sum())
    needed = min(TESTED if host.remote else TESTED_OURS, 0.5 * count)
    if any(stop - start > 1 for start, stop in subject.base.spans) and nearest < needed:
        run.notes.gap(f"suffix: only {nearest} of {count} positions were tested ({nearest / count:.0%})")
    return run.notes.outcome(), noise, leaking
