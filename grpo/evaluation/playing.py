"""Sample an evaluation's conversations: the task's tools, environment or program answer the policy, as in training."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from grpo.config.evaluation import TaskConfig
from grpo.evaluation.questions import Question, Sample
from grpo.messages import ConversationEnd
from grpo.rollout.world_verdicts import environment_verdict, transcript
from grpo.run.streams import Streams, TurnSource
from grpo.types import Completion, Request, SamplingParams
from rewards.build import ENVIRONMENT, VerifierSpec

# Each conversation has a process of its own, so that many conversations are under way at most.
MOST_UNDER_WAY = 256


class ConversationSampler:
    """Plays the conversations of a task. The task's tools and environments end when the `with` block ends.

    Attributes:
        first_prompt: first prompt of a conversation, as the policy read it; None before the first conversation ended.
    """

    def __init__(
        self, task: TaskConfig, spec: VerifierSpec, policy_path: str, engines: TurnSource, folder: Path
    ) -> None:
        """Start nothing yet.

        Args:
            task: task with tools or an environment.
            spec: verifier of the task.
            policy_path: policy, whose chat template the conversations use.
            engines: source of the policy's turns.
            folder: folder of the task, for the logs of the user's code.
        """
        self._spec, self._engines = spec, engines
        self._streams = Streams(task, policy_path, task.max_prompt_tokens, folder)
        self._closing = contextlib.ExitStack()
        self.first_prompt: str | None = None

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as opened:
            opened.enter_context(self._streams)
            self._streams.start()
            self._closing = opened.pop_all()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._closing.__exit__(*exception)

    def sample(
        self, questions: Sequence[Question], sampling: SamplingParams, deadline_s: float
    ) -> Iterator[tuple[int, Sample]]:
        """Yield (index, conversation) in the order in which the conversations end. Each has a seed of its own.

        Raises:
            ValueError: a first prompt is too long, or the task's tools and environments cannot be used.
            RuntimeError: a world fails again and again before its first message.
        """
        stream = self._streams.stream(self._engines, sampling)
        waiting = iter(enumerate(questions))
        while True:
            begun = list(itertools.islice(waiting, MOST_UNDER_WAY - stream.unfinished))
            prompts = [question.prompt for _, question in begun if question.prompt is not None]
            assert len(prompts) == len(begun)
            requests = [
                Request(index, prompt.token_ids, question.seed)
                for (index, question), prompt in zip(begun, prompts, strict=True)
            ]
            if requests:
                stream.submit(requests, prompts)
            if not stream.unfinished:
                return
            for index, (completion,) in stream.finished():
                yield index, self._sample(completion)

    def _sample(self, completion: Completion) -> Sample:
        dialogue = completion.dialogue
        assert dialogue is not None
        if self.first_prompt is None:
            self.first_prompt = self._streams.chat.decode(dialogue.prompt_ids)
        if dialogue.ended is ConversationEnd.FAILED:
            return Sample("", completion.sampled_tokens, "failed", dialogue.reason, stored(completion))
        rewarded = self._spec.use == ENVIRONMENT
        return Sample(
            completion.text,
            completion.sampled_tokens,
            completion.finish_reason,
            conversation=stored(completion),
            verdict=environment_verdict(dialogue, self._spec) if rewarded else None,
        )


def stored(completion: Completion) -> Mapping[str, Any]:
    """Return what an evaluation stores of a conversation, as plain data.

    Returns:
        `messages` as verifiers see them, the number `opening` of those in the first prompt, `ended`, `turns`, `calls`,
        `failures` of calls by their kind, and `seconds`.
    """
    dialogue = completion.dialogue
    assert dialogue is not None
    messages = transcript(dialogue)
    return {
        "messages": messages,
        "opening": dialogue.opening,
        "ended": dialogue.ended.value,
        "turns": sum(message["role"] == "assistant" for message in messages[dialogue.opening :]),
        "calls": dialogue.calls,
        "failures": dict(dialogue.failures),
        "seconds": dialogue.lasted_s,
    }
