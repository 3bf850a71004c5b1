"""`grpo dpo`: direct preference optimisation on answers that people, or a rule, have ranked."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from grpo.algorithm.comparisons import AnswerComparison, ReferenceLogps, pack_comparisons
from grpo.algorithm.preference_loss import PAIR_SUMS, pair_sums, preference_metrics
from grpo.cluster.learner_group import LearnerGroup
from grpo.comparison_lessons import ComparisonLessons, answer_values
from grpo.config import DpoConfig
from grpo.fine_tuning import fine_tune
from grpo.policy.stored import local_or_hub
from grpo.report.closing_table import ClosingTable
from grpo.report.progress import Progress
from grpo.run.stopwatch import Stopwatch
from grpo.types import Phase

# Steps over which the alarm takes the mean of the chosen answers' log-probability.
_ALARM_STEPS = 10


def dpo(settings: DpoConfig, progress: Progress) -> ClosingTable:
    """Train a policy on preferences. `grpo.algorithm.preference_loss` has the losses.

    Before the first step, the learner scores all answers: it is the reference then. So a run needs no second model. The
    scores are in the checkpoints. The run writes the policy in Hugging Face format to `policy/` in the run's folder.

    Raises:
        ValueError: the config does not fit the data, the policy, the folder or the cluster.
        TimeoutError: a deadline passed; the message names the operation.
    """
    return fine_tune(
        settings,
        progress,
        lambda saved: local_or_hub(settings.policy),
        lambda start: PreferenceLessons(settings, start, progress),
    )


class PreferenceLessons(ComparisonLessons):
    """Comparisons of answers, with the log-probabilities of the answers under the reference."""

    def __init__(self, settings: DpoConfig, start: str, progress: Progress) -> None:
        """Read the data with the tokenizer of the policy `start`."""
        super().__init__(settings, start, progress)
        self._settings, self._progress = settings, progress
        self._references: dict[str, list[ReferenceLogps]] = {}
        self._falls: deque[float] = deque(maxlen=_ALARM_STEPS)
        self._alarm = settings.dpo.chosen_alarm

    def begin(self, learner: LearnerGroup) -> None:
        """Score all answers under the starting policy, which is the reference."""
        parts = {"training": self.training, "held_out": self.held_out}
        answers = sum(len(each.answers) for part in parts.values() for each in part)
        with self._progress.phase(Phase.SCORE, f"scoring {answers:,} answers under the starting policy"):
            self._references = {name: self._scores(learner, part) for name, part in parts.items()}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Continue with the row after the last row of a checkpoint, and with its reference scores."""
        super().resume(state)
        self._falls.extend(state["falls"])
        self._references = state["references"]
        for name, part in (("training", self.training), ("held_out", self.held_out)):
            if [len(scores) for scores in self._references[name]] != [len(each.answers) for each in part]:
                raise ValueError(
                    "the checkpoint has reference scores of other rows than the data has now; resume with the same "
                    "data, data.validation and dpo.max_tokens, or start a new run folder"
                )

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the rows, the reference scores, and the last values that the alarm looks at."""
        return super().state_dict() | {"references": self._references, "falls": list(self._falls)}

    def references(self, drawn: Sequence[int]) -> list[ReferenceLogps]:
        """Return the starting policy's log-probabilities of the answers of some training rows."""
        return [self._references["training"][at] for at in drawn]

    def step(self, learner: LearnerGroup, step: int, watch: Stopwatch) -> tuple[dict[str, float], int]:
        """Do an optimizer step, and evaluate if it is time; then look whether the chosen answers became less likely."""
        metrics, tokens = super().step(learner, step, watch)
        self._warn_of_fall(step, metrics)
        return metrics, tokens

    def _scores(self, learner: LearnerGroup, comparisons: Sequence[AnswerComparison]) -> list[ReferenceLogps]:
        """Return the log-probability of each answer under the present policy."""
        return answer_values(learner, comparisons, self.microbatch_tokens, math.fsum)

    def evaluated(self, learner: LearnerGroup) -> dict[str, float]:
        """Return the metrics of the held-out comparisons under the present policy."""
        references, totals = self._references["held_out"], torch.zeros(len(PAIR_SUMS), dtype=torch.float64)
        for comparison, reference, scores in zip(
            self.held_out, references, self._scores(learner, self.held_out), strict=True
        ):
            chosen_nll = -scores[0] / comparison.answers[0].trained_tokens
            packed = pack_comparisons([comparison], [reference])
            totals += pair_sums(self._settings.dpo, packed, torch.tensor(scores), chosen_nll)[1]
        sums = dict(zip(PAIR_SUMS, totals.tolist(), strict=True))
        return {f"eval/{name}": value for name, value in preference_metrics(sums, len(self.held_out)).items()}

    def _warn_of_fall(self, step: int, metrics: Mapping[str, float]) -> None:
        """Warn once if the chosen answers have become less likely than under the starting policy."""
        if self._alarm is None or "rewards/chosen" not in metrics:
            return
        self._falls.append(-metrics["rewards/chosen"] / self._settings.dpo.beta)
        fall = math.fsum(self._falls) / len(self._falls)
        if len(self._falls) < _ALARM_STEPS or fall <= self._alarm:
            return
        dpo, self._alarm = self._settings.dpo, None
        remedy = f"raise dpo.sft_weight={dpo.sft_weight:g}" if dpo.sft_weight else "set dpo.sft_weight=1"
        self._progress.show(
            f"step {step}: the chosen answers have become less likely than at the start, by {fall:.1f} nats in the "
            f"mean of {_ALARM_STEPS} steps (dpo.chosen_alarm={dpo.chosen_alarm:g}): the policy moves towards answers "
            f"that no row shows; {remedy}, which also teaches the chosen answers themselves, or raise dpo.beta "
            "(docs/preferences.md). This warning appears once"
        )
