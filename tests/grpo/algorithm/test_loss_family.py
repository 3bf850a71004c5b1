"""Each ratio, divergence and correction: values by hand, signs, edges, and where the gradient flows."""

from __future__ import annotations

import math
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from grpo.algorithm import losses, mismatch
from grpo.algorithm.choices import aggregation_of
from grpo.algorithm.losses import PolicyLoss, Sequences
from grpo.config.algorithm import AlgorithmConfig

# Two sequences: tokens 0 to 2 with a prompt position first, tokens 3 to 5 with one last.
INDEX = torch.tensor([0, 0, 0, 1, 1, 1])
MASK = torch.tensor([False, True, True, True, True, False])
SEQUENCES = Sequences(INDEX, MASK, 2)
LOW, HIGH = 0.2, 0.3


def loss_of(name: str, ratios: list[float], advantages: list[float], **more: Any) -> tuple[PolicyLoss, Tensor]:
    """The loss at given token ratios, and the gradient of its sum over unmasked tokens by the log-probabilities."""
    old_T = torch.linspace(-3.0, -0.5, len(ratios), dtype=torch.float64)
    logprobs_T = (old_T + torch.tensor(ratios, dtype=torch.float64).log()).requires_grad_()
    advantages_T = torch.tensor(advantages, dtype=torch.float64)
    mask_T = MASK if len(ratios) == 6 else torch.ones(len(ratios), dtype=torch.bool)
    sequences = SEQUENCES if len(ratios) == 6 else Sequences(torch.zeros(len(ratios), dtype=torch.int64), mask_T, 1)
    edges = {"clip_low": LOW, "clip_high": HIGH} | more
    match name:
        case "token":
            found = losses.clipped_policy_loss(logprobs_T, old_T, advantages_T, **edges)
        case "cispo":
            found = losses.cispo_loss(logprobs_T, old_T, advantages_T, **edges)
        case "geometric":
            found = losses.geometric_policy_loss(logprobs_T, old_T, advantages_T, sequences, **edges)
        case "soft":
            found = losses.soft_policy_loss(
                logprobs_T, old_T, advantages_T, soft_temperature_positive=1.0, soft_temperature_negative=2.0
            )
        case _:
            found = losses.RATIOS[name](logprobs_T, old_T, advantages_T, sequences, **edges)
    (gradient_T,) = torch.autograd.grad(torch.where(mask_T, found.loss_T, 0.0).sum(), logprobs_T)
    return found, gradient_T


ALL = ("token", "sequence", "sequence_token", "cispo", "geometric", "soft")


@pytest.mark.parametrize("name", ALL)
def test_on_policy_every_ratio_has_the_policy_gradient(name: str) -> None:
    _, gradient_T = loss_of(name, [1.0] * 6, [1.5, 1.5, 1.5, -0.5, -0.5, -0.5])
    # The sum over a sequence of a loss with its 2 unmasked tokens: each token's log-probability moves it by -A.
    assert gradient_T.tolist() == pytest.approx([0.0, -1.5, -1.5, 0.5, 0.5, 0.0])


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("ratio", [0.85, 1.0, 1.2])
def test_descent_raises_what_was_good_and_lowers_what_was_bad(name: str, ratio: float) -> None:
    _, gradient_T = loss_of(name, [ratio] * 6, [2.0, 2.0, 2.0, -2.0, -2.0, -2.0])
    assert all(value < 0 for value in gradient_T[1:3]) and all(value > 0 for value in gradient_T[3:5])
    # What is masked moves nothing.
    assert gradient_T[0] == gradient_T[5] == 0.0


@pytest.mark.parametrize("name", ALL)
def test_what_is_masked_changes_nobody_s_loss(name: str) -> None:
    advantages = [1.0, 1.0, 1.0, -1.0, -1.0, -1.0]
    plain, gradient_T = loss_of(name, [1.0, 1.1, 0.9, 1.1, 1.05, 1.0], advantages)
    other, other_T = loss_of(name, [40.0, 1.1, 0.9, 1.1, 1.05, 0.01], advantages)
    assert plain.loss_T[MASK].tolist() == pytest.approx(other.loss_T[MASK].tolist())
    assert gradient_T.tolist() == pytest.approx(other_T.tolist())


