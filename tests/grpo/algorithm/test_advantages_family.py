"""Each advantage against values worked out by hand, and what all of them share."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from grpo.algorithm import advantages
from grpo.algorithm.choices import advantages_of
from grpo.config.algorithm import AlgorithmConfig

NAMES = (
    "group_std",
    "group_mean",
    "leave_one_out",
    "reinforce++",
    "reinforce++_baseline",
    "batch_std",
    "maxrl",
    "pass_at_k",
)
WITHIN_GROUPS = tuple(name for name in NAMES if name != "reinforce++")


def of(name: str, rewards: list[list[float]], valid: list[list[bool]] | None = None, **more: int) -> list[list[float]]:
    rewards_PG = torch.tensor(rewards)
    valid_PG = torch.ones_like(rewards_PG, dtype=torch.bool) if valid is None else torch.tensor(valid)
    algorithm = AlgorithmConfig.model_validate({"advantage": name, "pass_k": 2, **more})
    found: list[list[float]] = advantages_of(algorithm, rewards_PG, valid_PG).tolist()
    return found


def test_leave_one_out_compares_with_the_others() -> None:
    # Of 3, 1, 2: the others' means are 1.5, 2.5 and 2.
    assert of("leave_one_out", [[3.0, 1.0, 2.0]])[0] == pytest.approx([1.5, -1.5, 0.0])


def test_reinforce_plus_plus_knows_no_groups() -> None:
    # Mean 1.5, sample variance (2.25 + 0.25 + 0.25 + 2.25) / 3 = 5 / 3.
    unit = 1 / math.sqrt(5 / 3)
    expected = [[1.5 * unit, 0.5 * unit], [-0.5 * unit, -1.5 * unit]]
    found = of("reinforce++", [[3.0, 2.0], [1.0, 0.0]])
    assert found == [pytest.approx(row) for row in expected]
    assert [row for (row,) in of("reinforce++", [[3.0], [2.0], [1.0], [0.0]])] == pytest.approx(
        [*expected[0], *expected[1]]
    )
    # A group without variance is better or worse than the others.
    assert of("reinforce++", [[1.0, 1.0], [0.0, 0.0]])[0][0] > 0 > of("reinforce++", [[1.0, 1.0], [0.0, 0.0]])[1][0]


def test_its_baseline_form_takes_the_group_s_mean_first() -> None:
    # Differences 1, -1, 3, -3: mean 0, sample variance 20 / 3.
    unit = 1 / math.sqrt(20 / 3)
    found = of("reinforce++_baseline", [[2.0, 0.0], [10.0, 4.0]])
    assert found == [pytest.approx([unit, -unit]), pytest.approx([3 * unit, -3 * unit])]


def test_batch_normalised_divides_by_the_deviation_of_rewards() -> None:
    # Rewards 2, 0, 10, 4: mean 4, sample variance (4 + 16 + 36 + 0) / 3 = 56 / 3.
    unit = 1 / math.sqrt(56 / 3)
    found = of("batch_std", [[2.0, 0.0], [10.0, 4.0]])
    assert found == [pytest.approx([unit, -unit]), pytest.approx([3 * unit, -3 * unit])]


def test_maxrl_divides_by_the_mean() -> None:
    # One of four right: (1 - 1/4) / (1/4) = 3, and -1 for the others.
    assert of("maxrl", [[1.0, 0.0, 0.0, 0.0]])[0] == pytest.approx([3.0, -1.0, -1.0, -1.0])
    with pytest.raises(ValueError, match=r"reward of -1; use rewards of 0 or more"):
        of("maxrl", [[1.0, -1.0]])


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("success", [0.2, 0.7])
def test_maxrl_estimates_the_series_of_log_success(size: int, success: float) -> None:
    """In expectation over groups of n: the first n - 1 terms of d log(p) / dp = 1 / p = sum over j of (1 - p)^j."""
    expected = 0.0
    for outcomes in itertools.product([0.0, 1.0], repeat=size):
        chance = math.prod(success if one else 1 - success for one in outcomes)
        scores = [1 / success if one else -1 / (1 - success) for one in outcomes]  # d log(chance of it) / dp
        advantages_of_group = of("maxrl", [list(outcomes)])[0]
        expected += chance * sum(a * s for a, s in zip(advantages_of_group, scores, strict=True)) / size
    assert expected == pytest.approx(sum((1 - success) ** j for j in range(size - 1)), rel=1e-5)


def test_pass_at_k_by_hand() -> None:
    # One of three right, k = 2: two of three pairs hold it. Mean 2/3, deviation sqrt(2)/3. Every pair with the right
    # one earns 1; of the two pairs with a given wrong one, one does.
    found = of("pass_at_k", [[1.0, 0.0, 0.0]])[0]
    assert found == pytest.approx([(1 / 3) / (math.sqrt(2) / 3), *[(1 / 2 - 2 / 3) / (math.sqrt(2) / 3)] * 2])


@given(st.lists(st.integers(0, 3), min_size=3, max_size=6), st.integers(1, 5))
def test_pass_at_k_is_the_mean_over_all_subsets(rewards: list[int], k: int) -> None:
    found = of("pass_at_k", [[float(reward) for reward in rewards]], pass_k=k)[0]
    if k >= len(rewards) or len(set(rewards)) == 1:
        assert found == [0.0] * len(rewards)
        return
    subsets = list(itertools.combinations(range(len(rewards)), k))
    best = torch.tensor([float(max(rewards[i] for i in subset)) for subset in subsets], dtype=torch.float64)
    deviation = float(best.std(correction=0))
    for index, value in enumerate(found):
        own = torch.tensor([float(b) for b, subset in zip(best, subsets, strict=True) if index in subset])
        expected = (float(own.mean()) - float(best.mean())) / deviation if deviation > 1e-6 else 0.0
        assert value == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_better_has_more(name: str) -> None:
    first, second, third = of(name, [[2.0, 1.0, 0.0]])[0]
    assert first > third and first >= second >= third


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rewards", [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [0.1 + 0.2, 0.3, 0.3]])
def test_without_any_variance_there_is_exactly_nothing(name: str, rewards: list[float]) -> None:
    assert of(name, [rewards, rewards]) == [[0.0] * 3] * 2


@pytest.mark.parametrize("name", WITHIN_GROUPS)
def test_a_group_without_variance_gets_nothing_beside_one_with(name: str) -> None:
    found = of(name, [[1.0, 1.0, 1.0], [3.0, 0.0, 1.0]])
    assert found[0] == [0.0] * 3
    assert any(found[1])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("junk", [0.0, 1e30, float("nan"), float("inf"), -5.0])
def test_failed_verdicts_are_as_if_they_had_never_been(name: str, junk: float) -> None:
    mask = [[True, False, True, True, False, True], [True, True, True, True, False, False]]
    found = of(name, [[1.0, junk, 0.0, 0.0, junk, 0.0], [2.0, 0.0, 1.0, 3.0, junk, junk]], mask)
    whole = of(name, [[1.0, 0.0, 0.0, 0.0], [2.0, 0.0, 1.0, 3.0]])
    kept = [torch.tensor(row)[torch.tensor(known_G)].tolist() for row, known_G in zip(found, mask, strict=True)]
    assert kept == [pytest.approx(row, abs=1e-6) for row in whole]
    assert [found[0][1], found[0][4], found[1][4], found[1][5]] == [0.0] * 4


@pytest.mark.parametrize("name", WITHIN_GROUPS)
def test_one_known_reward_has_nothing_to_be_compared_with(name: str) -> None:
    found = of(name, [[1.0, 5.0, 2.0], [2.0, 3.0, 0.0]], [[True, False, False], [True, True, True]])
    assert found[0] == [0.0] * 3


def test_a_group_shortened_to_k_has_one_subset_only() -> None:
    assert of("pass_at_k", [[1.0, 0.0, 0.0]], [[True, True, False]]) == [[0.0] * 3]


CENTRED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "group_std": advantages.group_normalised,
    "leave_one_out": advantages.leave_one_out,
    "reinforce++_baseline": advantages.reinforce_plus_plus_baseline,
    "batch_std": advantages.batch_normalised,
    "maxrl": advantages.maxrl,
}


@given(
    st.lists(st.lists(st.integers(0, 5), min_size=4, max_size=4), min_size=1, max_size=4), st.sampled_from([*CENTRED])
)
def test_a_group_s_advantages_cancel(rewards: list[list[int]], name: str) -> None:
    rewards_PG = torch.tensor(rewards, dtype=torch.float64)
    found = CENTRED[name](rewards_PG, torch.ones_like(rewards_PG, dtype=torch.bool))
    assert found.sum(dim=1).tolist() == pytest.approx([0.0] * len(rewards), abs=1e-5)


def test_informative_groups_differ_in_what_is_known() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    valid = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])
    assert advantages.informative_groups(rewards, valid).tolist() == [True, False, False]


@pytest.mark.parametrize("name", NAMES)
def test_one_valid_reward_in_the_whole_batch_teaches_nothing(name: str) -> None:
    assert of(name, [[5.0, 1.0], [2.0, 3.0]], [[True, False], [False, False]]) == [[0.0, 0.0], [0.0, 0.0]]
