"""The tolerance of a push, from the rounding before the first push."""

from __future__ import annotations

import math

import pytest

from grpo import config
from grpo.weights.rounding import Rounding, max_or_nan
from grpo.weights.sync import WeightMismatch


@pytest.mark.parametrize(
    ("dtype", "nats", "chosen", "tolerance"),
    [
        ("float32", 1e-6, None, 2e-4),
        ("float32", 1e-4, None, 3e-4),
        ("bfloat16", 0.01, None, 0.05),
        ("bfloat16", 0.02, None, 0.06),
        ("bfloat16", 0.02, 0.03, 0.03),
        ("bfloat16", 0.7, 0.8, 0.8),
    ],
)
def test_the_tolerance_is_the_larger_of_the_preset_and_three_times_the_rounding(
    dtype: config.Dtype, nats: float, chosen: float | None, tolerance: float
) -> None:
    assert Rounding(nats, dtype).tolerance(chosen) == pytest.approx(tolerance)


@pytest.mark.parametrize(("dtype", "nats"), [("float32", 3e-3), ("bfloat16", 0.6), ("bfloat16", math.nan)])
def test_a_difference_that_is_no_rounding_is_refused_with_a_remedy(dtype: config.Dtype, nats: float) -> None:
    with pytest.raises(WeightMismatch, match=r"^before the first push, .*different weights.*Check that policy\.path"):
        Rounding(nats, dtype).tolerance(None)


def test_a_tolerance_below_the_rounding_is_refused_with_a_remedy() -> None:
    with pytest.raises(ValueError, match=r"^weight_sync\.tolerance=0\.01: .* 0\.02 nats .*set it to 0\.06 or more"):
        Rounding(0.02, "bfloat16").tolerance(0.01)


def test_a_replica_that_computes_no_numbers_is_not_hidden() -> None:
    assert max_or_nan([1.0, 2.0]) == 2.0
    assert math.isnan(max_or_nan([1.0, math.nan])) and math.isnan(max_or_nan([math.nan, 1.0]))
