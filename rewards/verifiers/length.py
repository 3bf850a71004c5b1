"""The length of a completion, in tokens: DAPO's soft punishment of what is overlong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rewards.verdict import Verdict, correct, error, scored, wrong
from rewards.verifier import TOKENS_COLUMN, ReadsNoReference


class Length(ReadsNoReference):
    """0 up to `limit - buffer` tokens, falling linearly to -1 at `limit`, -1 beyond (DAPO, arXiv 2503.14476, eq. 13).

    Args:
        limit: the most tokens that a completion may have.
        buffer: the last tokens before the limit, over which the punishment grows.
        tokens_column: where the caller of the verifier puts the completion's number of tokens; a run uses the
            default.
        characters_per_token: where that column is missing, estimate the tokens from the characters; None makes a
            missing column an `error`.

    Raises:
        ValueError: not 0 < buffer <= limit.
    """

    def __init__(
        self,
        limit: int,
        buffer: int,
        tokens_column: str = TOKENS_COLUMN,
        characters_per_token: float | None = None,
    ) -> None:
        if not 0 < buffer <= limit:
            raise ValueError(f"0 < buffer <= limit is needed, got limit={limit!r} and buffer={buffer!r}")
        if characters_per_token is not None and not characters_per_token > 0:
            raise ValueError(f"characters_per_token must be positive, got {characters_per_token!r}")
        self.limit, self.buffer = limit, buffer
        self.tokens_column, self.characters_per_token = tokens_column, characters_per_token

    def __call__(self, completion: str, reference: Any, prompt: Mapping[str, Any]) -> Verdict:
        """The punishment, from -1 to 0; `correct` when there is none, `wrong` when it is the whole, else `scored`."""
        tokens = prompt.get(self.tokens_column)
        if tokens is None and self.characters_per_token is not None:
            tokens = len(completion) / self.characters_per_token
        if not isinstance(tokens, (int, float)):
            return error(f"the column {self.tokens_column!r} with the completion's number of tokens is missing")
        begin = self.limit - self.buffer
        punishment = -min(1.0, max(0.0, (tokens - begin) / self.buffer))
        if punishment == 0.0:
            return correct(f"{tokens:g} tokens", 0.0)
        reason = f"{tokens:g} tokens, over {begin}"
        return wrong(reason, punishment) if punishment == -1.0 else scored(punishment, reason)
