"""What travels between the rooms: frozen, checked when made, with no field that is filled in later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rewards.pool.busy_clock import Busy
from rewards.verdict import Status, Verdict

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One question to the policy.

    Attributes:
        id: stable over runs and resumes (the source's name and the row's index in it).
        text: what the policy reads, after the chat template or the prompt template.
        token_ids: `text` in the policy's tokens.
        reference: the reference answer that the verifiers compare with.
        row: the dataset row's columns, as the verifiers get them (`rewards.judging.columns_of`).
    """

    id: str
    text: str
    token_ids: tuple[int, ...]
    reference: Any
    row: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not self.token_ids:
            raise ValueError(f"prompt {self.id} has no tokens; a policy cannot continue an empty prompt")


@dataclass(frozen=True, slots=True)
class VersionSpan:
    """Tokens [start, stop) of a completion, sampled by one version of the policy."""

    start: int
    stop: int
    policy_version: int


@dataclass(frozen=True, slots=True)
class Completion:
    """What an engine sampled for one prompt.

    Attributes:
        token_ids: the sampled tokens, the end-of-sequence token included where it was sampled.
        logprobs: natural logarithm of each sampled token's probability under the sampling distribution
            (temperature applied), one for each token.
        text: the tokens as text, the end-of-sequence token left out.
        finish_reason: `stop` where the policy ended it, `length` where the limit did.
        spans: which policy version sampled which tokens; they cover the completion without gap or overlap.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finish_reason: FinishReason
    spans: tuple[VersionSpan, ...]

    def __post_init__(self) -> None:
        if not self.token_ids:
            raise ValueError("a completion has at least one token")
        if len(self.logprobs) != len(self.token_ids):
            raise ValueError(f"{len(self.token_ids)} tokens came with {len(self.logprobs)} log-probabilities")
        position = 0
        for span in self.spans:
            if span.start != position or span.stop <= span.start:
                raise ValueError(f"spans {self.spans} do not cover the {len(self.token_ids)} tokens in order")
            position = span.stop
        if position != len(self.token_ids):
            raise ValueError(f"spans {self.spans} do not cover the {len(self.token_ids)} tokens in order")


@dataclass(frozen=True, slots=True)
class Rollout:
    """A completion with its verdicts, by the verifiers' names, and its reward.

    `reward` is None where a verdict that counts failed (`timeout` or `error`): nothing is known of the completion
    then, and it takes no part in the update.
    """

    completion: Completion
    verdicts: Mapping[str, Verdict]
    reward: float | None

    def __post_init__(self) -> None:
        if not self.verdicts:
            raise ValueError("a rollout has at least one verdict")
        if self.reward is None and not any(verdict.status.failed for verdict in self.verdicts.values()):
            raise ValueError("a rollout without a reward needs a verdict that failed")

    @property
    def correct(self) -> bool:
        """True where the first verifier that judges its row said `correct`."""
        return next(iter(self.verdicts.values())).status is Status.CORRECT


@dataclass(frozen=True, slots=True)
class Group:
    """The G rollouts of one prompt."""

    prompt: Prompt
    rollouts: tuple[Rollout, ...]

    def __post_init__(self) -> None:
        if not self.rollouts:
            raise ValueError(f"the group of prompt {self.prompt.id} is empty")


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How completions are sampled.

    Attributes:
        samples: completions for each prompt.
        max_tokens: the longest completion, in tokens.
        temperature: 0 is greedy.
        stop: strings that end a completion, kept in its text.
        top_p: sample from the likeliest tokens of this share; for evaluation only, as a learner cannot reproduce it.
    """

    samples: int
    max_tokens: int
    temperature: float = 1.0
    stop: tuple[str, ...] = ()
    top_p: float = 1.0


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to sample for.

    Attributes:
        index: the caller's number for it, given back with the completions.
        token_ids: the prompt.
        seed: of its samples; sample i of the group uses seed + i, wherever and beside whatever it runs.
    """

    index: int
    token_ids: tuple[int, ...]
    seed: int


# Groups that finished together: (the request's index, its completions).
Finished = list[tuple[int, tuple[Completion, ...]]]


@dataclass(frozen=True, slots=True)
class GeneratorReport:
    """What a generator says when it is asked.

    Attributes:
        finished: groups that finished since it was last asked.
        stalled_s: seconds that its engine has been in its present step or call; 0 where it waits for work.
        busy: what its engine did, and when, since it was last asked.
    """

    finished: Finished
    stalled_s: float
    busy: Busy = field(default_factory=dict)


class EngineDied(RuntimeError):
    """The process that a generator's engine runs in is gone."""
