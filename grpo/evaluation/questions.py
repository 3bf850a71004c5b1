"""The data that an evaluation and its sampler exchange."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from grpo.types import FinishReason, Prompt, SamplingParams
from rewards.verdict import Verdict

# Characters for each token of a prompt, where the tokenizer is not known.
_CHARACTERS = 4
SampleEnd = FinishReason | Literal["refused", "failed"]
# Ends without a completion. The same command requests these completions again.
NO_COMPLETION: tuple[SampleEnd, ...] = ("refused", "failed")


@dataclass(frozen=True, slots=True)
class Sample:
    """A completion.

    Attributes:
        text: text of the completion, or of the model's last turn in a conversation. It starts with a reasoning model's
            thoughts, in `<think>` tags.
        tokens: number of tokens that the model sampled, with the ends of sequences.
        finish_reason: `stop` if the model ended the completion, `length` if the limit ended it, `refused` if a server
            gave no usable completion, `failed` if the world of a conversation failed.
        refusal: what the server, or the world, said instead of a completion; None if there is a completion.
        conversation: messages, end and calls of a conversation (`grpo.evaluation.playing.stored`); empty for a single
            turn.
        verdict: verdict of the conversation's environment; None if a verifier judges the completion.
    """

    text: str
    tokens: int
    finish_reason: SampleEnd
    refusal: str | None = None
    conversation: Mapping[str, Any] = field(default_factory=dict)
    verdict: Verdict | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """A request for a completion.

    Attributes:
        text: text of the question, before any chat template.
        system: system message; None if there is no system message.
        prompt: question as tokens of the policy; None if a server makes the tokens.
        seed: seed of this sample.
        chat: whether a server applies its chat template.
    """

    text: str
    system: str | None
    prompt: Prompt | None
    seed: int
    chat: bool = True


def length_warning(task: str, texts: Sequence[str], max_tokens: int, context: int | None) -> str | None:
    """Compare the lengths of a task with the context that a server announces. Return a warning, or None.

    The server's tokenizer is not known, so the length of a prompt is estimated: 4 characters for each token.

    Args:
        task: name of the task.
        texts: texts of the questions.
        max_tokens: longest completion, in tokens.
        context: the server's context in tokens; None if it announces none.

    Raises:
        ValueError: a completion alone fills the context, so the server would refuse every request.
    """
    lengths = [len(text) // _CHARACTERS + 1 for text in texts]
    if context is None or max(lengths) + max_tokens <= context:
        return None
    remedy = f"give --max-tokens {max(context - 2 * max(lengths), context // 2)} or less"
    if max_tokens >= context:
        raise ValueError(
            f"{task}: max_tokens={max_tokens:,}, but the server announces a context of max_model_len={context:,} "
            f"tokens for prompt and completion, and would refuse every request; {remedy}, or serve a longer context"
        )
    crowded = sum(length + max_tokens > context for length in lengths)
    return (
        f"{task}: the server announces a context of max_model_len={context:,} tokens. About {crowded:,} of "
        f"{len(lengths):,} prompts leave less room than max_tokens={max_tokens:,}, and the server may refuse them; "
        f"{remedy}"
    )


class Sampler(Protocol):
    """The interface of a sampler: the project's engines, or a server."""

    def sample(
        self, questions: Sequence[Question], sampling: SamplingParams, deadline_s: float
    ) -> Iterator[tuple[int, Sample]]:
        """Yield (index of the question, completion) once for each question, in the order of arrival."""
        ...
