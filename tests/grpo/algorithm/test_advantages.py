"""Group-normalised advantages against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from grpo.algorithm.advantages import group_centred, group_normalised


def advantages(
    rewards: list[list[float]], valid: list[list[bool]] | None = None, *, scale_by_std: bool = True
) -> Tensor:
    rewards_PG = torch.tensor(rewards)
    valid_PG = torch.ones_like(rewards_PG, dtype=torch.bool) if valid is None else torch.tensor(valid)
    return (group_normalised if scale_by_std else group_centred)(rewards_PG, valid_PG)


def test_values_worked_out_by_hand() -> None:
    # Mean 0.25, sample variance (3 * 0.0625 + 0.5625) / 3 = 0.25, so a standard deviation of 0.5.
    found = advantages([[1.0, 0.0, 0.0, 0.0], [3.0, 1.0, 2.0, 2.0]])
    assert found[0].tolist() == pytest.approx([1.5, -0.5, -0.5, -0.5])
    # Mean 2, sample variance 2 / 3.
    unit = 1 / math.sqrt(2 / 3)
    assert found[1].tolist() == pytest.approx([unit, -unit, 0.0, 0.0])
    assert found.dtype == torch.float32


def test_without_the_division_only_the_mean_is_taken_away() -> None:
    assert advantages([[1.0, 0.0, 0.0, 0.0]], scale_by_std=False)[0].tolist() == pytest.approx(
        [0.75, -0.25, -0.25, -0.25]
    )


@pytest.mark.parametrize("scale_by_std", [True, False])
@pytest.mark.parametrize("rewards", [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [0.1 + 0.2, 0.3, 0.3], [1e4, 1e4, 1e4]])
def test_a_group_without_variance_teaches_exactly_nothing(rewards: list[float], scale_by_std: bool) -> None:
    function = group_normalised if scale_by_std else group_centred
    found = function(torch.tensor([rewards], dtype=torch.float64), torch.ones(1, 3, dtype=torch.bool))
    assert found.tolist() == [[0.0, 0.0, 0.0]]


def test_a_small_but_real_difference_is_no_noise() -> None:
    assert advantages([[0.001, 0.0]])[0].tolist() == pytest.approx([math.sqrt(0.5), -math.sqrt(0.5)])


@pytest.mark.parametrize("junk", [0.0, 1e30, float("nan"), float("inf")])
def test_what_is_not_valid_stays_out_of_mean_and_deviation(junk: float) -> None:
    shortened = advantages([[1.0, junk, 0.0, 0.0, junk, 0.0]], [[True, False, True, True, False, True]])
    whole = advantages([[1.0, 0.0, 0.0, 0.0]])
    assert shortened[0, [0, 2, 3, 5]].tolist() == whole[0].tolist()
    assert shortened[0, [1, 4]].tolist() == [0.0, 0.0]


def test_one_valid_reward_has_nothing_to_be_compared_with() -> None:
    found = advantages([[1.0, 5.0], [2.0, 3.0]], [[True, False], [False, False]])
    assert found.tolist() == [[0.0, 0.0], [0.0, 0.0]]


@given(
    st.lists(st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=6, max_size=6), min_size=1, max_size=4),
    st.booleans(),
)
def test_each_group_is_centred_scaled_and_alone(cells: list[list[tuple[int, bool]]], scale_by_std: bool) -> None:
    rewards = [[float(reward) for reward, _ in row] for row in cells]
    valid = [[known for _, known in row] for row in cells]
    found = advantages(rewards, valid, scale_by_std=scale_by_std)
    for row, (values, known) in enumerate(zip(rewards, valid, strict=True)):
        # Other groups change nothing.
        assert found[row].tolist() == advantages([values], [known], scale_by_std=scale_by_std)[0].tolist()
        kept = found[row][torch.tensor(known)].double()
        assert float(kept.sum()) == pytest.approx(0.0, abs=1e-5)
        if len({value for value, is_known in zip(values, known, strict=True) if is_known}) > 1:
            deviation = torch.tensor([v for v, k in zip(values, known, strict=True) if k]).std()
            assert float(kept.std()) == pytest.approx(1.0 if scale_by_std else float(deviation), rel=1e-5)
        else:
            assert not kept.any()


@pytest.mark.parametrize(
    ("rewards_shape", "valid_shape"), [((2, 3), (2, 4)), ((6,), (6,)), ((1, 2, 3), (1, 2, 3)), ((2, 3), (1, 3))]
)
def test_shapes_are_checked(rewards_shape: tuple[int, ...], valid_shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\[P, G\]"):
        group_normalised(torch.zeros(rewards_shape), torch.ones(valid_shape, dtype=torch.bool))
