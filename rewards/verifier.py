"""The one interface that every verifier has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from rewards.verdict import Verdict

# The column in which a run hands a row's verifiers the prompt's text, where the data have no column of this name.
PROBLEM_COLUMN = "problem"
# The column in which a run hands every verifier the completion's number of tokens, the end token included.
TOKENS_COLUMN = "completion_tokens"


@runtime_checkable
class Verifier(Protocol):
    """Scores one completion against its reference.

    A verifier is called in a worker process that is killed at its deadline, so it may be slow or stuck without
    harm to the run. It must be picklable (a module-level function, or an object made of plain data).
    """

    def __call__(self, completion: str, reference: Any, prompt: Mapping[str, Any]) -> Verdict:
        """Return the verdict on `completion`.

        Args:
            completion: the text that the policy sampled. It is hostile: never evaluate, format into a shell, or
                unpickle it.
            reference: the dataset row's reference answer.
            prompt: the dataset row's other columns, for verifiers that need more than the reference.
        """
        ...


@runtime_checkable
class KnowsReferences(Protocol):
    """A verifier that can say, before any completion, whether it can use a reference. A class or function may have it.

    `grpo check` names the rows whose reference cannot be used, and a run leaves them out.
    """

    def reference_problem(self, reference: Any, prompt: Mapping[str, Any]) -> str:
        """Why `reference` cannot be used, in a few words; empty where it can.

        It is called once for each row of the data, in a worker process, and should take well under a millisecond.

        Args:
            reference: the dataset row's reference answer, of any type.
            prompt: the dataset row's other columns.
        """
        ...


@runtime_checkable
class KnowsGold(Protocol):
    """A verifier that says itself how a row is answered. A class or function may have it.

    Without it the reference is taken for the answer, and `rewards.checks.gold` states it in the usual forms.
    """

    def gold_completions(self, reference: Any, prompt: Mapping[str, Any]) -> list[str] | None:
        """Completions one of which, at least, must be `correct` for this row, the likeliest first.

        None where the row has none, as its reference is no answer: the tests of a program, a rubric, nothing at all.

        Args:
            reference: the dataset row's reference answer, of any type.
            prompt: the dataset row's other columns.
        """
        ...


class ReadsNoReference:
    """For verifiers that judge a completion by itself: their rows have no gold completion."""

    def gold_completions(self, reference: Any, prompt: Mapping[str, Any]) -> list[str] | None:
        """None: the reference is no answer."""
        return None
