"""The losses of a reward model. Pure functions of tensors.

A reward model gives each answer a score. The probability that an answer is better than another one is the sigmoid of
the difference of their scores: Bradley and Terry's model (Ouyang et al. 2022, arXiv:2203.02155, equation 1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpo.algorithm.objective import Terms
from grpo.algorithm.packing import Microbatch
from grpo.algorithm.preference_loss import sigmoid_loss
from grpo.algorithm.transfer import on_device
from grpo.config.fine_tuning.schedules import RewardScheduleConfig
from grpo.deferred import deferred

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = deferred("torch")

# Names of the sums over pairs. A pair of a ranking counts with its weight, so that each ranking counts once.
REWARD_SUMS = ("loss", "comparisons", "rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins")


def plackett_luce_loss(scores_S: Tensor, pairs_P2: Tensor, pair_weights_P: Tensor) -> Tensor:
    """Sum the losses of whole rankings: the negative log-likelihood under Plackett and Luce's model.

    The best answer wins against all others, then the second best against the remaining answers, and so on: the loss of
    a ranking of n answers is the sum over i < n of logsumexp(r_i, ..., r_n) - r_i, divided by its n - 1 terms. So a
    ranking of two answers has Bradley and Terry's loss, and every ranking counts once. Ouyang et al. 2022
    (arXiv:2203.02155) take pairs instead; Song et al. 2023 (arXiv:2306.17492), equation 5, take this likelihood.

    Args:
        scores_S: score of each answer.
        pairs_P2: all pairs of each ranking, the better answer first.
        pair_weights_P: weight of each pair, 1 / (number of pairs of its ranking).
    """
    if not len(pairs_P2):
        return scores_S.sum() * 0
    better_P, worse_P = pairs_P2.unbind(1)
    gaps_SS = scores_S.new_full((len(scores_S), len(scores_S)), -torch.inf)
    gaps_SS = gaps_SS.index_put((better_P, worse_P), scores_S[worse_P] - scores_S[better_P])
    terms_S = torch.logsumexp(torch.nn.functional.pad(gaps_SS, (0, 1)), 1)
    # A ranking with p pairs has n - 1 = (sqrt(1 + 8 p) - 1) / 2 terms. An answer that wins no pair has the term 0.
    counts_P = ((1 + 8 / pair_weights_P).sqrt() - 1) / 2
    weights_S = torch.zeros_like(scores_S).index_put((better_P,), 1 / counts_P)
    return (terms_S * weights_S).sum()


def reward_terms(settings: RewardScheduleConfig, batch: Microbatch, scores_T: Tensor) -> Terms:
    """Compute what a microbatch of whole comparisons adds to an optimizer step.

    The score of an answer is the score at its end token. With `reward.center` c, the term c (r_chosen + r_rejected)^2
    is added for each pair: Eisenstein et al. 2023 (arXiv:2312.09244), section 3.

    Args:
        settings: section with the loss.
        batch: microbatch with pairs.
        scores_T: score at each position, with gradient.
    """
    assert batch.pairs_P2 is not None and batch.pair_weights_P is not None and batch.pair_margins_P is not None
    scores_S = scores_T[on_device(batch.lengths_S.cumsum(0) - 1, scores_T.device)]
    chosen_P, rejected_P = scores_S[batch.pairs_P2[:, 0]], scores_S[batch.pairs_P2[:, 1]]
    weights_P = batch.pair_weights_P
    if settings.loss == "plackett_luce":
        loss_sum = plackett_luce_loss(scores_S, batch.pairs_P2, weights_P)
    else:
        loss_sum = (sigmoid_loss(chosen_P - rejected_P, batch.pair_margins_P) * weights_P).sum()
    # Without a pair, as in a microbatch of filler, the sum still needs a gradient: it is 0 for all parameters.
    loss_sum = loss_sum + settings.center * ((chosen_P + rejected_P).square() * weights_P).sum()
    chosen_P, rejected_P = chosen_P.detach(), rejected_P.detach()
    values = (
        torch.ones_like(chosen_P),
        chosen_P,
        rejected_P,
        (chosen_P > rejected_P).float(),
        chosen_P - rejected_P,
    )
    summed = [(value_P.double() * weights_P).sum() for value_P in values]
    sums = torch.stack([loss_sum.detach().double(), *summed])
    return Terms(loss_sum, sums, sums.new_zeros(1), sums.new_zeros(0))
