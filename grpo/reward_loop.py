"""`grpo reward`: a reward model from answers that people, or a rule, have ranked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grpo.algorithm.comparisons import AnswerComparison, preference_batch
from grpo.algorithm.reward_models.statistics import pair_statistics
from grpo.cluster.learner_group import LearnerGroup
from grpo.comparison_rows import answer_values, read_comparisons
from grpo.config import RewardConfig
from grpo.data.drawing.cursor import Cursor
from grpo.fine_tuning import fine_tune, under_learner
from grpo.policy.score_scale import ScoreScale
from grpo.policy.stored import local_or_hub
from grpo.report.closing_table import ClosingTable
from grpo.report.progress import Progress
from grpo.run.stopwatch import Stopwatch
from grpo.types import Phase


def reward(settings: RewardConfig, progress: Progress) -> ClosingTable:
    """Train a reward model on preferences. `grpo.algorithm.reward_models.loss` has the losses.

    The run writes the model to `policy/` in the run's folder, with the scale of its scores on the training rows.

    Raises:
        ValueError: the config does not fit the data, the policy, the folder or the cluster.
        TimeoutError: a deadline passed; the message names the operation.
    """
    return fine_tune(
        settings,
        progress,
        lambda saved: local_or_hub(settings.policy),
        lambda start: RewardLessons(settings, start, progress),
    )


class RewardLessons:
    """Comparisons of answers, which the model reads with their end tokens."""

    def __init__(self, settings: RewardConfig, start: str, progress: Progress) -> None:
        """Read the data with the tokenizer of the policy `start`."""
        self._settings, self._progress = settings, progress
        data = read_comparisons(settings, start, progress)
        self._training, self._held_out = data.training, data.held_out
        self._cursor: Cursor[int] = Cursor(range(len(data.training)), settings.run.seed)

    def begin(self, learner: LearnerGroup) -> None:
        """Prepare nothing: the model needs no reference."""

    def resume(self, state: Mapping[str, Any]) -> None:
        """Continue with the row after the last row of a checkpoint."""
        self._cursor.load_state_dict(state["cursor"])

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the rows."""
        return {"cursor": self._cursor.state_dict()}

    def step(self, learner: LearnerGroup, step: int, watch: Stopwatch) -> tuple[dict[str, float], int]:
        """Do an optimizer step on the next comparisons; then evaluate the held-out comparisons if it is time."""
        schedule = self._settings.reward
        comparisons = [self._training[at] for at in self._cursor.next(schedule.batch_size)]
        watch.start(Phase.LEARN)
        packed = preference_batch(
            comparisons,
            [(0.0,) * len(each.answers) for each in comparisons],
            ranks=learner.ranks,
            microbatch_tokens=self._settings.learner.microbatch_tokens,
        )
        metrics = under_learner({**learner.step(packed), **packed.shares()})
        if self._held_out and (step % schedule.evaluate_every == 0 or step == schedule.steps):
            watch.start(Phase.EVALUATE)
            metrics |= self._evaluated(learner)
        watch.start(None)
        return metrics, sum(len(answer.token_ids) for each in comparisons for answer in each.answers)

    def finish(self, learner: LearnerGroup, folder: Path) -> None:
        """Score the training rows, and write the scale of the scores beside the model."""
        answers = sum(len(each.answers) for each in self._training)
        with self._progress.phase(Phase.SCORE, f"scoring {answers:,} answers of the training rows"):
            scores = self._scores(learner, self._training)
        ScoreScale.of([score for row in scores for score in row]).write(folder)

    def _scores(self, learner: LearnerGroup, comparisons: Sequence[AnswerComparison]) -> list[tuple[float, ...]]:
        """Return the score of each answer at its end token."""
        size = self._settings.learner.microbatch_tokens
        return answer_values(learner, comparisons, size, lambda values: values[-1])

    def _evaluated(self, learner: LearnerGroup) -> dict[str, float]:
        """Return the metrics of the held-out comparisons under the present model."""
        scores = self._scores(learner, self._held_out)
        # The end token stands there twice (`reads_end`), and one of the two is no part of the answer.
        lengths = [[len(answer.old_logprobs) - 1 for answer in each.answers] for each in self._held_out]
        return {f"eval/rewards/{name}": value for name, value in pair_statistics(scores, lengths).items()}
