"""The objective's terms: values by hand, and where the gradient flows."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from grpo.algorithm.losses import PolicyLoss, clipped_policy_loss, k3_kl

LOW, HIGH = 0.2, 0.28


def policy_loss(
    ratios: list[float], advantages: list[float], low: float = LOW, high: float = HIGH
) -> tuple[PolicyLoss, Tensor]:
    """The loss at given ratios, and its gradient by the log-probabilities."""
    old_T = torch.linspace(-3.0, -0.5, len(ratios), dtype=torch.float64)
    logprobs_T = (old_T + torch.tensor(ratios, dtype=torch.float64).log()).requires_grad_()
    found = clipped_policy_loss(
        logprobs_T, old_T, torch.tensor(advantages, dtype=torch.float64), clip_low=low, clip_high=high
    )
    (gradient_T,) = torch.autograd.grad(found.loss_T.sum(), logprobs_T)
    return found, gradient_T


def test_values_worked_out_by_hand() -> None:
    ratios, advantages = [1.0, 1.1, 2.0, 0.5, 2.0, 0.5, 1.0], [2.0, 2.0, 2.0, 2.0, -2.0, -2.0, 0.0]
    found, _ = policy_loss(ratios, advantages)
    # Only a ratio that has gone beyond an edge in the direction that pays is held at the edge.
    assert found.loss_T.tolist() == pytest.approx([-2.0, -2.2, -2.56, -1.0, 4.0, 1.6, 0.0])
    assert found.ratio_T.tolist() == pytest.approx(ratios)
    assert not found.ratio_T.requires_grad


def test_descent_raises_what_was_good_and_lowers_what_was_bad() -> None:
    _, gradient_T = policy_loss([1.0, 1.0, 1.0], [1.5, -1.5, 0.0])
    # d(-r A) / d logprob = -r A.
    assert gradient_T.tolist() == pytest.approx([-1.5, 1.5, 0.0])


@pytest.mark.parametrize(
    ("ratio", "advantage", "flows", "edge"),
    [
        (1 + HIGH - 0.01, 1.0, True, None),
        (1 + HIGH + 0.01, 1.0, False, "high"),
        (1 + HIGH + 0.01, -1.0, True, None),
        (1 - LOW + 0.01, -1.0, True, None),
        (1 - LOW - 0.01, -1.0, False, "low"),
        (1 - LOW - 0.01, 1.0, True, None),
        # Between the two widths: a symmetric clip would treat both edges alike.
        (1.24, 1.0, True, None),
        (0.76, -1.0, False, "low"),
    ],
)
def test_the_edges_cut_the_gradient_on_the_side_that_pays(
    ratio: float, advantage: float, flows: bool, edge: str | None
) -> None:
    found, gradient_T = policy_loss([ratio], [advantage])
    assert gradient_T.tolist() == pytest.approx([-ratio * advantage if flows else 0.0])
    assert found.clipped_low_T.tolist() == [edge == "low"]
    assert found.clipped_high_T.tolist() == [edge == "high"]


# An advantage so small that its gradient is no number of its own says nothing of clipping.
ADVANTAGES = st.floats(-3.0, 3.0).filter(lambda advantage: abs(advantage) > 1e-300)


@given(st.floats(0.01, 20.0), ADVANTAGES, st.floats(0.0, 0.9), st.floats(0.0, 2.0))
def test_a_token_is_counted_as_clipped_exactly_where_its_gradient_is_cut(
    ratio: float, advantage: float, low: float, high: float
) -> None:
    if min(abs(ratio - (1 - low)), abs(ratio - (1 + high))) < 1e-9:
        return
    found, gradient_T = policy_loss([ratio], [advantage], low, high)
    clipped = found.clipped_low_T.item() or found.clipped_high_T.item()
    assert clipped == (gradient_T.item() == 0.0)
    # The surrogate is a lower bound of what the unclipped one promises.
    assert found.loss_T.item() >= -ratio * advantage - 1e-9


def test_every_token_is_on_its_own() -> None:
    ratios, advantages = [0.5, 1.0, 1.5, 3.0], [-1.0, 0.5, 2.0, -0.5]
    together, gradient_T = policy_loss(ratios, advantages)
    for index in range(len(ratios)):
        alone, gradient = policy_loss([ratios[index]], [advantages[index]])
        assert together.loss_T[index].item() == pytest.approx(alone.loss_T.item())
        assert gradient_T[index].item() == pytest.approx(gradient.item())


def test_k3_values_and_gradient_worked_out_by_hand() -> None:
    logprobs_T = torch.tensor([-1.0, -1.0, -2.0], dtype=torch.float64, requires_grad=True)
    reference_T = torch.tensor([-1.0, -1.0 - math.log(2), -2.0 + math.log(3)], dtype=torch.float64)
    divergence_T = k3_kl(logprobs_T, reference_T)
    # The ratio reference / policy is 1, 1/2 and 3.
    assert divergence_T.tolist() == pytest.approx([0.0, 0.5 + math.log(2) - 1, 3 - math.log(3) - 1])
    (gradient_T,) = torch.autograd.grad(divergence_T.sum(), logprobs_T)
    # d/d logprob = 1 - ratio: towards the reference wherever they differ.
    assert gradient_T.tolist() == pytest.approx([0.0, 0.5, -2.0])


@given(st.floats(-10.0, 0.0), st.floats(-10.0, 0.0))
def test_k3_is_never_negative(logprob: float, reference: float) -> None:
    found = float(k3_kl(torch.tensor(logprob, dtype=torch.float64), torch.tensor(reference, dtype=torch.float64)))
    assert found >= 0.0 or found == pytest.approx(0.0, abs=1e-12)
    assert (abs(logprob - reference) < 1e-4) or found > 0.0


@pytest.mark.parametrize("difference", [1e-3, -1e-4, 1e-5, -1e-6])
def test_k3_of_a_rounding_difference_is_not_lost_in_float32(difference: float) -> None:
    # Learner and generators that agree differ by so much, and the mismatch alarm is about more.
    found = k3_kl(torch.zeros(1000), torch.full((1000,), difference) * torch.linspace(0.5, 1.5, 1000))
    exact = 0.5 * (difference * torch.linspace(0.5, 1.5, 1000, dtype=torch.float64)) ** 2
    assert float((found >= 0).float().mean()) == 1.0
    assert float(found.double().mean() / exact.mean()) == pytest.approx(1.0, abs=2e-3)


def test_k3_averages_to_the_divergence_under_the_policy() -> None:
    policy = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    reference = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    expected = float((policy * (policy / reference).log()).sum())
    assert float((policy * k3_kl(policy.log(), reference.log())).sum()) == pytest.approx(expected)
