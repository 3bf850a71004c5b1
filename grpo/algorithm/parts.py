"""From a completion to the sequences that a learner computes: one for a single turn, more for some conversations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from grpo.algorithm.packing import PerToken, TrainingSequence
from grpo.messages import Continuation
from grpo.types import Completion, Prompt


def sequences_of(
    prompt: Prompt,
    completion: Completion,
    advantage: PerToken,
    weight: float = 1.0,
    proximal: tuple[float, ...] | None = None,
) -> Iterator[TrainingSequence]:
    """Yield a sequence for each part of a completion. A part ends where the chat template rewrote the history.

    Args:
        prompt: prompt of the completion.
        completion: completion with T sampled tokens in all its parts.
        advantage: advantage of the sampled tokens, or T advantages.
        weight: weight of each sampled token.
        proximal: T log-probabilities of the sampled tokens under the learner at the start of the step, or None.
    """
    ids = completion.prompt_ids(prompt)
    if completion.dialogue is None and not completion.given:
        yield TrainingSequence(
            (*ids, *completion.token_ids), len(ids), completion.logprobs, advantage, weight, proximal
        )
        return
    begin, logprobs = 0, completion.sampled_logprobs
    parts: list[tuple[tuple[int, ...], Completion | Continuation]] = [(ids, completion)]
    parts += [(part.prompt_ids, part) for part in completion.further]
    for before, part in parts:
        sampled = len(part.token_ids) - sum(stop - start for start, stop in part.given)
        here = slice(begin, begin + sampled)
        yield TrainingSequence(
            (*before, *part.token_ids),
            len(before),
            logprobs[here],
            advantage[here] if isinstance(advantage, tuple) else advantage,
            weight,
            None if proximal is None else proximal[here],
            tuple((len(before) + start, len(before) + stop) for start, stop in part.given),
        )
        begin += sampled


def joined(values: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
    """Join the values of the parts of a completion, in their order."""
    return values[0] if len(values) == 1 else tuple(value for part in values for value in part)
