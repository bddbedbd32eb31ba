"""Row scales, rounding and the percentile search."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from train_helpers import quantize_rows

from evalkit.plumbing.errors import InputError
from evalkit.train.quantization.rows import (
    integer_limit,
    published_min_step,
    round_to_step,
    row_clips,
    row_step,
    search_clip,
    weighted_row_error,
)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([5, 6, 8]),
    st.sampled_from([0.9, 0.9995, 1.0]),
    st.sampled_from([0.0, 1 / 31, 0.3]),
    st.floats(-12, 8),
    st.integers(0, 1 << 20),
)
def test_error_is_at_most_half_a_step_inside_the_clip(
    bits: int, quantile: float, min_step: float, log_spread: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(7, 33, generator=generator) * 2.0**log_spread
    values, step = quantize_rows(weight, bits, quantile=quantile, min_step=min_step)
    limit = integer_limit(bits)
    assert values.dtype == torch.int8
    assert int(values.min()) >= -limit - 1
    assert int(values.max()) <= limit
    assert step.dtype == torch.float16
    s = step.double()[:, None]
    error = (values.double() * s - weight.double()).abs()
    inside = (weight.double() >= -(limit + 1) * s) & (weight.double() <= limit * s)
    assert bool((error <= s * (0.5 + 1e-6))[inside].all())
    if quantile == 1.0:  # nothing but the float16 rounding of the step lies outside
        assert bool((error <= s * (0.5 + limit * 2.0**-10)).all())


def test_ranges_of_int5_and_int6() -> None:
    weight = torch.linspace(-200, 200, 401)[None]
    for bits, low, high in ((5, -16, 15), (6, -32, 31), (8, -128, 127)):
        values = round_to_step(weight, torch.ones(1, dtype=torch.float16), bits)
        assert (int(values.min()), int(values.max())) == (low, high)


def test_the_published_floor_is_an_explicit_step() -> None:
    weight = torch.full((3, 4), 0.5)
    weight[2] = 2.0
    _, free = quantize_rows(weight, 6)
    _, floored = quantize_rows(weight, 6, min_step=published_min_step(6))
    assert free.tolist() == pytest.approx([0.5 / 31, 0.5 / 31, 2 / 31], rel=1e-3)
    assert floored.tolist() == pytest.approx([1 / 31, 1 / 31, 2 / 31], rel=1e-3)
    assert float(floored[0]) == float(torch.tensor(1 / 31).half())


def test_integers_use_the_step_that_is_stored() -> None:
    weight = torch.randn(5, 400, generator=torch.Generator().manual_seed(0))
    values, step = quantize_rows(weight, 8)
    expected = np.clip(np.rint(weight.numpy() / step.float().numpy()[:, None]), -128, 127)
    assert (values.numpy() == expected).all()


def test_row_clip_interpolates_like_numpy() -> None:
    weight = torch.randn(4, 101, generator=torch.Generator().manual_seed(1))
    for quantile in (0.5, 0.999, 1.0):
        expected = np.quantile(np.abs(weight.numpy()), quantile, axis=1)
        assert row_clips(weight, (quantile,))[0].numpy() == pytest.approx(expected, rel=1e-6)
    assert row_clips(torch.zeros(3, 0), (1.0,)).tolist() == [[0, 0, 0]]


def test_search_takes_the_candidate_with_the_least_weighted_error() -> None:
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(9, 200, generator=generator)
    weight[:, 0] *= 12  # an outlier that only some Hessians care about
    quiet = torch.ones(200)
    quiet[0] = 1e-6
    candidates = (0.9, 0.99, 1.0)
    for hessian in (None, torch.diag(quiet), torch.eye(200)):
        tables = []
        for p in candidates:
            step = row_step(row_clips(weight, (p,))[0], 5)
            error = weight - round_to_step(weight, step, 5).float() * step.float()[:, None]
            tables.append((weighted_row_error(error, hessian), step))
        errors = torch.stack([t[0] for t in tables])
        per_row = search_clip(weight, 5, clips=candidates, hessian=hessian)
        expected = torch.stack([tables[int(i)][1][r] for r, i in enumerate(errors.argmin(0))])
        assert torch.equal(per_row, expected)
    ignoring = search_clip(weight, 5, clips=candidates, hessian=torch.diag(quiet))
    caring = search_clip(weight, 5, clips=candidates)
    assert bool((ignoring <= caring).all())
    assert bool((ignoring < caring).any())


def test_bad_requests_are_refused() -> None:
    with pytest.raises(InputError, match="3 bits"):
        integer_limit(3)
    with pytest.raises(InputError, match="finite"):
        quantize_rows(torch.tensor([[float("nan"), 1.0]]), 6)
    with pytest.raises(InputError, match="float16"):
        quantize_rows(torch.tensor([[1e8]]), 6)
