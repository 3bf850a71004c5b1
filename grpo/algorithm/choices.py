"""From a choice in the section `algorithm` to the function that computes it: a built-in function, or a user's.

Both are called alike: tensors by position, options by keyword (`grpo.algorithm.contracts`). What is said of a choice
is the first line of its function's docstring.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from grpo.algorithm import advantages, aggregation, contracts, losses
from grpo.algorithm.losses import PolicyLoss, Sequences
from grpo.config.algorithm import AlgorithmConfig
from grpo.config.section import names_code
from rewards.named_code import absolute_name, locate
from rewards.raised import describe

Kind = Literal["advantage", "ratio", "aggregation", "kl"]
BUILT_IN: Mapping[Kind, Mapping[str, Callable[..., Any]]] = {
    "advantage": advantages.BUILT_IN,
    "ratio": losses.RATIOS,
    "aggregation": aggregation.BUILT_IN,
    "kl": losses.KLS,
}
# What a function gets by position (`grpo.algorithm.contracts`). The sequences may be left out.
_GIVEN: Mapping[Kind, tuple[str, ...]] = {
    "advantage": ("rewards_PG", "valid_PG"),
    "ratio": ("logprobs_T", "old_logprobs_T", "advantages_T", "sequences"),
    "aggregation": ("lengths",),
    "kl": ("logprobs_T", "reference_logprobs_T"),
}


@dataclass(frozen=True, slots=True)
class Choice:
    """One choice of the objective.

    Attributes:
        key: its place in the config, with its name, for messages.
        is_users: whether the function is the user's.
        function: computes it.
        positional: values that the function takes by position.
        keywords: names of its options, those without a default first.
        required: how many of the options have no default.
    """

    key: str
    is_users: bool
    function: Callable[..., Any]
    positional: int
    keywords: tuple[str, ...]
    required: int

    @property
    def said(self) -> str:
        """The first line of the function's docstring, without its full stop; empty where it has none."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0].removesuffix(".")

    def __call__(self, algorithm: AlgorithmConfig, *values: object, **defaults: object) -> Any:
        """Call the function with its options.

        Args:
            algorithm: has the options; those in `algorithm.options` come first.
            values: by position.
            defaults: options that the section leaves open.

        Raises:
            RuntimeError: the user's function raised.
        """
        options = {name: algorithm.options[name] for name in self.keywords if name in algorithm.options}
        for name in self.keywords:
            if name not in options and name in AlgorithmConfig.model_fields:
                value = getattr(algorithm, name)
                options[name] = defaults.get(name) if value is None else value
        if not self.is_users:
            return self.function(*values[: self.positional], **options)
        try:
            return self.function(*values[: self.positional], **options)
        except Exception as problem:
            raise RuntimeError(f"{self.key} raised {describe(problem)}") from problem


def choice(kind: Kind, name: str) -> Choice:
    """The function of a choice.

    Raises:
        ValueError: the user's function cannot be loaded, or does not take what its contract gives.
    """
    return _choice(kind, absolute_name(name))


@functools.cache
def _choice(kind: Kind, name: str) -> Choice:
    key = f"algorithm.{kind}={name}"
    function = locate(name, key) if names_code(name) else BUILT_IN[kind][name]
    parameters = inspect.signature(function).parameters.values()
    by_position = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    takes_any = any(one.kind is one.VAR_POSITIONAL for one in parameters)
    most = len(_GIVEN[kind])
    positional = most if takes_any else min(len(by_position), most)
    least = most - (kind == "ratio")
    if positional < least or any(one.default is one.empty for one in by_position[most:]):
        names = ", ".join(one.name for one in by_position)
        raise ValueError(f"{key} takes ({names}) by position; expected ({', '.join(_GIVEN[kind])}), options behind a *")
    keywords = [one for one in parameters if one.kind is one.KEYWORD_ONLY]
    keywords.sort(key=lambda one: one.default is not one.empty)
    required = sum(one.default is one.empty for one in keywords)
    return Choice(key, names_code(name), function, positional, tuple(one.name for one in keywords), required)


