"""The reward that the environment of a conversation gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rewards.adapt import PASS_MARK
from rewards.verdict import Verdict, error
from rewards.verifier import ReadsNoReference


class Environment(ReadsNoReference):
    """Stands for the environment's reward. A run takes the verdict from the conversation, and never calls this class.

    Args:
        pass_mark: least reward that counts as `correct`.
    """

    def __init__(self, pass_mark: float = PASS_MARK) -> None:
        self.pass_mark = pass_mark

    def __call__(self, completion: str, reference: Any, prompt: Mapping[str, Any]) -> Verdict:
        """Return an `error`: a text has no environment."""
        return error(
            "the verifier `environment` judges conversations only; add an environment, or use another verifier"
        )
