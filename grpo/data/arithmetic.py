"""The quickstart's task: chains of one-digit terms. A policy with random weights can learn it on one CPU core.

The cold start uses careful demonstrations (think step by step, then answer) and sloppy demonstrations (answer at once,
wrong by up to 9). The policy then thinks about half of the time. Reinforcement learning teaches it to think.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator

SHORTEST, LONGEST = 3, 5


def is_held_out(question: str) -> bool:
    """Return True for a tenth of the questions, by a hash of the text. Training never uses them."""
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
    """Yield rows `prompt`, `answer`, for example `2-9+8+8+3=?` and `12`."""
    for question, terms, _ in _draw(count, seed, held_out):
        yield {"prompt": question, "answer": str(sum(terms))}


def demonstrations(count: int, seed: int = 0, careful_share: float = 0.5) -> Iterator[dict[str, str]]:
    """Yield rows `prompt`, `response`; on average, `careful_share` of them are careful."""
    generator = random.Random(f"demonstrations {seed}")
    for question, terms, signs in _draw(count, seed + 1, held_out=False):
        careful = generator.random() < careful_share
        response = _careful(terms, signs) if careful else _sloppy(terms, generator)
        yield {"prompt": question, "response": response}


def _careful(terms: list[int], signs: list[str]) -> str:
    total, steps = terms[0], []
    for sign, term in zip(signs, terms[1:], strict=True):
        steps.append(f"{total}{sign}{abs(term)}={total + term}")
        total += term
    return f"<think>{'; '.join(steps)}</think><answer>{total}</answer>"


def _sloppy(terms: list[int], generator: random.Random) -> str:
    return f"<answer>{sum(terms) + generator.randint(-9, 9)}</answer>"


def preferences(count: int, seed: int = 0, noise: float = 0.1, careful_share: float = 0.45) -> Iterator[dict[str, str]]:
    """Yield rows `prompt`, `chosen`, `rejected` of a made-up rater whose true rule is known.

    Two answers are drawn as `demonstrations` draws them, until exactly one of them has the right sum. The rater prefers
    the right answer. With the probability `noise`, he errs and prefers the wrong one. So no policy can agree with more
    than the share 1 - `noise` of his preferences.
    """
    generator = random.Random(f"preferences {seed}")
    for question, terms, signs in _draw(count, seed + 2, held_out=False):
        while True:
            pair = [
                _careful(terms, signs) if generator.random() < careful_share else _sloppy(terms, generator)
                for _ in range(2)
            ]
            right = [f"<answer>{sum(terms)}</answer>" in answer for answer in pair]
            if right[0] != right[1]:
                break
        if not right[0]:
            pair.reverse()
        if generator.random() < noise:
            pair.reverse()
        yield {"prompt": question, "chosen": pair[0], "rejected": pair[1]}
