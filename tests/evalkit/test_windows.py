"""Every position is scored exactly once, by the window that gives it the longest context of the plan."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from evalkit.prequential.sliding import gather_windows
from evalkit.prequential.windows import plan_windows


@st.composite
def plans(draw: st.DrawFn) -> tuple[int, int, int, list[int]]:
    seq_len = draw(st.integers(1, 60))
    stride = draw(st.integers(1, seq_len))
    length = draw(st.integers(2, 300))
    cuts = sorted(draw(st.sets(st.integers(2, length), max_size=5)) | {1, length})
    return seq_len, stride, length, cuts


@given(plans())
@settings(deadline=None, max_examples=300)
def test_every_position_once_with_the_longest_context(plan: tuple[int, int, int, list[int]]) -> None:
    seq_len, stride, length, cuts = plan
    seen = []
    for start, stop in itertools.pairwise(cuts):
        for span in plan_windows(start, stop, seq_len, stride):
            assert span.window_start % stride == 0
            for position in range(span.start, span.stop):
                row = position - 1 - span.window_start
                assert 0 <= row < seq_len
                # The window one stride earlier, if there is one, must not reach this position.
                assert span.window_start == 0 or position - 1 - (span.window_start - stride) >= seq_len
                seen.append(position)
    assert seen == list(range(1, length))


@given(plans())
@settings(deadline=None)
def test_windows_hold_their_prefix_and_nothing_later(plan: tuple[int, int, int, list[int]]) -> None:
    seq_len, stride, length, _ = plan
    tokens = np.arange(1, length + 1, dtype=np.uint16)
    for span in plan_windows(1, length, seq_len, stride):
        ids = gather_windows(tokens, [span], seq_len)[0]
        held = span.stop - 1 - span.window_start
        assert ids[:held].tolist() == tokens[span.window_start : span.stop - 1].tolist()
        assert not ids[held:].any()
