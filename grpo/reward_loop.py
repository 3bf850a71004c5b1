"""`grpo reward`: a reward model from answers that people, or a rule, have ranked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from grpo.algorithm.comparisons import AnswerComparison, ReferenceLogps
from grpo.algorithm.reward_models.statistics import pair_statistics
from grpo.cluster.learner_group import LearnerGroup
from grpo.comparison_lessons import ComparisonLessons, answer_values
from grpo.config import RewardConfig
from grpo.fine_tuning import fine_tune
from grpo.policy.score_scale import ScoreScale
from grpo.policy.stored import local_or_hub
from grpo.report.closing_table import ClosingTable
from grpo.report.progress import Progress
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


class RewardLessons(ComparisonLessons):
    """Comparisons of answers, which the model reads with their end tokens."""

    def __init__(self, settings: RewardConfig, start: str, progress: Progress) -> None:
        """Read the data with the tokenizer of the policy `start`."""
        super().__init__(settings, start, progress)
        self._progress = progress

    def references(self, drawn: Sequence[int]) -> list[ReferenceLogps]:
        """Return zeros: a reward model has no reference."""
        return [(0.0,) * len(self.training[at].answers) for at in drawn]

    def finish(self, learner: LearnerGroup, folder: Path) -> None:
        """Score the training rows, and write the scale of the scores beside the model."""
        answers = sum(len(each.answers) for each in self.training)
        with self._progress.phase(Phase.SCORE, f"scoring {answers:,} answers of the training rows"):
            scores = self._scores(learner, self.training)
        ScoreScale.of([score for row in scores for score in row]).write(folder)

    def _scores(self, learner: LearnerGroup, comparisons: Sequence[AnswerComparison]) -> list[tuple[float, ...]]:
        """Return the score of each answer at its end token."""
        return answer_values(learner, comparisons, self.microbatch_tokens, lambda values: values[-1])

    def evaluated(self, learner: LearnerGroup) -> dict[str, float]:
        """Return the metrics of the held-out comparisons under the present model."""
        scores = self._scores(learner, self.held_out)
        # The end token stands there twice (`reads_end`), and one of the two is no part of the answer.
        lengths = [[len(answer.old_logprobs) - 1 for answer in each.answers] for each in self.held_out]
        return {f"eval/rewards/{name}": value for name, value in pair_statistics(scores, lengths).items()}
