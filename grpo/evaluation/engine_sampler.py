"""Sample an evaluation's completions with the generators of training, without a learner."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Self

from transformers import PreTrainedTokenizerBase

from grpo.cluster.claim import Plan
from grpo.cluster.cluster import Cluster
from grpo.cluster.device import planned_device
from grpo.config.evaluation import EvalConfig, TaskConfig
from grpo.config.learner import Dtype
from grpo.data.chat import render, uses_chat_template, with_system
from grpo.evaluation.model import Model
from grpo.evaluation.problems import Problem
from grpo.evaluation.questions import Question, Sample
from grpo.generator.setup import GeneratorSetup
from grpo.types import Prompt, SamplingParams

# Longest wait for a part of a weight update, in seconds. An evaluation makes no weight update.
_UPDATE_S = 60.0


def prompts_of(task: TaskConfig, problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    """Return the prompt of each problem. Use the policy's chat template if it has one and the task allows it."""
    chat = uses_chat_template(task.data, tokenizer)
    asked = [[{"role": "user", "content": problem.question}] for problem in problems]
    texts = render(task.data, tokenizer, [with_system(task.data, messages, "task.data") for messages in asked])
    # A chat template writes the special tokens itself.
    token_ids = tokenizer(texts, add_special_tokens=not chat)["input_ids"]
    return [
        Prompt(problem.id, text, tuple(ids), problem.reference, problem.row)
        for problem, text, ids in zip(problems, texts, token_ids, strict=True)
    ]


def dtype_of(settings: EvalConfig) -> Dtype:
    """Return the dtype of weights and activations: the configured dtype, or the default of the device."""
    return settings.dtype or ("bfloat16" if planned_device(settings.cluster) == "cuda" else "float32")


def sequence_tokens(model: Model, longest: dict[str, tuple[int, int]]) -> int:
    """Return the length of the longest sequence, in tokens.

    Args:
        model: policy to evaluate.
        longest: task -> (longest prompt, longest completion), in tokens.

    Raises:
        ValueError: the sequence is longer than the policy's context.
    """
    for task, (prompt, completion) in longest.items():
        if model.context is not None and prompt + completion > model.context:
            raise ValueError(
                f"{task}: the longest prompt has {prompt} tokens; with a completion of {completion} it is beyond the "
                f"policy's context of {model.context}; give --max-tokens {model.context - prompt}"
                if model.context > prompt
                else f"{task}: the longest prompt has {prompt} tokens, beyond the policy's context of {model.context}"
            )
    return max(prompt + completion for prompt, completion in longest.values())


class EngineSampler:
    """vLLM replicas of a policy. They end when the `with` block ends."""

    def __init__(self, settings: EvalConfig, model: Model, max_sequence_tokens: int) -> None:
        """Store the arguments; claim no devices yet."""
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

    def sample(
        self, questions: Sequence[Question], sampling: SamplingParams, deadline_s: float
    ) -> Iterator[tuple[int, Sample]]:
        """Yield (index, completion) in the order of completion. Each completion is a separate request with a seed."""
        prompts = [question.prompt for question in questions if question.prompt is not None]
        assert len(prompts) == len(questions) and sampling.samples == 1
        seeds = [question.seed for question in questions]
        for index, (completion,) in self._generators.generate(prompts, sampling, seeds):
            yield index, Sample(completion.text, len(completion.token_ids), completion.finish_reason)
