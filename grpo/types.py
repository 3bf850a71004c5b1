"""What travels between the rooms: frozen, checked when made, with no field that is filled in later."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rewards.pool.busy_clock import Busy
from rewards.verdict import Status, Verdict

FinishReason = Literal["stop", "length"]


class Phase(enum.StrEnum):
    """What a run or one of its actors does; the value is its word in metrics, time lines and names of files."""

    DATA = "data"
    START = "start"
    GENERATE = "generate"
    VERIFY = "verify"
    LEARN = "learn"
    SCORE = "score"
    SYNC = "sync"
    SWAP = "swap"
    EVALUATE = "evaluate"
    WAIT = "wait"
    CHECKPOINT = "checkpoint"
    CALLBACK = "callback"
    REPORT = "report"
    BETWEEN_STEPS = "between_steps"


class ActorKind(enum.StrEnum):
    """Who takes part in a run."""

    DRIVER = "driver"
    GENERATOR = "generator"
    VERIFIERS = "verifiers"
    LEARNER = "learner rank"


@dataclass(frozen=True, slots=True)
class ActorId:
    """Who it is; as text, what people read and what the time line names its lanes.

    Attributes:
        kind: what it is.
        place: number of the learner rank or generator, name of the verifiers' node; None where there is no other.
    """

    kind: ActorKind
    place: int | str | None = None

    def __str__(self) -> str:
        if self.place is None:
            return self.kind.value
        return f"{self.kind} on node {self.place}" if isinstance(self.place, str) else f"{self.kind} {self.place}"

    @classmethod
    def parse(cls, text: str) -> ActorId:
        """The actor of this text.

        Raises:
            ValueError: the text names none.
        """
        for kind in ActorKind:
            if text == kind:
                return cls(kind)
            if text.startswith(f"{kind} on node "):
                return cls(kind, text.removeprefix(f"{kind} on node "))
            number = text.removeprefix(f"{kind} ")
            if number != text and number.isdecimal():
                return cls(kind, int(number))
        raise ValueError(f"expected an actor such as 'generator 0', 'learner rank 1' or 'driver', got {text!r}")


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
        index: number of the request in its stream; the caller chooses it and gets it back with the completions.
        token_ids: the prompt.
        seed: seed of its samples; sample i of the group uses seed + i, wherever and beside whatever it runs.
        stream: number of the stream that it was submitted to.
    """

    index: int
    token_ids: tuple[int, ...]
    seed: int
    stream: int = 0

    @property
    def id(self) -> RequestId:
        """What it is called everywhere from the driver to the engine."""
        return RequestId(self.stream, self.index)


@dataclass(frozen=True, slots=True)
class RequestId:
    """The identity of a request, unique among all that are unfinished; as text, vLLM's name of it.

    Attributes:
        stream: number of the stream that it was submitted to.
        index: its number in that stream.
    """

    stream: int
    index: int

    def __str__(self) -> str:
        return f"{self.stream}-{self.index}"


# Groups of one stream that finished together: (the request's index, its completions).
Finished = list[tuple[int, tuple[Completion, ...]]]
# Groups of all streams that an engine finished: (the request's identity, its completions).
EngineFinished = list[tuple[RequestId, tuple[Completion, ...]]]


@dataclass(frozen=True, slots=True)
class GeneratorReport:
    """What a generator says when it is asked.

    Attributes:
        finished: groups that finished since the last report.
        stalled_s: seconds that its engine has been in its present step or call; 0 where it waits for work.
        busy: what its engine did, and when, since the last report.
    """

    finished: EngineFinished
    stalled_s: float
    busy: Busy = field(default_factory=dict)


class EngineDied(RuntimeError):
    """The process that a generator's engine runs in is gone."""