def test_sequences_add_up_what_is_theirs() -> None:
    values_T = torch.tensor([100.0, 1.0, 3.0, 5.0, 8.0, 100.0])
    assert SEQUENCES.sum(values_T).tolist() == [4.0, 4.0, 4.0, 13.0, 13.0, 13.0]
    assert SEQUENCES.mean(values_T).tolist() == [2.0, 2.0, 2.0, 6.5, 6.5, 6.5]
    nobody = Sequences(INDEX, torch.zeros(6, dtype=torch.bool), 2)
    assert nobody.mean(values_T).tolist() == [0.0] * 6


@pytest.mark.parametrize("name", ["sequence", "sequence_token"])
def test_a_sequence_s_ratio_is_the_geometric_mean_of_its_tokens(name: str) -> None:
    found, gradient_T = loss_of(name, [7.0, 1.0, 1.21, 0.81, 1.0, 7.0], [2.0] * 6)
    # sqrt(1 x 1.21) = 1.1 and sqrt(0.81 x 1) = 0.9.
    assert found.ratio_T.tolist() == pytest.approx([1.1] * 3 + [0.9] * 3)
    assert found.loss_T.tolist() == pytest.approx([-2.2] * 3 + [-1.8] * 3)
    assert gradient_T.tolist() == pytest.approx([0.0, -2.2, -2.2, -1.8, -1.8, 0.0])


def test_only_the_token_form_gives_each_token_its_own_advantage() -> None:
    advantages = [0.0, 1.0, 3.0, 0.0, 0.0, 0.0]
    _, own_T = loss_of("sequence_token", [1.0] * 6, advantages)
    _, shared_T = loss_of("sequence", [1.0] * 6, advantages)
    assert own_T[1:3].tolist() == pytest.approx([-1.0, -3.0])
    assert shared_T[1:3].tolist() == pytest.approx([-2.0, -2.0])


@pytest.mark.parametrize("name", ["token", "sequence", "sequence_token"])
@pytest.mark.parametrize(
    ("ratio", "advantage", "edge"),
    [
        (1.31, 1.0, "high"),
        (1.29, 1.0, None),
        (1.31, -1.0, None),
        (0.79, -1.0, "low"),
        (0.81, -1.0, None),
        (0.79, 1.0, None),
    ],
)
def test_both_edges_cut_on_the_side_that_pays(name: str, ratio: float, advantage: float, edge: str | None) -> None:
    found, gradient_T = loss_of(name, [ratio, ratio], [advantage, advantage])
    assert gradient_T.tolist() == pytest.approx([0.0 if edge else -ratio * advantage] * 2)
    assert found.clipped_low_T.tolist() == [edge == "low"] * 2
    assert found.clipped_high_T.tolist() == [edge == "high"] * 2


@pytest.mark.parametrize("name", ["token", "sequence"])
def test_a_third_edge_holds_what_was_bad(name: str) -> None:
    found, gradient_T = loss_of(name, [5.0, 5.0], [-2.0, -2.0], dual_clip=3.0)
    assert found.loss_T.tolist() == [6.0, 6.0] and gradient_T.tolist() == [0.0, 0.0]
    assert found.clipped_high_T.tolist() == [True, True]
    below, gradient_T = loss_of(name, [2.9, 2.9], [-2.0, -2.0], dual_clip=3.0)
    assert below.loss_T.tolist() == pytest.approx([5.8, 5.8]) and gradient_T.tolist() == pytest.approx([5.8, 5.8])
    good, _ = loss_of(name, [5.0, 5.0], [2.0, 2.0], dual_clip=3.0)
    assert good.loss_T.tolist() == pytest.approx([-2.6, -2.6])


def test_cispo_bounds_the_weight_and_cuts_no_gradient() -> None:
    found, gradient_T = loss_of("cispo", [0.5, 1.0, 2.0, 2.0], [1.0, 1.0, 1.0, -1.0])
    assert gradient_T.tolist() == pytest.approx([-0.8, -1.0, -1.3, 1.3])
    assert found.clipped_low_T.tolist() == [True, False, False, False]
    assert found.clipped_high_T.tolist() == [False, False, True, True]
    # clip_low = 1 is no lower edge, as in the paper.
    _, gradient_T = loss_of("cispo", [0.5], [1.0], clip_low=1.0)
    assert gradient_T.tolist() == pytest.approx([-0.5])


