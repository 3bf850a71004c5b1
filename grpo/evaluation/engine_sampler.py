"""Sample an evaluation's completions with the generators of training, without a learner."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from grpo.cluster.claim import Plan
from grpo.cluster.cluster import Cluster
from grpo.cluster.device import planned_device
from grpo.config.evaluation import EvalConfig, TaskConfig
from grpo.config.learner import Dtype
from grpo.data.chat import render, uses_chat_template, with_system
from grpo.data.prompts import tokenize
from grpo.evaluation.model import Model
from grpo.evaluation.problems import Problem
from grpo.evaluation.questions import Question, Sample
from grpo.generator.setup import GeneratorSetup
from grpo.rollout.collector import RequestStream
from grpo.types import Prompt, SamplingParams

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Longest wait for a part of a weight update, in seconds. An evaluation makes no weight update.
_UPDATE_S = 60.0


def prompts_of(task: TaskConfig, problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    """Return the prompt of each problem. Use the policy's chat template if it has one and the task allows it."""
    chat = uses_chat_template(task.data, tokenizer)
    messages = [
        with_system(task.data, [{"role": "user", "content": problem.question}], "task.data") for problem in problems
    ]
    texts = render(task.data, tokenizer, messages)
    # A chat template writes the special tokens itself.
    token_ids = tokenize(tokenizer, texts, special=not chat)
    return [
        Prompt(problem.id, text, tuple(ids), problem.reference, problem.row, messages=tuple(asked))
        for problem, text, ids, asked in zip(problems, texts, token_ids, messages, strict=True)
    ]


def dtype_of(settings: EvalConfig) -> Dtype:
    """Return the dtype of weights and activations: the configured dtype, or the default of the device."""
    return settings.dtype or ("bfloat16" if planned_device(settings.cluster) == "cuda" else "float32")


@dataclass(frozen=True, slots=True)
class Room:
    """The room that the policy's context leaves for the completions of a task.

    Attributes:
        tokens: length of the longest sequence that the task can have, in tokens; at most the policy's context.
        context: the policy's context, in tokens; None if its config does not state it.
        shortened: number of problems whose completions have less room than `max_tokens`, but some.
        without: number of problems whose prompt fills the context. Their completions are empty and `truncated`.
    """

    tokens: int
    context: int | None
    shortened: int = 0
    without: int = 0

    def line(self, task: str, problems: int, max_tokens: int) -> str | None:
        """Return a sentence for the user; None if every completion has room for `max_tokens`."""
        if not self.shortened and not self.without:
            return None
        parts = []
        if self.shortened:
            parts.append(f"{self.shortened} of {problems} problems leave less room than max_tokens={max_tokens:,}")
        if self.without:
            parts.append(f"{self.without} of {problems} problems fill it with their prompt, so they have no answer")
        return (
            f"{task}: the policy's context has {self.context:,} tokens: {'; '.join(parts)}. What ends at the context "
            "counts as `truncated`"
        )


def room_of(model: Model, task: str, prompt_tokens: Sequence[int], max_tokens: int) -> Room:
    """Return the room for the completions of a task.

    Args:
        model: policy to evaluate.
        task: name of the task.
        prompt_tokens: length of each prompt, in tokens.
        max_tokens: longest completion, in tokens.

    Raises:
        ValueError: no prompt leaves room for a completion.
    """
    longest = max(prompt_tokens) + max_tokens
    if model.context is None or longest <= model.context:
        return Room(longest, model.context)
    rooms = [model.context - tokens for tokens in prompt_tokens]
    without = sum(room < 1 for room in rooms)
    if without == len(rooms):
        raise ValueError(
            f"{task}: the shortest prompt has {min(prompt_tokens)} tokens and fills the policy's context of "
            f"{model.context}, so the policy can answer no problem; choose a policy with a longer context, a shorter "
            "template (task.data.template=...), or another task"
        )
    return Room(model.context, model.context, sum(1 <= room < max_tokens for room in rooms), without)


def room_of_conversations(model: Model, task: TaskConfig, max_tokens: int) -> Room:
    """Return the room for the conversations of a task, whose first prompts have at most `task.max_prompt_tokens`.

    Args:
        model: policy to evaluate.
        task: task with tools or an environment.
        max_tokens: longest conversation after its first prompt, in tokens.

    Raises:
        ValueError: the policy's context is shorter.
    """
    longest = task.max_prompt_tokens + max_tokens
    if model.context is not None and longest > model.context:
        raise ValueError(
            f"{task.name}: a conversation may have task.max_prompt_tokens={task.max_prompt_tokens:,} and max_tokens="
            f"{max_tokens:,} tokens, but the policy's context has {model.context:,}; give a smaller --max-tokens, or a "
            "smaller task.max_prompt_tokens"
        )
    return Room(longest, model.context)


class EngineSampler:
    """vLLM replicas of a policy. They end when the `with` block ends.

    Attributes:
        policy_path: folder of the policy.
    """

    def __init__(self, settings: EvalConfig, model: Model, max_sequence_tokens: int) -> None:
        """Store the arguments; claim no devices yet."""
        self.policy_path = model.path
        self._settings, self._model, self._max_sequence_tokens = settings, model, max_sequence_tokens
        self._closing = contextlib.ExitStack()

    def __enter__(self) -> Self:
        settings, generator = self._settings, self._settings.generator
        plan = Plan(0, 0, generator.replicas, generator.devices, generator.threads)
        with contextlib.ExitStack() as opened:
            cluster = opened.enter_context(Cluster(settings.cluster, plan))
            setups = [
                GeneratorSetup(
                    policy_path=self._model.path,
                    dtype=dtype_of(settings),
                    generator=generator,
                    max_sequence_tokens=self._max_sequence_tokens,
                    temperature=1.0,
                    device=cluster.device,
                    replica=replica,
                )
                for replica in range(generator.replicas)
            ]
            self._generators = cluster.start_generators(setups, settings.deadline_s, _UPDATE_S)()
            self._closing = opened.pop_all()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._closing.__exit__(*exception)

    def stream(self, sampling: SamplingParams) -> RequestStream:
        """Return a new stream of requests, for the turns of conversations."""
        return self._generators.stream(sampling)

    def sample(
        self, questions: Sequence[Question], sampling: SamplingParams, deadline_s: float
    ) -> Iterator[tuple[int, Sample]]:
        """Yield (index, completion) in the order of completion. Each completion is a separate request with a seed.

        A completion ends where the engine's longest sequence ends. Without room for a token it is empty.
        """
        prompts = [question.prompt for question in questions if question.prompt is not None]
        assert len(prompts) == len(questions) and sampling.samples == 1
        fitting = []
        for index, prompt in enumerate(prompts):
            if len(prompt.token_ids) < self._max_sequence_tokens:
                fitting.append(index)
            else:
                yield index, Sample("", 0, "length")
        chosen, seeds = [prompts[index] for index in fitting], [questions[index].seed for index in fitting]
        for at, (completion,) in self._generators.generate(chosen, sampling, seeds):
            yield fitting[at], Sample(completion.text, len(completion.token_ids), completion.finish_reason)
