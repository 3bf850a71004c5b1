"""Data types that the parts of the trainer exchange. Objects cannot be changed; some check their values at creation."""

from __future__ import annotations

import enum
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from grpo.messages import Continuation, Dialogue
from rewards.pool.busy_clock import Busy
from rewards.verdict import Status, Verdict

FinishReason = Literal["stop", "length"]


class Phase(enum.StrEnum):
    """A phase of a run or of an actor. The value is the phase's name in metrics, time lines and file names."""

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
    """The kinds of actors in a run."""

    DRIVER = "driver"
    GENERATOR = "generator"
    VERIFIERS = "verifiers"
    LEARNER = "learner rank"


@dataclass(frozen=True, slots=True)
class ActorId:
    """The identity of an actor. `str(actor_id)` is the actor's name in messages and in the time line.

    Attributes:
        kind: kind of the actor.
        place: number of the learner rank or generator, or name of the verifiers' node; None if the run has only one
            actor of this kind.
    """

    kind: ActorKind
    place: int | str | None = None

    def __str__(self) -> str:
        if self.place is None:
            return self.kind.value
        return f"{self.kind} on node {self.place}" if isinstance(self.place, str) else f"{self.kind} {self.place}"

    @classmethod
    def parse(cls, text: str) -> ActorId:
        """Return the actor that `text` names.

        Raises:
            ValueError: the text is not the name of an actor.
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
    """A prompt for the policy.

    Attributes:
        id: name of the source and index of the row; the same in all runs and after a resume.
        text: input of the policy, after the chat template or the prompt template was applied.
        token_ids: the policy's tokens of `text`.
        reference: reference answer for the verifiers.
        row: columns of the dataset row, as the verifiers get them (`rewards.judging.columns_of`).
        source: name of the row's source in `data.sources`; empty if the data have no named sources.
        messages: chat messages of the question, `{"role": ..., "content": ...}`, from which `text` is made.
    """

    id: str
    text: str
    token_ids: tuple[int, ...]
    reference: Any
    row: Mapping[str, Any]
    source: str = ""
    messages: tuple[Mapping[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if not self.token_ids:
            raise ValueError(f"prompt {self.id} has no tokens; a policy cannot continue an empty prompt")


@dataclass(frozen=True, slots=True)
class VersionSpan:
    """Range of a completion's tokens, [start, stop), that one version of the policy sampled."""

    start: int
    stop: int
    policy_version: int


