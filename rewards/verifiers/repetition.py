"""A punishment for repeated text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rewards.verdict import Verdict, correct, scored
from rewards.verifier import ReadsNoReference

# Greatest number of characters that are judged. If a text is longer, only its end is judged, because repetition
# begins late.
_MAX_CHARACTERS = 200_000


class Repetition(ReadsNoReference):
    """A punishment, from 0 to `-worst`, that grows with the share of n-grams that occur earlier in the completion.

    The share of repeated n-grams is defined in "Demystifying Long Chain-of-Thought" (arXiv 2502.03373).

    Args:
        size: length of the n-grams.
        unit: `words`, or `characters` for languages without spaces.
        free: share of repeated n-grams that is not punished, since proofs and tables repeat a little.
        worst: greatest punishment.

    Raises:
        ValueError: a size below 1, a free share outside [0, 1), or a punishment that is not positive.
    """

    def __init__(
        self, size: int = 6, unit: Literal["words", "characters"] = "words", free: float = 0.1, worst: float = 1.0
    ) -> None:
        if size < 1 or not 0 <= free < 1 or not worst > 0:
            raise ValueError(f"size >= 1, 0 <= free < 1 and worst > 0 are needed, got {size!r}, {free!r}, {worst!r}")
        if unit not in ("words", "characters"):
            raise ValueError(f"unit must be 'words' or 'characters', got {unit!r}")
        self.size, self.unit, self.free, self.worst = size, unit, free, worst

    def __call__(self, completion: str, reference: Any, prompt: Mapping[str, Any]) -> Verdict:
        """Return the punishment. The status is `correct` if the punishment is 0, else `scored`."""
        text = completion[-_MAX_CHARACTERS:]
        pieces: Sequence[str] = text.split() if self.unit == "words" else text
        count = len(pieces) - self.size + 1
        if count < 2:
            return correct("too short to repeat itself", 0.0)
        distinct = len({tuple(pieces[at : at + self.size]) for at in range(count)})
        share = 1.0 - distinct / count
        excess = max(0.0, share - self.free) / (1.0 - self.free)
        if excess == 0.0:
            return correct(f"{share:.0%} repeated", 0.0, repeated=share)
        return scored(-self.worst * excess, f"{share:.0%} repeated", repeated=share)
