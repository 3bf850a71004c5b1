"""The section `algorithm`: the objective. Its choices do not depend on each other; a preset sets several of them.

Equations, papers and advice are in `docs/objectives.md`; the functions are those of `grpo.algorithm.advantages`,
`grpo.algorithm.losses`, `grpo.algorithm.mismatch` and `grpo.algorithm.aggregation`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from grpo.config.presets import PRESETS, Preset
from grpo.config.section import FunctionName, Positive, Section, names_code
from grpo.config.signals.teacher import TeacherConfig
from rewards.named_code import absolute_name

Advantage = Literal[
    "group_std",
    "group_mean",
    "leave_one_out",
    "reinforce++",
    "reinforce++_baseline",
    "batch_std",
    "maxrl",
    "pass_at_k",
]
Ratio = Literal["token", "sequence", "sequence_token", "cispo", "geometric", "soft"]
Aggregation = Literal["token_mean", "sequence_mean", "constant", "prompt_mean"]
KL = Literal["none", "k1", "k2", "k3"]
NotNegative = Annotated[float, Field(ge=0)]
AboveZero = Annotated[float, Field(gt=0)]

# Advantages that compare a completion with the others of its group.
_NEEDS_GROUP = frozenset(get_args(Advantage)) - {"reinforce++"}
# Ratios with the two edges of PPO. A third edge can be added to them.
_TWO_EDGES = ("token", "sequence", "sequence_token")
# A larger upper edge is taken for a percentage. CISPO's edge bounds a weight and not a step, so it may be larger.
_PERCENT = 10.0


class TurnRewardsConfig(Section):
    """Advantages of turns, from the rewards that the environment gives for turns."""

    discount: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Factor of a later turn's reward, for each turn between."""


