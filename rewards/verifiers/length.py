"""Scores the length of a completion in tokens, by DAPO's soft punishment of overlong completions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rewards.verdict import Verdict, correct, error, scored, wrong
from rewards.verifier import TOKENS_COLUMN, ReadsNoReference


class Length(ReadsNoReference):
    """The score is 0 up to `limit - buffer` tokens. From there it falls linearly to -1 at `limit` tokens.

    Source: equation 13 of DAPO (arXiv 2503.14476).

    Args:
        limit: number of tokens from which on the score is -1.
        buffer: the punishment grows over this number of tokens before `limit`.
        tokens_column: column with the completion's number of tokens; a run fills the default column.
        characters_per_token: average number of characters of a token. If the column is missing, the number of tokens is
            estimated from this value; if this value is None, the verdict is an `error`.

    Raises:
        ValueError: 0 < buffer <= limit does not hold.
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
        """The punishment, from -1 to 0: `correct` for 0, `wrong` for -1, `scored` for values between them."""
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