def test_gmpo_clips_tokens_before_it_takes_their_mean() -> None:
    found, gradient_T = loss_of("geometric", [2.0, 1.1], [1.0, 1.0])
    ratio = math.sqrt(1.3 * 1.1)
    assert found.loss_T.tolist() == pytest.approx([-ratio] * 2)
    # The clipped token moves nothing; the other half of each of two losses.
    assert gradient_T.tolist() == pytest.approx([0.0, -ratio])
    assert found.clipped_high_T.tolist() == [True, False] and found.ratio_T.tolist() == pytest.approx([2.0, 1.1])
    found, gradient_T = loss_of("geometric", [0.5, 0.9], [-1.0, -1.0])
    ratio = math.sqrt(0.8 * 0.9)
    assert found.loss_T.tolist() == pytest.approx([ratio] * 2) and gradient_T.tolist() == pytest.approx([0.0, ratio])
    assert found.clipped_low_T.tolist() == [True, False]
    # On the side that does not pay there is no edge.
    found, _ = loss_of("geometric", [0.5, 0.5], [1.0, 1.0])
    assert found.loss_T.tolist() == pytest.approx([-0.5] * 2)


def test_sapo_fades_on_both_sides() -> None:
    found, gradient_T = loss_of("soft", [1.0, 3.0, 1.0, 3.0], [1.0, 1.0, -1.0, -1.0])

    def gate(tau: float, ratio: float) -> float:
        return 4 / tau / (1 + math.exp(-tau * (ratio - 1)))

    assert found.loss_T.tolist() == pytest.approx([-gate(1, 1), -gate(1, 3), gate(2, 1), gate(2, 3)])

    def slope(tau: float, ratio: float) -> float:
        s = 1 / (1 + math.exp(-tau * (ratio - 1)))
        return 4 * s * (1 - s) * ratio

    assert gradient_T.tolist() == pytest.approx([-1.0, -slope(1, 3), 1.0, slope(2, 3)])
    assert slope(2, 3) < slope(1, 3)
    assert not found.clipped_low_T.any() and not found.clipped_high_T.any()


def test_divergences_by_hand() -> None:
    logprobs_T = torch.tensor([-1.0, -2.0], dtype=torch.float64, requires_grad=True)
    reference_T = torch.tensor([-1.5, -1.0], dtype=torch.float64)
    expected: dict[Literal["k1", "k2", "k3"], tuple[list[float], list[float]]] = {
        "k1": ([0.5, -1.0], [1.0, 1.0]),
        "k2": ([0.125, 0.5], [0.5, -1.0]),
        "k3": ([math.exp(-0.5) + 0.5 - 1, math.exp(1.0) - 1 - 1], [1 - math.exp(-0.5), 1 - math.exp(1.0)]),
    }
    for name, (values, gradient) in expected.items():
        found_T = losses.KLS[name](logprobs_T, reference_T)
        assert found_T.tolist() == pytest.approx(values), name
        assert torch.autograd.grad(found_T.sum(), logprobs_T)[0].tolist() == pytest.approx(gradient), name


def true_divergence_gradient(logits_V: Tensor, reference_V: Tensor) -> list[float]:
    policy_V = logits_V.softmax(0)
    divergence = (policy_V * (policy_V.log() - reference_V.log())).sum()
    gradient: list[float] = torch.autograd.grad(divergence, logits_V)[0].tolist()
    return gradient


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_corrected_the_expected_gradient_is_the_divergence_s_own(estimator: Literal["k1", "k3"]) -> None:
    logits_V = torch.tensor([0.5, -0.3, 0.1], dtype=torch.float64, requires_grad=True)
    reference_V = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    sampler_V = torch.tensor([0.4, 0.35, 0.25], dtype=torch.float64)
    logprobs_V = logits_V.log_softmax(0)
    kl_V = losses.KLS[estimator](logprobs_V, reference_V.log())
    # The expectation over the sampler, exactly: every token with its probability there.
    expected = (sampler_V * losses.corrected_kl(kl_V, logprobs_V, sampler_V.log())).sum()
    (gradient_V,) = torch.autograd.grad(expected, logits_V)
    assert gradient_V.tolist() == pytest.approx(true_divergence_gradient(logits_V, reference_V))


