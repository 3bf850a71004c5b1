"""Find the function for each choice in the section `algorithm`: a built-in function, or a user's function.

Built-in functions and users' functions are called in the same way: tensors are passed by position, and options by
keyword (`grpo.algorithm.contracts`). The first line of the function's docstring describes the choice.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from grpo.algorithm import advantages, aggregation, contracts, losses
from grpo.algorithm.losses import PolicyLoss, Sequences
from grpo.config.algorithm import AlgorithmConfig
from grpo.config.section import names_code
from grpo.deferred import deferred
from rewards.named_code import absolute_name, locate
from rewards.raised import describe

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = deferred("torch")

Kind = Literal["advantage", "ratio", "aggregation", "kl"]
BUILT_IN: Mapping[Kind, Mapping[str, Callable[..., Any]]] = {
    "advantage": advantages.BUILT_IN,
    "ratio": losses.RATIOS,
    "aggregation": aggregation.BUILT_IN,
    "kl": losses.KLS,
}
# The arguments that a function gets by position (`grpo.algorithm.contracts`). A function may omit `sequences`.
_GIVEN: Mapping[Kind, tuple[str, ...]] = {
    "advantage": ("rewards_PG", "valid_PG"),
    "ratio": ("logprobs_T", "old_logprobs_T", "advantages_T", "sequences"),
    "aggregation": ("lengths",),
    "kl": ("logprobs_T", "reference_logprobs_T"),
}


@dataclass(frozen=True, slots=True)
class AlgorithmChoice:
    """One choice of the objective.

    Attributes:
        key: config key and name of the choice, for messages.
        is_users: True if the user has written the function.
        function: the function that computes the choice.
        positional: number of values that the function takes by position.
        keywords: names of the function's options. Options without a default come first.
        required: number of options without a default.
    """

    key: str
    is_users: bool
    function: Callable[..., Any]
    positional: int
    keywords: tuple[str, ...]
    required: int

    @property
    def said(self) -> str:
        """The first line of the function's docstring, without the full stop; empty if there is no docstring."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0].removesuffix(".")

    def __call__(self, algorithm: AlgorithmConfig, *values: object, **defaults: object) -> Any:
        """Call the function with its options.

        Args:
            algorithm: section with the options. A value in `algorithm.options` replaces a key of the section.
            values: positional arguments.
            defaults: values for options that the section does not set.

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


def choice(kind: Kind, name: str) -> AlgorithmChoice:
    """Return the function of a choice.

    Raises:
        ValueError: the user's function cannot be loaded, or its parameters do not match its contract.
    """
    return _choice(kind, absolute_name(name))


@functools.cache
def _choice(kind: Kind, name: str) -> AlgorithmChoice:
    key = f"algorithm.{kind}={name}"
    function = locate(name, key) if names_code(name) else BUILT_IN[kind][name]
    parameters = inspect.signature(function).parameters.values()
    by_position = [item for item in parameters if item.kind in (item.POSITIONAL_ONLY, item.POSITIONAL_OR_KEYWORD)]
    takes_any = any(item.kind is item.VAR_POSITIONAL for item in parameters)
    most = len(_GIVEN[kind])
    positional = most if takes_any else min(len(by_position), most)
    least = most - (kind == "ratio")
    if positional < least or any(item.default is item.empty for item in by_position[most:]):
        names = ", ".join(item.name for item in by_position)
        raise ValueError(
            f"{key} takes ({names}) by position; expected ({', '.join(_GIVEN[kind])}) and options after a *"
        )
    keywords = [item for item in parameters if item.kind is item.KEYWORD_ONLY]
    keywords.sort(key=lambda item: item.default is not item.empty)
    required = sum(item.default is item.empty for item in keywords)
    return AlgorithmChoice(key, names_code(name), function, positional, tuple(item.name for item in keywords), required)


def load_on_rank(algorithm: AlgorithmConfig) -> None:
    """Load the functions that a learner rank calls. So a missing file causes an error at start-up, not in a step.

    Raises:
        ValueError: a function cannot be loaded.
    """
    choice("ratio", algorithm.ratio)
    if algorithm.kl_in_loss:
        choice("kl", algorithm.kl)


def said(key: str) -> dict[str, str]:
    """Return a description of each built-in choice of a key, by the choice's name.

    The result is empty if the key is not a choice of the objective.
    """
    kind = key.removeprefix("algorithm.")
    matching = {known: names for known, names in BUILT_IN.items() if known == kind}
    return {name: choice(known, name).said for known, names in matching.items() for name in names}


def advantages_of(algorithm: AlgorithmConfig, rewards_PG: Tensor, valid_PG: Tensor) -> Tensor:
    """Compute the configured advantage of each rollout: float32 [P, G], 0 if not valid.

    Args:
        algorithm: section with the choice.
        rewards_PG: float [prompts, completions of a group], any value if not valid.
        valid_PG: bool, same shape; False if a verdict failed or the element is padding.

    Raises:
        ValueError: the shapes differ, or a valid reward is negative and the advantage is `maxrl`.
        RuntimeError: the user's function raised, or returned a tensor of another shape.
    """
    chosen = choice("advantage", algorithm.advantage)
    advantages_PG = chosen(algorithm, rewards_PG, valid_PG)
    if not chosen.is_users:
        return advantages_PG  # type: ignore[no-any-return]
    return torch.where(valid_PG, _shaped(chosen, advantages_PG, rewards_PG), 0.0).detach().float()


def policy_loss(
    algorithm: AlgorithmConfig,
    logprobs_T: Tensor,
    old_logprobs_T: Tensor,
    advantages_T: Tensor,
    sequences: Sequences | None,
) -> PolicyLoss:
    """Compute the configured policy term of each token.

    Raises:
        RuntimeError: the user's function raised, or returned a tensor of another shape.
    """
    chosen = choice("ratio", algorithm.ratio)
    loss = chosen(algorithm, logprobs_T, old_logprobs_T, advantages_T, sequences)
    if isinstance(loss, PolicyLoss):
        return loss
    nothing_T = torch.zeros_like(logprobs_T, dtype=torch.bool)
    ratio_T = torch.exp(logprobs_T - old_logprobs_T).detach()
    return PolicyLoss(_shaped(chosen, loss, logprobs_T), ratio_T, nothing_T, nothing_T)


def looks_at_sequences(algorithm: AlgorithmConfig) -> bool:
    """Return True if the policy term or a correction needs to know which tokens form a sequence."""
    return (
        choice("ratio", algorithm.ratio).positional == len(_GIVEN["ratio"])
        or algorithm.importance_weight != "none"
        or algorithm.mismatch_mask != "none"
    )


def kl_estimate(algorithm: AlgorithmConfig, logprobs_T: Tensor, reference_logprobs_T: Tensor) -> Tensor:
    """Compute the configured estimate of KL(policy || reference) at each token.

    Raises:
        RuntimeError: the user's function raised, or returned a tensor of another shape.
    """
    chosen = choice("kl", algorithm.kl)
    return _shaped(chosen, chosen(algorithm, logprobs_T, reference_logprobs_T), logprobs_T)


def aggregation_of(algorithm: AlgorithmConfig, longest: int) -> contracts.Aggregation:
    """Return the configured aggregation. `longest` is the default length divisor, in tokens."""
    chosen = choice("aggregation", algorithm.aggregation)
    return lambda lengths: chosen(algorithm, lengths, length_divisor=longest)


def _shaped(chosen: AlgorithmChoice, result: object, like: Tensor) -> Tensor:
    if not isinstance(result, torch.Tensor):
        raise RuntimeError(f"{chosen.key} returned {type(result).__name__}; expected a tensor")
    if result.shape != like.shape:
        raise RuntimeError(f"{chosen.key} returned shape {tuple(result.shape)}; expected {tuple(like.shape)}")
    return result
