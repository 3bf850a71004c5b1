"""Sections of the configuration for verifiers, and for the processes that run them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from grpo.config.section import Positive, Seconds, Section, WorkerMemory
from rewards.answers.thinking import READ_AFTER_THINKING
from rewards.build import REWARD_MODEL, VerifierSpec

Cell = bool | int | float | str


class VerifierConfig(Section):
    """One verifier and its share of the reward. A row counts as right if its first verifier says `correct`."""

    name: str
    """Name in the metrics."""
    use: str
    """Built-in name, `package.module:function`, `file.py:function`, or a `grpo.verifiers` entry point."""
    weight: float = 1.0
    """Weight of the verifier's score in the reward."""
    gate: bool = False
    """If true and this verifier's verdict is not `correct`, verifiers with `gate: false` earn nothing. A number is
    `correct` from `pass_mark` on."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the verifier. Your own verifier also takes `bounds`, `pass_mark` (by default
    1) and `conversational`."""
    when: dict[str, Cell | tuple[Cell, ...]] = Field(default_factory=dict)
    """Column -> value, or list of values. The verifier judges only rows with these values; by default it judges all."""


class VerificationConfig(Section):
    """The worker processes that run verifiers."""

    workers: Positive = 1
    """Number of worker processes on the driver's node. If `per_node` is true: number on each node."""
    per_node: bool = False
    """Start a pool on every node of the Ray cluster; by default only on the driver's node."""
    deadline_s: Seconds = 10.0
    """Longest time for one verdict, in seconds. A verdict that takes longer is a `timeout`, and its worker is
    killed. If it is not set and a `code` verifier's program, or a `judge`, may take longer, it is longer."""
    memory_mib: WorkerMemory | None = 2048
    """MiB of address space of one worker. A verdict that needs more is an `error`. None sets no limit."""
    overlap: Positive = 64
    """Number of calls of async verifiers, such as judges, that one worker process runs at a time."""
    thinking: tuple[str | tuple[str, str], ...] | None = None
    """Tags of the model's reasoning, by name (`think` for `<think>...</think>`) or as pairs of an opening and a closing
    tag. The built-in verifiers look for an answer behind the last closing tag. None takes all known tags."""
    max_failure_share: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Largest share of `timeout` and `error` among a step's verdicts, or among the recent verdicts of one verifier
    (at least 50). Above it the run stops."""
    check_golds: Literal["refuse", "warn", "off"] = "refuse"
    """Before the start, every row's reference is checked, up to 256 gold answers are judged, and every verifier is
    tried on a few rows. If no gold answer is `correct`, too many references cannot be used, or a verifier fails on all
    of its rows: `refuse` does not start, `warn` prints a warning. `off` checks nothing."""
    max_unusable_share: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Largest share of rows whose reference cannot be used. Up to it, these rows are left out and counted; above it,
    `check_golds` decides."""


def verifier_problems(verifiers: tuple[VerifierConfig, ...]) -> list[str]:
    """Find wrong names and weights, each with its remedy."""
    problems = []
    names = [verifier.name for verifier in verifiers]
    for name in sorted({name for name in names if names.count(name) > 1}):
        problems.append(f"verifiers: {names.count(name)} verifiers have the name {name!r}; give each another name")
    if all(verifier.weight == 0 for verifier in verifiers):
        problems.append("verifiers: every weight is 0, so no completion can earn anything; give a verifier a weight")
    for verifier in verifiers:
        problems += [
            f"verifiers: {verifier.name!r} has no value in when.{column}, so it judges nothing; give a value"
            for column, values in verifier.when.items()
            if values == ()
        ]
    return problems


def reward_model_problems(verifiers: tuple[VerifierConfig, ...], *, talks: bool, background: bool) -> list[str]:
    """Find reward models where they do not work, each with its remedy.

    Args:
        verifiers: verifiers of the run.
        talks: whether tools or an environment answer the policy.
        background: whether a process of its own evaluates with the first verifier.
    """
    models = [verifier for verifier in verifiers if verifier.use == REWARD_MODEL]
    problems = []
    if models and talks:
        problems.append(
            f"verifiers: {models[0].name!r} is a reward model, which scores single answers and no conversations; "
            "remove it, or remove tools and environment"
        )
    if background and verifiers[0].use == REWARD_MODEL:
        problems.append(
            f"evaluation.mode=background judges with the first verifier, and {verifiers[0].name!r} is a reward model, "
            "which works inside of the run only; use mode=inline, or name another verifier first"
        )
    return problems


def negative_problems(verifiers: tuple[VerifierConfig, ...]) -> list[str]:
    """Find verifiers that can make a reward negative, for an advantage that divides by the mean reward.

    The range of a user's verifier is unknown. Its scores are assumed to be 0 or more.
    """
    if any(verifier.weight < 0 for verifier in verifiers):
        return ["algorithm.advantage=maxrl needs rewards of 0 or more; give every verifier a weight of 0 or more"]
    punishing = {verifier.name: verifier.weight * _punishment(verifier) for verifier in verifiers}
    gates = [verifier for verifier in verifiers if verifier.gate and not verifier.when and not punishing[verifier.name]]
    # If the answer that a gate judges is wrong, the other verifiers do not count. If it is right, the gate has earned
    # its weight.
    earned = sum(gate.weight for gate in gates)
    total = sum(punishing.values())
    if total <= earned:
        return []
    names = ", ".join(name for name, share in punishing.items() if share)
    return [
        f"algorithm.advantage=maxrl needs rewards of 0 or more, but verifiers ({names}) can lower them by {total:g}; "
        f"remove these, use another advantage, or set gate=true on the verifier that decides whether the answer is "
        f"right, with a weight of {total:g} or more"
    ]


def _punishment(verifier: VerifierConfig) -> float:
    """The largest penalty of a built-in verifier, as a positive number."""
    if verifier.use == "length":
        return 1.0
    worst = verifier.options.get("worst", 1.0)
    return float(worst) if verifier.use == "repetition" and isinstance(worst, int | float) else 0.0


_PLAIN = VerificationConfig()


def specs_of(
    verifiers: Sequence[VerifierConfig], verification: VerificationConfig = _PLAIN
) -> tuple[VerifierSpec, ...]:
    """Convert the configured verifiers for the pool and the reward. The run's reasoning tags are the default."""
    tags = {} if verification.thinking is None else {"thinking": verification.thinking}
    return tuple(
        VerifierSpec(
            verifier.name,
            verifier.use,
            {**tags, **verifier.options} if verifier.use in READ_AFTER_THINKING else verifier.options,
            verifier.weight,
            verifier.gate,
            {column: value if isinstance(value, tuple) else (value,) for column, value in verifier.when.items()},
        )
        for verifier in verifiers
    )
