"""The quickstart's task: chains of one-digit terms, small enough to learn from nothing on one core.

A cold-started policy has seen careful demonstrations (think step by step, then answer) and sloppy ones (answer at
once, off by up to 9). It can do the sum when it thinks, and thinks about half the time: what reinforcement learning
has to find out is that thinking pays.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator

SHORTEST, LONGEST = 3, 5


def is_held_out(question: str) -> bool:
    """One question in ten is never trained on; which, is settled by its text."""
    return zlib.crc32(question.encode()) % 10 == 0


def _terms(generator: random.Random) -> list[int]:
    count = generator.randint(SHORTEST, LONGEST)
    return [generator.randint(0, 9)] + [generator.choice((1, -1)) * generator.randint(0, 9) for _ in range(count - 1)]


def _question(terms: list[int], signs: list[str]) -> str:
    return str(terms[0]) + "".join(f"{sign}{abs(term)}" for sign, term in zip(signs, terms[1:], strict=True)) + "=?"


def _draw(count: int, seed: int, held_out: bool) -> Iterator[tuple[str, list[int], list[str]]]:
    generator = random.Random(f"arithmetic {seed} {held_out}")
    while count:
        terms = _terms(generator)
        signs = ["-" if term < 0 or (term == 0 and generator.random() < 0.5) else "+" for term in terms[1:]]
        question = _question(terms, signs)
        if is_held_out(question) == held_out:
            count -= 1
            yield question, terms, signs


def questions(count: int, seed: int = 0, held_out: bool = False) -> Iterator[dict[str, str]]:
    """Rows `prompt`, `answer`: for example `2-9+8+8+3=?` and `12`."""
    for question, terms, _ in _draw(count, seed, held_out):
        yield {"prompt": question, "answer": str(sum(terms))}


def demonstrations(count: int, seed: int = 0, careful_share: float = 0.5) -> Iterator[dict[str, str]]:
    """Rows `prompt`, `response`: a share of them careful, the others sloppy."""
    generator = random.Random(f"demonstrations {seed}")
    for question, terms, signs in _draw(count, seed + 1, held_out=False):
        if generator.random() < careful_share:
            total, steps = terms[0], []
            for sign, term in zip(signs, terms[1:], strict=True):
                steps.append(f"{total}{sign}{abs(term)}={total + term}")
                total += term
            response = f"<think>{'; '.join(steps)}</think><answer>{total}</answer>"
        else:
            response = f"<answer>{sum(terms) + generator.randint(-9, 9)}</answer>"
        yield {"prompt": question, "response": response}