@pytest.mark.parametrize(("estimator", "is_right"), [("k1", False), ("k2", True), ("k3", False)])
def test_uncorrected_only_k2_has_it_on_policy(estimator: Literal["k1", "k2", "k3"], is_right: bool) -> None:
    logits_V = torch.tensor([0.5, -0.3, 0.1], dtype=torch.float64, requires_grad=True)
    reference_V = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    kl_V = losses.KLS[estimator](logits_V.log_softmax(0), reference_V.log())
    (gradient_V,) = torch.autograd.grad((logits_V.softmax(0).detach() * kl_V).sum(), logits_V)
    assert (gradient_V.tolist() == pytest.approx(true_divergence_gradient(logits_V, reference_V))) is is_right
    if estimator == "k1":
        assert gradient_V.tolist() == pytest.approx([0.0] * 3, abs=1e-12)


LOG_RATIO = torch.tensor([9.0, 4.0, 0.5, 0.25, 0.5, 9.0], dtype=torch.float64).log()


def test_importance_weights_are_truncated_per_token_or_sequence() -> None:
    per_token = mismatch.truncated_weight(LOG_RATIO, SEQUENCES, over="token", cap=2.0)
    assert per_token[MASK].tolist() == pytest.approx([2.0, 0.5, 0.25, 0.5])
    per_sequence = mismatch.truncated_weight(LOG_RATIO, SEQUENCES, over="sequence", cap=1.5)
    # 4 x 0.5 = 2 and 0.25 x 0.5 = 0.125.
    assert per_sequence[MASK].tolist() == pytest.approx([1.5, 1.5, 0.125, 0.125])


@pytest.mark.parametrize(
    ("over", "low", "high", "expected"),
    [
        ("token", 0.5, 3.9, [False, True, False, True]),
        ("token", 0.5, 4.1, [True, True, False, True]),
        # Products 2 and 0.125.
        ("sequence", 0.13, 3.0, [True, True, False, False]),
        ("sequence", 0.12, 1.9, [False, False, True, True]),
        # Geometric means 1.41 and 0.35.
        ("geometric", 0.36, 1.5, [True, True, False, False]),
        ("geometric", 0.35, 1.4, [False, False, True, True]),
    ],
)
def test_masks_keep_what_lies_between(
    over: Literal["token", "sequence", "geometric"], low: float, high: float, expected: list[bool]
) -> None:
    kept_T = mismatch.kept(LOG_RATIO + 1e-9, SEQUENCES, over=over, low=low, high=high)
    assert kept_T[MASK].tolist() == expected


def test_corrections_have_no_gradient() -> None:
    log_ratio_T = LOG_RATIO.clone().requires_grad_()
    for over in ("token", "sequence"):
        assert not mismatch.truncated_weight(log_ratio_T, SEQUENCES, over=over, cap=2.0).requires_grad


LENGTHS = [[2, 3, 0], [0, 0, 0], [5, 1, 4]]


@pytest.mark.parametrize(
    ("name", "weights", "denominator"),
    [
        ("token_mean", [[1, 1, 0], [0, 0, 0], [1, 1, 1]], 15),
        ("sequence_mean", [[1 / 2, 1 / 3, 0], [0, 0, 0], [1 / 5, 1, 1 / 4]], 5),
        ("constant", [[1, 1, 0], [0, 0, 0], [1, 1, 1]], 50),
        ("prompt_mean", [[1 / 5, 1 / 5, 0], [0, 0, 0], [1 / 10, 1 / 10, 1 / 10]], 2),
    ],
)
def test_aggregations_by_hand(
    name: Literal["token_mean", "sequence_mean", "constant", "prompt_mean"],
    weights: list[list[float]],
    denominator: float,
) -> None:
    found = aggregation_of(AlgorithmConfig(aggregation=name), 10)(LENGTHS)
    assert found[0] == [pytest.approx(row) for row in weights]
    assert found[1] == denominator


def test_where_nothing_counts_the_denominator_is_zero() -> None:
    for name in ("token_mean", "sequence_mean", "constant", "prompt_mean"):
        assert aggregation_of(AlgorithmConfig(aggregation=name), 10)([[0, 0]]) == ([[0.0, 0.0]], 0.0)
