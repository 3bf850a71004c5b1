"""Try the user's functions of an objective on a tiny batch before a run starts.

A trial checks shapes, gradients, and which inputs a value depends on (`grpo.algorithm.contracts`). Without this trial,
a function that breaks its contract would train a different objective, without any message.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn

from grpo.algorithm import choices
from grpo.algorithm.choices import BUILT_IN, AlgorithmChoice, Kind, choice
from grpo.algorithm.losses import PolicyLoss, Sequences
from grpo.config.algorithm import AlgorithmConfig
from grpo.deferred import deferred

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = deferred("torch")

# Rewards of three groups. The first has a failed verdict, the second has no variance, and the third has an element of
# padding. `_INVALID` has the places of the failed verdict and of the padding.
_REWARDS = ((1.0, 0.0, 0.5, 0.0), (1.0, 1.0, 1.0, 1.0), (0.0, 1.0, 0.2, 0.0))
_INVALID = ((0, 3), (2, 3))
# Lengths of three sequences, in tokens, and their advantages. The last sequence carries no loss.
_LENGTHS, _ADVANTAGES = (3, 2, 2), (1.0, -0.5, 0.0)
_LOGPROBS = (-0.5, -1.2, -0.3, -0.9, -2.0, -0.7, -1.1)
_DRIFT = (0.3, -0.2, 0.05, -0.4, 0.1, 2.0, -2.0)
_COMPLETIONS = ((3, 1, 0), (0, 0, 0), (2, 4, 5))


def try_functions(algorithm: AlgorithmConfig, longest: int) -> list[str]:
    """Try each of the user's functions.

    Args:
        algorithm: section with the choices.
        longest: length of the longest completion, in tokens.

    Returns:
        The keys of the tried functions.

    Raises:
        ValueError: a function cannot be loaded, lacks the value of an option, raises an error, or breaks its contract;
            or the section has an option that no function takes.
    """
    kinds: list[Kind] = [kind for kind in BUILT_IN if f"algorithm.{kind}" in algorithm.functions]
    functions = {kind: choice(kind, getattr(algorithm, kind)) for kind in kinds}
    _check_options(algorithm, list(functions.values()))
    trials: dict[Kind, Callable[[], None]] = {
        "advantage": lambda: _try_advantage(algorithm, functions["advantage"]),
        "ratio": lambda: _try_ratio(algorithm, functions["ratio"]),
        "aggregation": lambda: _try_aggregation(algorithm, functions["aggregation"], longest),
        "kl": lambda: _try_kl(algorithm, functions["kl"]),
    }
    for kind in kinds:
        try:
            trials[kind]()
        except RuntimeError as problem:
            raise ValueError(f"{problem}, on a tiny batch") from problem
    return list(algorithm.functions)


def _check_options(algorithm: AlgorithmConfig, functions: list[AlgorithmChoice]) -> None:
    taken = [name for function in functions for name in function.keywords]
    for name in algorithm.options:
        if name not in taken:
            near = difflib.get_close_matches(name, taken, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"algorithm.options.{name} is not a keyword-only parameter of your functions{hint}")
    known = algorithm.options.keys() | AlgorithmConfig.model_fields.keys()
    for function in functions:
        if missing := [name for name in function.keywords[: function.required] if name not in known]:
            raise ValueError(f"{function.key} needs a value for {missing[0]}; set algorithm.options.{missing[0]}")
    ratio = next((function for function in functions if function.key.startswith("algorithm.ratio=")), None)
    if ratio and algorithm.dual_clip is not None and "dual_clip" not in ratio.keywords:
        raise ValueError(f"{ratio.key} does not take algorithm.dual_clip={algorithm.dual_clip}; remove that key")


def _try_advantage(algorithm: AlgorithmConfig, chosen: AlgorithmChoice) -> None:
    rewards_PG = torch.tensor(_REWARDS)
    valid_PG = torch.ones_like(rewards_PG, dtype=torch.bool)
    for place in _INVALID:
        valid_PG[place] = False
    before_PG = rewards_PG.clone()
    advantages_PG = choices.advantages_of(algorithm, rewards_PG, valid_PG)
    if not torch.equal(rewards_PG, before_PG):
        _refuse(chosen, "changes the rewards that it is given; work on a copy")
    if not torch.isfinite(advantages_PG).all():
        _refuse(chosen, f"returns numbers that are not finite: {advantages_PG[valid_PG].tolist()}")
    if not advantages_PG.any():
        _refuse(chosen, f"is 0 for every completion of rewards {before_PG.tolist()}, so nothing would be learned")
    _same(chosen, advantages_PG, choices.advantages_of(algorithm, rewards_PG, valid_PG))
    # Change the rewards that are not valid, and add a column of padding.
    other_PG = torch.nn.functional.pad(torch.where(valid_PG, rewards_PG, 7.0), (0, 1), value=-3.0)
    other_PG = choices.advantages_of(algorithm, other_PG, torch.nn.functional.pad(valid_PG, (0, 1)))[:, :-1]
    if not _close(advantages_PG, other_PG):
        _refuse(chosen, "depends on rewards that are not valid or on padding; mask with valid_PG, and count with it")


def _try_ratio(algorithm: AlgorithmConfig, chosen: AlgorithmChoice) -> None:
    old_T = torch.tensor(_LOGPROBS)
    drifted_T = old_T + torch.tensor(_DRIFT)
    loss_T, gradient_T = _policy_term(algorithm, drifted_T, old_T)
    mask_T = _sequences().mask_T
    if loss_T.shape != old_T.shape:
        _refuse(chosen, f"returns a loss of shape {tuple(loss_T.shape)}; expected {tuple(old_T.shape)}")
    # Check the tokens without loss too: 0 times NaN is NaN.
    if not (torch.isfinite(loss_T).all() and torch.isfinite(gradient_T).all()):
        _refuse(chosen, f"has a loss or gradient that is not finite: {loss_T.tolist()}")
    _same(chosen, loss_T, _policy_term(algorithm, drifted_T, old_T)[0])
    # If the present policy equals the old policy, no ratio is clipped.
    _, on_policy_T = _policy_term(algorithm, old_T, old_T)
    good, bad, masked = (float(part.sum()) for part in torch.split(on_policy_T, list(_LENGTHS)))
    if not on_policy_T[: _LENGTHS[0]].any():
        _refuse(
            chosen,
            "has no gradient with respect to logprobs_T where the advantage is positive and both policies are equal",
        )
    if good > 0:
        _refuse(
            chosen,
            "has the wrong sign: minimising it lowers the log-probability of a completion with advantage "
            f"{_ADVANTAGES[0]:g} (the gradient is {good:g}; for advantage {_ADVANTAGES[1]:g}, it is {bad:g}); return "
            "the negative",
        )
    if masked or gradient_T[~mask_T].any():
        _refuse(chosen, "lets a token without loss change other tokens; use sequences.mask_T")
    start = 0
    for number, length in enumerate(_LENGTHS):
        place = slice(start, start + length)
        alone_T, gradient_alone_T = _policy_term(algorithm, drifted_T[place], old_T[place], number)
        if not (_close(alone_T, loss_T[place]) and _close(gradient_alone_T, gradient_T[place])):
            _refuse(
                chosen,
                "gives a sequence another loss or gradient if other sequences are in the batch, so the gradient would "
                "depend on the split of the batch; sum over a sequence with sequences.sum or sequences.mean",
            )
        start += length


def _policy_term(
    algorithm: AlgorithmConfig, logprobs_T: Tensor, old_logprobs_T: Tensor, number: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return the loss of each token, and the gradient of the sum over tokens that carry loss.

    Args:
        algorithm: section with the choices.
        logprobs_T: float, log-probabilities under the present policy.
        old_logprobs_T: float, log-probabilities under the old policy.
        number: index of the sequence to compute alone; None to compute all sequences.
    """
    sequences = _sequences(number)
    lengths, advantages = (_LENGTHS, _ADVANTAGES) if number is None else ((_LENGTHS[number],), (_ADVANTAGES[number],))
    advantages_T = torch.tensor(advantages).repeat_interleave(torch.tensor(lengths))
    logprobs_T = logprobs_T.clone().requires_grad_()
    loss: PolicyLoss = choices.policy_loss(algorithm, logprobs_T, old_logprobs_T, advantages_T, sequences)
    return loss.loss_T.detach(), _gradient((loss.loss_T * sequences.mask_T).sum(), logprobs_T)


