"""The losses of direct preference optimisation. Pure functions of tensors.

A policy is its own reward model (Rafailov et al. 2023, arXiv:2305.18290, section 4): the implicit reward of an answer y
to a prompt x is r(x, y) = beta (log pi(y | x) - log pi_ref(y | x)), up to a term that depends on x alone. The losses
compare the implicit rewards of the two answers of a pair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from grpo.algorithm.objective import Terms
from grpo.algorithm.packing import Microbatch
from grpo.algorithm.totals import Totals
from grpo.algorithm.transfer import on_device
from grpo.config.algorithm import AlgorithmConfig
from grpo.config.fine_tuning.schedules import DpoScheduleConfig
from grpo.deferred import deferred

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = deferred("torch")

# Names of the sums over pairs. A pair of a ranking counts with its weight, so that each ranking counts once.
PAIR_SUMS = (
    "loss",
    "comparisons",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
)


def sigmoid_loss(reward_gap_P: Tensor, margin_P: Tensor | float = 0.0, label_smoothing: float = 0.0) -> Tensor:
    """DPO's loss of each pair: the negative log-likelihood of the preference under Bradley and Terry's model.

    -log sigmoid(h), h = r(chosen) - r(rejected): Rafailov et al. 2023 (arXiv:2305.18290), equation 7. With a margin,
    h - margin stands in place of h: DPO with an offset, Amini et al. 2024 (arXiv:2402.10571), equation 6. With label
    smoothing e, -(1 - e) log sigmoid(h) - e log sigmoid(-h): conservative DPO, Mitchell 2023 ("A note on DPO with noisy
    preferences and relationship to IPO", equation 3).

    Args:
        reward_gap_P: implicit reward of the chosen answer minus that of the rejected answer, [P].
        margin_P: how much larger the gap must be, [P] or a number, 0 or more.
        label_smoothing: share e of wrong labels, in [0, 0.5).
    """
    gap_P = reward_gap_P - margin_P
    log_sigmoid = torch.nn.functional.logsigmoid
    return -(1 - label_smoothing) * log_sigmoid(gap_P) - label_smoothing * log_sigmoid(-gap_P)


def ipo_loss(log_ratio_gap_P: Tensor, beta: float) -> Tensor:
    """IPO's loss of each pair: (gap - 1 / (2 beta))^2, Azar et al. 2023 (arXiv:2310.12036), equation 17.

    The gap is the difference of two log-ratios log(pi / pi_ref) per token. The mean over an answer's tokens in place of
    the sum is not in the paper; TRL's authors confirmed it with the paper's authors, and its results have this form.

    Args:
        log_ratio_gap_P: log-ratio per token of the chosen answer minus that of the rejected answer, [P].
        beta: strength of the regularisation, tau in the paper.
    """
    return (log_ratio_gap_P - 1 / (2 * beta)).square()


def pair_sums(
    settings: DpoScheduleConfig, batch: Microbatch, logps_S: Tensor, chosen_nll: Tensor | float = 0.0
) -> tuple[Tensor, Tensor]:
    """Compute the loss and the metrics of a microbatch's pairs.

    Args:
        settings: section with the loss.
        batch: microbatch with pairs.
        logps_S: log-probability of each answer under the trained policy, in nats, with or without gradient.
        chosen_nll: sum over the comparisons of the best answer's negative log-likelihood per token.

    Returns:
        The sum of the loss over the comparisons, a scalar, and the other sums: float64 [len(PAIR_SUMS)], detached.
    """
    assert batch.pairs_P2 is not None and batch.pair_weights_P is not None
    assert batch.pair_margins_P is not None and batch.reference_S is not None
    chosen_P, rejected_P = batch.pairs_P2.unbind(1)
    log_ratio_S = logps_S - batch.reference_S
    reward_S = settings.beta * log_ratio_S
    if settings.loss == "ipo":
        per_token_S = log_ratio_S / on_device(batch.lengths_S, log_ratio_S.device)
        loss_P = ipo_loss(per_token_S[chosen_P] - per_token_S[rejected_P], settings.beta)
    else:
        gap_P = reward_S[chosen_P] - reward_S[rejected_P]
        loss_P = sigmoid_loss(gap_P, batch.pair_margins_P, settings.label_smoothing)
    # Without a pair, as in a microbatch of filler, the sum still needs a gradient: it is 0 for all parameters.
    loss_sum = (loss_P * batch.pair_weights_P).sum() + settings.sft_weight * chosen_nll
    reward_S, logps_S = reward_S.detach(), logps_S.detach()
    chosen_reward_P, rejected_reward_P = reward_S[chosen_P], reward_S[rejected_P]
    values = (
        torch.ones_like(chosen_reward_P),
        chosen_reward_P,
        rejected_reward_P,
        (chosen_reward_P > rejected_reward_P).float(),
        chosen_reward_P - rejected_reward_P,
        logps_S[chosen_P],
        logps_S[rejected_P],
    )
    summed = [(value_P.double() * batch.pair_weights_P).sum() for value_P in values]
    return loss_sum, torch.stack([loss_sum.detach().double(), *summed])


def preference_terms(settings: DpoScheduleConfig, batch: Microbatch, logprobs_T: Tensor) -> Terms:
    """Compute what a microbatch of whole comparisons adds to an optimizer step.

    The log-likelihood of the best answer, per token, is added with the weight `sft_weight`: Pang et al. 2024
    (arXiv:2404.19733), equation 1.

    Args:
        settings: section with the loss.
        batch: microbatch with pairs. The weight of a token is 1 / length in a comparison's best answer, and else 0.
        logprobs_T: log-probabilities under the trained policy, with gradient.
    """
    count = len(batch.lengths_S)
    index_T = on_device(torch.repeat_interleave(torch.arange(count), batch.lengths_S), logprobs_T.device)
    logps_S = logprobs_T.new_zeros(count).index_add(0, index_T, logprobs_T)
    loss_sum, sums = pair_sums(settings, batch, logps_S, -(logprobs_T * batch.weights_T).sum())
    return Terms(loss_sum, sums, sums.new_zeros(1), sums.new_zeros(0))


class PairTotals(Totals):
    """Sums over microbatches of pairs."""

    def __init__(self, device: torch.device | None = None, names: Sequence[str] = PAIR_SUMS) -> None:
        """Start at zero, on the device of the terms; `names` are the names of the sums."""
        super().__init__(device, names, bins=0)

    def metrics(self, denominator: float, algorithm: AlgorithmConfig | None = None) -> dict[str, float]:
        """Return `preference_metrics` of the sums. Pairs have no `algorithm`."""
        return preference_metrics(self.sums(), denominator)


def preference_metrics(sums: Mapping[str, float], denominator: float) -> dict[str, float]:
    """Return the loss divided by `denominator`, and the means of the other sums over the comparisons."""
    comparisons = sums["comparisons"]
    means = {name: total / comparisons for name, total in sums.items() if "/" in name and comparisons}
    return {"loss": sums["loss"] / denominator, **means}