class AlgorithmConfig(Section):
    """The objective. By default: GRPO's advantage, DAPO's clip and token mean, no KL."""

    preset: Preset | None = None
    """A method by its name; keys given beside it are kept."""
    advantage: Annotated[str, FunctionName(get_args(Advantage))] = "group_std"
    """How a completion is compared with others."""
    normalise_rewards: Literal["together", "apart"] = "together"
    """`apart`: the reward of each verifier is normalised over its group before the rewards are summed, so that none
    drowns the others (GDPO, arXiv:2601.05242). `together`: they are summed as they are."""
    turn_rewards: TurnRewardsConfig | None = None
    """If set (`{}` or `{discount: 0.9}`), each turn of a conversation has its own advantage, where the environment
    rewards turns. By default all sampled tokens have the advantage of the outcome."""
    supervision: Literal["outcome", "process"] = "outcome"
    """`outcome`: all tokens of a completion have the advantage of its reward. `process`: verifiers score steps, and a
    token's advantage is the sum over the steps that end at the token or after it."""
    teacher: TeacherConfig | None = None
    """If set (`{path: ...}`), a teacher's scores of the sampled tokens are added to their advantages."""
    pass_k: Positive = 4
    """k of `pass_at_k`."""
    ratio: Annotated[str, FunctionName(get_args(Ratio))] = "token"
    """The policy term: what the importance ratio is taken of, and how it is bounded."""
    clip_low: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Distance of the ratio's lower edge from 1."""
    clip_high: NotNegative = 0.28
    """Distance of the ratio's upper edge from 1."""
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    """Where the advantage is negative, the loss grows no further than this ratio; None leaves it open."""
    soft_temperature_positive: AboveZero = 1.0
    """`soft`: steepness of the gate where the advantage is positive."""
    soft_temperature_negative: AboveZero = 1.05
    """`soft`: steepness of the gate where the advantage is not positive."""
    aggregation: Annotated[str, FunctionName(get_args(Aggregation))] = "token_mean"
    """How tokens are weighted against each other."""
    length_divisor: Positive | None = None
    """`constant`: each completion's sum is divided by this; by default rollout.max_completion_tokens."""
    kl: Annotated[str, FunctionName(get_args(KL))] = "none"
    """Estimator of the divergence from the reference."""
    kl_coefficient: NotNegative = 0.0
    """Weight of the divergence; above 0 wherever `kl` names an estimator."""
    kl_place: Literal["loss", "reward"] = "loss"
    """Where the divergence is added."""
    kl_corrected: bool = False
    """In the loss: multiply by the ratio to the sampler, which makes the gradient the divergence's own."""
    reference_refresh: Positive | None = None
    """Steps after which the reference becomes the present policy; None keeps it as it started."""
    entropy_coefficient: float = 0.0
    """Weight of the policy's entropy, which is added to what is maximised."""
    proximal: Literal["rollout", "recomputed"] = "rollout"
    """What the ratio's denominator is: the sampler's log-probabilities, or the learner's at the start of the step."""
    importance_weight: Literal["none", "token", "sequence"] = "none"
    """Truncated importance sampling from the learner to the sampler; needs `proximal: recomputed`."""
    importance_cap: AboveZero = 2.0
    """Largest importance weight."""
    mismatch_mask: Literal["none", "token", "sequence", "geometric"] = "none"
    """Leave out tokens (IcePop), or sequences by the product or geometric mean of their ratios, that are outside."""
    mask_low: NotNegative = 0.5
    """Smallest ratio to the sampler that is kept."""
    mask_high: AboveZero = 5.0
    """Largest ratio to the sampler that is kept."""
    overlong_filter: bool = False
    """Completions cut at the length limit carry no loss; they stay in their group's statistics."""
    refill_rounds: Annotated[int, Field(ge=0)] = 0
    """Dynamic sampling: how often more prompts are asked in place of groups without variance, which carry no loss."""
    minibatches: Positive = 1
    """Optimizer steps on each batch of rollouts."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of your functions (docs/objectives.md); keys of this section reach them by their names."""

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, data: Any) -> Any:
        """Fill in the settings of the preset that the user has not set."""
        if isinstance(data, dict) and isinstance(data.get("preset"), str):
            return PRESETS.get(data["preset"], {}) | data
        return data

    @property
    def functions(self) -> dict[str, str]:
        """The user's functions by their keys."""
        named = {key: getattr(self, key) for key in ("advantage", "ratio", "aggregation", "kl")}
        return {f"algorithm.{key}": name for key, name in named.items() if names_code(name)}

    def with_absolute_files(self) -> AlgorithmConfig:
        """A copy with absolute paths to the files of functions, for a process that works in another folder."""
        return self.model_copy(
            update={key.removeprefix("algorithm."): absolute_name(name) for key, name in self.functions.items()}
        )

    @property
    def needs_reference(self) -> bool:
        """Whether the run holds a reference policy."""
        return self.kl != "none" and self.kl_coefficient > 0

    @property
    def kl_in_loss(self) -> bool:
        """Whether the loss has a term of the divergence."""
        return self.needs_reference and self.kl_place == "loss"

    @property
    def kl_in_reward(self) -> bool:
        """Whether the divergence lowers the reward."""
        return self.needs_reference and self.kl_place == "reward"

    @property
    def only_advantages_teach(self) -> bool:
        """Whether a completion without advantage adds nothing, because each loss term is a multiple of the advantage.

        It is unknown for a user's policy term, so the result is then False.
        """
        return not self.kl_in_loss and not self.entropy_coefficient and not names_code(self.ratio)

    @property
    def corrects_lag(self) -> bool:
        """Whether the loss weighs or drops tokens of older versions by the change of the policy since their sampling.

        A user's policy term is assumed to do so.
        """
        if self.mismatch_mask != "none" or names_code(self.ratio):
            return True
        return self.ratio == "cispo" if self.proximal == "rollout" else self.importance_weight != "none"

    def problems(self, group_size: int) -> Iterator[str]:
        """Find problems between several keys, each with its remedy."""
        if group_size < 2 and self.advantage in _NEEDS_GROUP:
            yield (
                f"rollout.group_size=1 gives a completion no other completion to compare with, so every advantage of "
                f"algorithm.advantage={self.advantage} is 0; use 2 or more, or algorithm.advantage=reinforce++"
            )
        if self.advantage == "pass_at_k" and self.pass_k >= group_size:
            yield (
                f"algorithm.pass_k={self.pass_k} must be smaller than rollout.group_size={group_size}, or every "
                "choice of k completions is the whole group; lower pass_k or raise group_size"
            )
        if self.turn_rewards is not None and self.advantage in ("pass_at_k", "maxrl"):
            yield (
                f"algorithm.turn_rewards compares turns, and algorithm.advantage={self.advantage} is defined for whole "
                "completions only; use algorithm.advantage=group_std, or remove turn_rewards"
            )
        if self.supervision == "process":
            yield from self._process_problems()
        yield from self._kl_problems()
        yield from self._mismatch_problems()
        yield from self._option_problems()
        if self.dual_clip is not None and self.ratio not in _TWO_EDGES and not names_code(self.ratio):
            yield (
                f"algorithm.dual_clip={self.dual_clip} adds an edge to a clipped ratio, but algorithm.ratio="
                f"{self.ratio} does not clip; remove dual_clip, or use a ratio of {', '.join(_TWO_EDGES)}"
            )
        if self.dual_clip is not None and self.dual_clip <= 1 + self.clip_high:
            yield (
                f"algorithm.dual_clip={self.dual_clip} must lie above the upper edge 1 + algorithm.clip_high="
                f"{1 + self.clip_high:g}; 3 is usual"
            )
        if self.ratio not in ("cispo", "soft") and not names_code(self.ratio) and self.clip_high >= _PERCENT:
            yield (
                f"algorithm.clip_high={self.clip_high:g} lets algorithm.ratio={self.ratio} grow up to "
                f"{1 + self.clip_high:g} before it is clipped; it is a distance from 1, no percentage; DAPO's is 0.28"
            )

    def _process_problems(self) -> Iterator[str]:
        process = "algorithm.supervision=process"
        if self.advantage in ("pass_at_k", "maxrl"):
            yield (
                f"{process} compares steps, and algorithm.advantage={self.advantage} is defined for whole completions "
                "only; use algorithm.advantage=group_std, or supervision=outcome"
            )
        if self.turn_rewards is not None:
            yield f"{process} and algorithm.turn_rewards both give advantages to parts; remove one of the two"
        if self.refill_rounds:
            yield (
                f"algorithm.refill_rounds={self.refill_rounds} replaces groups whose completions have equal rewards, "
                f"but with {process} their steps may differ; set refill_rounds=0, or supervision=outcome"
            )
        if self.kl_in_reward:
            yield f"{process} has no reward of the whole completion for a divergence; set algorithm.kl_place=loss"

    def _option_problems(self) -> Iterator[str]:
        if self.options and not self.functions:
            yield (
                f"algorithm.options={self.options} are for your functions, but algorithm names no function; name a "
                "function as file.py:function, or remove the options"
            )
        for name in self.options.keys() & AlgorithmConfig.model_fields.keys():
            yield f"algorithm.options.{name}: {name} is a key of algorithm itself; set algorithm.{name}"

    def _kl_problems(self) -> Iterator[str]:
        if self.kl == "none" and self.kl_coefficient > 0:
            yield (
                f"algorithm.kl_coefficient={self.kl_coefficient:g} has no reference to measure from, because "
                "algorithm.kl is none; set algorithm.kl=k3, or the coefficient to 0"
            )
        if self.kl != "none" and not self.kl_coefficient:
            yield (
                f"algorithm.kl={self.kl} has no weight, because algorithm.kl_coefficient is 0, and so no effect; "
                "set algorithm.kl_coefficient (0.001 is a start), or algorithm.kl=none"
            )
        if self.kl_in_loss and self.kl == "k1" and not self.kl_corrected:
            yield (
                "algorithm.kl=k1 in the loss has a gradient that does not depend on the reference; set "
                "algorithm.kl_corrected=true, algorithm.kl=k2, or algorithm.kl_place=reward"
            )
        if self.advantage == "maxrl" and self.kl_in_reward:
            yield (
                "algorithm.advantage=maxrl needs rewards of 0 or more, but a divergence in the reward can make them "
                "negative; set algorithm.kl_place=loss"
            )
        if self.kl_corrected and not self.kl_in_loss:
            yield (
                "algorithm.kl_corrected=true corrects a divergence, but the loss has no divergence; set algorithm.kl, "
                "algorithm.kl_coefficient and algorithm.kl_place=loss, or remove kl_corrected"
            )
        if self.reference_refresh is not None and not self.needs_reference:
            yield (
                f"algorithm.reference_refresh={self.reference_refresh} has no reference to refresh; set algorithm.kl "
                "and algorithm.kl_coefficient, or remove it"
            )

    def _mismatch_problems(self) -> Iterator[str]:
        if self.importance_weight != "none" and self.proximal == "rollout":
            yield (
                f"algorithm.importance_weight={self.importance_weight} corrects from the learner to the sampler, but "
                "with algorithm.proximal=rollout the ratio already does this; set algorithm.proximal=recomputed"
            )
        if self.mismatch_mask != "none" and not self.mask_low < 1 < self.mask_high:
            yield (
                f"algorithm.mask_low={self.mask_low:g} and algorithm.mask_high={self.mask_high:g} must lie on both "
                "sides of 1, the ratio of two policies that agree; 0.5 and 5 are IcePop's"
            )