def _sequences(number: int | None = None) -> Sequences:
    lengths = torch.tensor(_LENGTHS if number is None else (_LENGTHS[number],))
    index_T = torch.arange(len(lengths)).repeat_interleave(lengths)
    # The last sequence carries no loss.
    mask_T = index_T < 2 if number is None else torch.full_like(index_T, number < 2, dtype=torch.bool)
    return Sequences(index_T, mask_T, len(lengths))


def _gradient(total: Tensor, logprobs_T: Tensor) -> Tensor:
    if not total.requires_grad:
        return torch.zeros_like(logprobs_T)
    (gradient_T,) = torch.autograd.grad(total, logprobs_T, allow_unused=True)
    return torch.zeros_like(logprobs_T) if gradient_T is None else gradient_T


def _try_aggregation(algorithm: AlgorithmConfig, chosen: AlgorithmChoice, longest: int) -> None:
    weigh = choices.aggregation_of(algorithm, longest)
    result = weigh(_COMPLETIONS)
    if not isinstance(result, tuple) or len(result) != 2:
        _refuse(chosen, f"returns {type(result).__name__}; expected (weights, denominator)")
    weights, denominator = result
    shaped = isinstance(weights, Sequence) and all(isinstance(group, Sequence) for group in weights)
    if not shaped or [len(group) for group in weights] != [len(group) for group in _COMPLETIONS]:
        _refuse(chosen, f"returns weights {weights} for lengths {_COMPLETIONS}; expected a number for each length")
    flat = [weight for group in weights for weight in group]
    if not all(isinstance(item, int | float) and math.isfinite(item) and item >= 0 for item in (*flat, denominator)):
        _refuse(chosen, f"returns {weights} and {denominator}; expected finite plain numbers of 0 or more")
    if not denominator or not any(flat):
        _refuse(chosen, f"returns weights {weights} and the denominator {denominator:g} where completions carry loss")
    lengths = [length for group in _COMPLETIONS for length in group]
    if any(weight for weight, length in zip(flat, lengths, strict=True) if not length):
        _refuse(chosen, f"gives a weight to a completion of length 0: {weights}")
    more, other = weigh([*([*group, 0] for group in _COMPLETIONS), [0]])
    if [group[:-1] for group in more[:-1]] != [list(group) for group in weights] or other != denominator:
        _refuse(chosen, "depends on completions of length 0, which carry no loss; leave them out of every count")


