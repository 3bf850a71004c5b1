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
