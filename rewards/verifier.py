"""The interface of every verifier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from rewards.verdict import Verdict

# Column with the question, before any chat template. A run and an evaluation add it to rows without such a column.
PROBLEM_COLUMN = "problem"
# Column with the completion's number of tokens, including the end token. A run adds it to every row.
TOKENS_COLUMN = "completion_tokens"


@runtime_checkable
class Verifier(Protocol):
    """Scores one completion against its reference.

    A verifier runs in a worker process that is killed at the deadline. So a slow or stuck verifier does not harm the
    run. It must be picklable (a module-level function, or an object made of plain data).
    """

    def __call__(self, completion: str, reference: Any, prompt: Mapping[str, Any]) -> Verdict:
        """Return the verdict on `completion`.

        Args:
            completion: text that the policy sampled. It is hostile: never evaluate it, unpickle it, or put it into a
                shell command.
            reference: reference answer of the dataset row.
            prompt: other columns of the dataset row, for verifiers that need more than the reference.
        """
        ...


@runtime_checkable
class KnowsReferences(Protocol):
    """A verifier that can tell before any completion whether it can use a reference.

    A class or a function may have the method. `grpo check` names the rows whose reference cannot be used, and a run
    leaves them out.
    """

    def reference_problem(self, reference: Any, prompt: Mapping[str, Any]) -> str:
        """Why `reference` cannot be used, in a few words; empty when it can be used.

        It is called once for each row of the data, in a worker process, and should take well under a millisecond.

        Args:
            reference: reference answer of the dataset row, of any type.
            prompt: other columns of the dataset row.
        """
        ...


@runtime_checkable
class KnowsGold(Protocol):
    """A verifier that knows correct completions of a row. A class or a function may have the method.

    Without the method, `rewards.checks.gold` states the reference as the answer, in the usual forms.
    """

    def gold_completions(self, reference: Any, prompt: Mapping[str, Any]) -> list[str] | None:
        """Completions for this row, the likeliest first; at least one of them must be `correct`.

        None when the reference is no answer, such as the tests of a program, a rubric, or nothing at all.

        Args:
            reference: reference answer of the dataset row, of any type.
            prompt: other columns of the dataset row.
        """
        ...


class ReadsNoReference:
    """Base of verifiers that judge a completion without the reference: their rows have no gold completion."""

    def gold_completions(self, reference: Any, prompt: Mapping[str, Any]) -> list[str] | None:
        """None: the reference is no answer."""
        return None
