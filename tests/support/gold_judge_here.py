"""Judges gold answers in the test's own process, by verifiers that are known to come back."""

from __future__ import annotations

from rewards.adapt import Adapted
from rewards.checks.gold_judges import Judge
from rewards.checks.gold_questions import Questioned
from rewards.verifier import Verifier


class QuestionedHere(Questioned):
    """A verifier that is built already, and also answers questions."""

    def __init__(self, verifier: Verifier) -> None:
        self._verifier = verifier if isinstance(verifier, Adapted) else Adapted(verifier)


def one_by_one(verifier: Verifier) -> Judge:
    judged_by = Adapted(QuestionedHere(verifier))
    return lambda calls: [judged_by(completion, reference, prompt) for _, completion, reference, prompt in calls]
