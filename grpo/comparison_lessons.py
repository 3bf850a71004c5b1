"""What the jobs share that learn from comparisons of answers: `grpo dpo` and `grpo reward`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from grpo.algorithm.comparisons import AnswerComparison, ReferenceLogps, preference_batch
from grpo.algorithm.rescoring import pack_for_scoring, unpack
from grpo.cluster.learner_group import LearnerGroup
from grpo.config import PreferenceJobConfig, RewardConfig
from grpo.data.bad_rows import lines_of
from grpo.data.drawing.cursor import Cursor
from grpo.data.preferences import PreferenceSet, load_preferences
from grpo.fine_tuning import under_learner
from grpo.policy.stored import load_tokenizer
from grpo.report.progress import Progress
from grpo.run.stopwatch import Stopwatch
from grpo.types import Phase

# Answers that the learner scores in one call. The driver holds the values of all their tokens until it has reduced
# them, and a call must end within a deadline.
_SCORED_TOGETHER = 4096
Result = TypeVar("Result")


class ComparisonLessons:
    """Steps on comparisons of answers; `grpo.fine_tuning.Lessons` describes the methods.

    A job says in `references` and `evaluated` what its loss compares and what it measures.
    """

    def __init__(self, settings: PreferenceJobConfig, start: str, progress: Progress) -> None:
        """Read the data with the tokenizer of the policy `start`."""
        self.microbatch_tokens = settings.learner.microbatch_tokens
        data = read_comparisons(settings, start, progress)
        self.training, self.held_out = data.training, data.held_out
        self._schedule = settings.schedule
        self._cursor: Cursor[int] = Cursor(range(len(data.training)), settings.run.seed)

    def references(self, drawn: Sequence[int]) -> Sequence[ReferenceLogps]:
        """Return the reference's log-probabilities of the answers of some training rows."""
        raise NotImplementedError

    def evaluated(self, learner: LearnerGroup) -> dict[str, float]:
        """Return the metrics of the held-out comparisons under the present model."""
        raise NotImplementedError

    def begin(self, learner: LearnerGroup) -> None:
        """Prepare nothing."""

    def resume(self, state: Mapping[str, Any]) -> None:
        """Continue with the row after the last row of a checkpoint."""
        self._cursor.load_state_dict(state["cursor"])

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the rows."""
        return {"cursor": self._cursor.state_dict()}

    def step(self, learner: LearnerGroup, step: int, watch: Stopwatch) -> tuple[dict[str, float], int]:
        """Do an optimizer step on the next comparisons; then evaluate the held-out comparisons if it is time."""
        drawn = self._cursor.next(self._schedule.batch_size)
        comparisons = [self.training[at] for at in drawn]
        watch.start(Phase.LEARN)
        packed = preference_batch(
            comparisons, self.references(drawn), ranks=learner.ranks, microbatch_tokens=self.microbatch_tokens
        )
        metrics = under_learner({**learner.step(packed), **packed.shares()})
        if self.held_out and (step % self._schedule.evaluate_every == 0 or step == self._schedule.steps):
            watch.start(Phase.EVALUATE)
            metrics |= self.evaluated(learner)
        watch.start(None)
        return metrics, sum(len(answer.token_ids) for each in comparisons for answer in each.answers)

    def finish(self, learner: LearnerGroup, folder: Path) -> None:
        """Add nothing to the policy's folder."""


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