@dataclass(frozen=True, slots=True)
class Completion:
    """What follows a prompt: a completion that an engine sampled, or a whole conversation.

    In a conversation, tokens that the world gave (tool results, users' turns) stand between the sampled tokens.

    Attributes:
        token_ids: the tokens, including the end-of-sequence token if it was sampled. The last token is sampled.
        logprobs: natural logarithm of each sampled token's probability under the sampling distribution, which includes
            the temperature; 0 for a given token.
        text: the tokens as text, without the end-of-sequence token. Of a conversation: the policy's last turn.
        finish_reason: `stop` if the policy ended the completion, `length` if a limit of tokens ended it.
        spans: token ranges with their policy version. The ranges cover the completion without gaps or overlaps; given
            tokens have the version of the turn before them.
        given: index ranges [start, stop) of the given tokens, in ascending order.
        dialogue: messages and end of a conversation; None for a single turn.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finish_reason: FinishReason
    spans: tuple[VersionSpan, ...]
    given: tuple[tuple[int, int], ...] = ()
    dialogue: Dialogue | None = None

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

    def prompt_ids(self, prompt: Prompt) -> tuple[int, ...]:
        """Return the tokens before the completion: those of its prompt, or of the first prompt of its conversation."""
        return (self.dialogue and self.dialogue.prompt_ids) or prompt.token_ids

    @property
    def further(self) -> tuple[Continuation, ...]:
        """The parts of a conversation after this part; empty unless the chat template rewrote the history."""
        return self.dialogue.further if self.dialogue else ()

    @property
    def sampled_tokens(self) -> int:
        """Number of sampled tokens, also in the further parts."""
        given = sum(stop - start for part in self._parts for start, stop in part.given)
        return sum(len(part.token_ids) for part in self._parts) - given

    @property
    def sampled_logprobs(self) -> tuple[float, ...]:
        """Log-probabilities of the sampled tokens, in their order, also in the further parts."""
        return tuple(value for part in self._parts for value in _sampled(part.logprobs, part.given))

    @property
    def _parts(self) -> tuple[Completion | Continuation, ...]:
        return (self, *self.further)


def _sampled(values: tuple[float, ...], given: tuple[tuple[int, int], ...]) -> tuple[float, ...]:
    """Return the values outside the given ranges."""
    if not given:
        return values
    borders = [0, *itertools.chain.from_iterable(given), len(values)]
    pieces = zip(borders[::2], borders[1::2], strict=True)
    return tuple(itertools.chain.from_iterable(values[start:stop] for start, stop in pieces))


@dataclass(frozen=True, slots=True)
class Rollout:
    """A completion with its verdicts, by the verifiers' names, and its reward.

    `reward` is None if a verdict that the reward depends on has failed (`timeout` or `error`). The quality of the
    completion is then unknown, and the training step leaves the completion out.
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
        """True if the first verifier that judges the prompt's row said `correct`."""
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
    """Settings for sampling completions.

    Attributes:
        samples: number of completions for each prompt.
        max_tokens: largest length of a completion, in tokens.
        temperature: temperature of sampling; 0 is greedy.
        stop: strings that end a completion. The completion's text includes the string that ended it.
        top_p: sample only from the likeliest tokens whose probabilities sum to this share. This setting and the next
            two are for evaluation only: the learner computes with the probabilities of all tokens.
        top_k: sample only from this number of likeliest tokens; 0 means from all.
        min_p: sample only from tokens with at least this share of the likeliest token's probability; 0 means from all.
    """

    samples: int
    max_tokens: int
    temperature: float = 1.0
    stop: tuple[str, ...] = ()
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt for which completions are sampled.

    Attributes:
        index: number of the request in its stream. The caller chooses this number, and the completions come back with
            the same number.
        token_ids: tokens of the prompt.
        seed: seed of the samples. Sample i of the group uses seed + i on every machine and in every batch.
        stream: number of the request's stream.
        max_tokens: largest length of a completion, in tokens; None for the limit of the stream.
    """

    index: int
    token_ids: tuple[int, ...]
    seed: int
    stream: int = 0
    max_tokens: int | None = None

    @property
    def id(self) -> RequestId:
        """The identity of the request, which the driver and the engine use."""
        return RequestId(self.stream, self.index)


@dataclass(frozen=True, slots=True)
class RequestId:
    """The identity of a request, unique among all unfinished requests. vLLM uses its text form.

    Attributes:
        stream: number of the request's stream.
        index: number of the request in that stream.
    """

    stream: int
    index: int

    def __str__(self) -> str:
        return f"{self.stream}-{self.index}"


# Finished groups of one stream: (index of the request, its completions).
Finished = list[tuple[int, tuple[Completion, ...]]]
# Groups of all streams that an engine finished: (identity of the request, its completions).
EngineFinished = list[tuple[RequestId, tuple[Completion, ...]]]


@dataclass(frozen=True, slots=True)
class GeneratorReport:
    """The report that a generator returns when the driver asks for finished groups.

    Attributes:
        finished: groups that finished since the last report.
        stalled_s: time that the engine has spent in its present step or call, in seconds; 0 if the engine waits for
            work.
        busy: activities of the engine since the last report, and the times of each activity.
    """

    finished: EngineFinished
    stalled_s: float
    busy: Busy = field(default_factory=dict)


class EngineDied(RuntimeError):
    """The process of a generator's engine has ended."""