def _try_kl(algorithm: AlgorithmConfig, chosen: AlgorithmChoice) -> None:
    reference_T = torch.tensor(_LOGPROBS)
    logprobs_T = (reference_T + torch.tensor(_DRIFT)).requires_grad_()
    kl_T = choices.kl_estimate(algorithm, logprobs_T, reference_T)
    if not torch.isfinite(kl_T).all():
        _refuse(chosen, f"returns numbers that are not finite: {kl_T.tolist()}")
    _same(chosen, kl_T, choices.kl_estimate(algorithm, logprobs_T, reference_T))
    alone_T = choices.kl_estimate(algorithm, logprobs_T[:3], reference_T[:3])
    if not _close(alone_T, kl_T[:3]):
        _refuse(
            chosen,
            "gives a token another value if other tokens are in the batch; the value of a token must not depend on "
            "other tokens",
        )
    if algorithm.kl_in_loss and not algorithm.kl_corrected and not _gradient(kl_T.sum(), logprobs_T).any():
        _refuse(
            chosen,
            "has no gradient with respect to logprobs_T, which algorithm.kl_place=loss needs; compute it from "
            "logprobs_T, or use kl_place=reward",
        )


def _same(chosen: AlgorithmChoice, first: Tensor, second: Tensor) -> None:
    if not torch.equal(first, second):
        _refuse(chosen, "returns other values when it is called again, so no run could be repeated or resumed")


def _close(actual: Tensor, expected: Tensor) -> bool:
    return torch.allclose(actual, expected, rtol=1e-4, atol=1e-6)


def _refuse(chosen: AlgorithmChoice, problem: str) -> NoReturn:
    raise ValueError(f"{chosen.key} {problem} (tried on a tiny batch; docs/objectives.md has the contract)")
