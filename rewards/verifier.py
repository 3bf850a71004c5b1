"""The interface of every verifier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from rewards.verdict import Verdict

# Column with the question, before a chat template is applied. A run and an evaluation add it to rows without such a
# column.
PROBLEM_COLUMN = "problem"
# Column with the completion's number of tokens, including the end token. A run adds it to every row.
TOKENS_COLUMN = "completion_tokens"
# Column with all messages of a conversation, as dicts with `role`, `content` and, for a tool's result, `name`. A run
# adds it only where the completion is a conversation.
MESSAGES_COLUMN = "messages"


@runtime_checkable
class Verifier(Protocol):
    """Scores one completion against its reference.

    A verifier runs in a worker process that is killed at the deadline. So a slow or stuck verifier does not harm the
    run. A verifier must be picklable (a module-level function, or an object made of plain data).

    A verifier may have two more methods, which a check of a dataset calls in a worker process. Both take the reference
    and the row's columns. `reference_problem` says why the reference cannot be used; an empty text means that it can.
    `gold_completions` lists completions, at least one of which must be judged `correct`; None means that the reference
    is not an answer and that there are no such completions.
    """

    def __call__(self, completion: str, reference: Any, prompt: Mapping[str, Any]) -> Verdict:
        """Return the verdict on `completion`.

        Args:
            completion: text that the policy sampled. It may be hostile: never evaluate or unpickle this text, and never
                put it into a shell command.
            reference: reference answer of the dataset row.
            prompt: other columns of the dataset row, for verifiers that need more than the reference.
        """
        ...


class ReadsNoReference:
    """Base of verifiers that judge a completion without the reference. Their rows have no gold completion."""

    def gold_completions(self, reference: Any, prompt: Mapping[str, Any]) -> list[str] | None:
        """Return None, because the reference is not an answer."""
        return None
