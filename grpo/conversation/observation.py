"""Cut long answers of the world, with a mark where text is missing."""

from __future__ import annotations

from collections.abc import Callable


def shortened(text: str, most: int, count: Callable[[str], int]) -> str:
    """Return the text; if it is too long, its beginning and its end, with a mark between them.

    Args:
        text: what the world says.
        most: largest number of tokens. The mark itself may exceed it.
        count: function that returns the number of tokens of a text.
    """
    # A token has at least a byte, and counting the tokens of 10 MB takes seconds.
    if len(text.encode()) <= most or (len(text) <= 64 * most and count(text) <= most):
        return text
    low, high = 0, min(len(text), 64 * most)  # Characters that are kept.
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if count(_cut(text, middle)) <= most else (low, middle - 1)
    return _cut(text, low)


def _cut(text: str, kept: int) -> str:
    begin, end = (kept + 1) // 2, kept // 2
    return f"{text[:begin]}\n[{len(text) - kept:,} characters are left out]\n{text[len(text) - end :]}"