def load_on_rank(algorithm: AlgorithmConfig) -> None:
    """Load what a learner rank calls, so that a missing file shows when the rank starts and not in the first step.

    Raises:
        ValueError: a function cannot be loaded.
    """
    choice("ratio", algorithm.ratio)
    if algorithm.kl_in_loss:
        choice("kl", algorithm.kl)


def said(key: str) -> dict[str, str]:
    """What each built-in choice of a key computes, by name; empty for a key that is no choice of the objective."""
    kind = key.removeprefix("algorithm.")
    found = {one: names for one, names in BUILT_IN.items() if one == kind}
    return {name: choice(one, name).said for one, names in found.items() for name in names}


def advantages_of(algorithm: AlgorithmConfig, rewards_PG: Tensor, valid_PG: Tensor) -> Tensor:
    """The configured advantage of each rollout: float32 [P, G], 0 where not valid.

    Args:
        algorithm: with the choice.
        rewards_PG: float [prompts, completions of a group], any value where not valid.
        valid_PG: bool, same shape; False where a verdict failed or the row is padding.

    Raises:
        ValueError: the shapes differ, or a valid reward is negative and the advantage is `maxrl`.
        RuntimeError: the user's function raised, or returned a tensor of another shape.
    """
    chosen = choice("advantage", algorithm.advantage)
    found = chosen(algorithm, rewards_PG, valid_PG)
    if not chosen.is_users:
        return found  # type: ignore[no-any-return]
    return torch.where(valid_PG, _shaped(chosen, found, rewards_PG), 0.0).detach().float()


def policy_loss(
    algorithm: AlgorithmConfig,
    logprobs_T: Tensor,
    old_logprobs_T: Tensor,
    advantages_T: Tensor,
    sequences: Sequences | None,
) -> PolicyLoss:
    """The configured policy term of each token.

    Raises:
        RuntimeError: the user's function raised, or returned a tensor of another shape.
    """
    chosen = choice("ratio", algorithm.ratio)
    found = chosen(algorithm, logprobs_T, old_logprobs_T, advantages_T, sequences)
    if isinstance(found, PolicyLoss):
        return found
    nothing_T = torch.zeros_like(logprobs_T, dtype=torch.bool)
    ratio_T = torch.exp(logprobs_T - old_logprobs_T).detach()
    return PolicyLoss(_shaped(chosen, found, logprobs_T), ratio_T, nothing_T, nothing_T)


def looks_at_sequences(algorithm: AlgorithmConfig) -> bool:
    """Whether the policy term or a correction needs to know which tokens belong together."""
    return (
        choice("ratio", algorithm.ratio).positional == len(_GIVEN["ratio"])
        or algorithm.importance_weight != "none"
        or algorithm.mismatch_mask != "none"
    )


def kl_estimate(algorithm: AlgorithmConfig, logprobs_T: Tensor, reference_logprobs_T: Tensor) -> Tensor:
    """The configured estimate of KL(policy || reference) at each token.

    Raises:
        RuntimeError: the user's function raised, or returned a tensor of another shape.
    """
    chosen = choice("kl", algorithm.kl)
    return _shaped(chosen, chosen(algorithm, logprobs_T, reference_logprobs_T), logprobs_T)


def aggregation_of(algorithm: AlgorithmConfig, longest: int) -> contracts.Aggregation:
    """The configured aggregation; `longest` is the length divisor where the section names none, in tokens."""
    chosen = choice("aggregation", algorithm.aggregation)
    return lambda lengths: chosen(algorithm, lengths, length_divisor=longest)


def _shaped(chosen: Choice, found: object, like: Tensor) -> Tensor:
    if not isinstance(found, Tensor):
        raise RuntimeError(f"{chosen.key} returned {type(found).__name__}; expected a tensor")
    if found.shape != like.shape:
        raise RuntimeError(f"{chosen.key} returned shape {tuple(found.shape)}; expected {tuple(like.shape)}")
    return found
