"""What the jobs share that learn from comparisons of answers: `grpo dpo` and `grpo reward`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from grpo.algorithm.comparisons import AnswerComparison
from grpo.algorithm.rescoring import pack_for_scoring, unpack
from grpo.cluster.learner_group import LearnerGroup
from grpo.config import PreferenceJobConfig, RewardConfig
from grpo.data.bad_rows import lines_of
from grpo.data.preferences import PreferenceSet, load_preferences
from grpo.policy.stored import load_tokenizer
from grpo.report.progress import Progress

# Answers that the learner scores in one call. The driver holds the values of all their tokens until it has reduced
# them, and a call must end within a deadline.
_SCORED_TOGETHER = 4096
Result = TypeVar("Result")


def read_comparisons(settings: PreferenceJobConfig, start: str, progress: Progress) -> PreferenceSet:
    """Read the data with the tokenizer of the policy `start`; show how many rows are left out."""
    job, longest = settings.job, settings.schedule.max_tokens
    data = load_preferences(
        settings.data,
        load_tokenizer(start),
        max_tokens=longest,
        microbatch_tokens=settings.learner.microbatch_tokens,
        job=job,
        reads_end=isinstance(settings, RewardConfig),
    )
    rows = len(data.training) + len(data.held_out)
    if data.dropped:
        progress.show(f"{data.dropped} of {data.dropped + rows} rows are longer than {job}.max_tokens and are left out")
    if data.left_out:
        progress.show(f"rows left out (data.on_bad_row=drop): {lines_of(data.left_out)}")
    return data


def answer_values(
    learner: LearnerGroup,
    comparisons: Sequence[AnswerComparison],
    microbatch_tokens: int,
    reduce: Callable[[Sequence[float]], Result],
) -> list[tuple[Result, ...]]:
    """Return for each answer `reduce` of what the learner's model says of its tokens.

    Args:
        learner: learner with the model.
        comparisons: answers to score.
        microbatch_tokens: largest size of a microbatch, in tokens.
        reduce: function of an answer's values: log-probabilities of a policy, or scores of a reward model.
    """
    answers = [answer for each in comparisons for answer in each.answers]
    values: list[Result] = []
    for begin in range(0, len(answers), _SCORED_TOGETHER):
        part = answers[begin : begin + _SCORED_TOGETHER]
        batch = pack_for_scoring(part, learner.ranks, microbatch_tokens)
        scored = unpack(batch, learner.logprobs(batch, "policy"))
        values += [reduce(scored[number]) for number in range(len(part))]
    remaining = iter(values)
    return [tuple(next(remaining) for _ in each.answers) for each in comparisons]
