"""A task with a made-up rater: name the three largest numbers of a list. A small policy learns it on one CPU core.

A prompt is a list of five one-digit numbers, such as `28179?`, and a summary of it names three of them, such as `987`.
The cold start names any three. A rater, whose rule is known, prefers summaries with larger numbers.
"""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

from rewards.verdict import Verdict, correct, wrong

NUMBERS, NAMED = 5, 3
# The rater takes this off for each number that is not in the list, is repeated, is missing, or is too many.
PENALTY = 8
# Share of the summaries of the cold start that may break the rules, and number of them that `rated` compares with.
SLOPPY_SHARE, OPPONENTS = 0.05, 100


def is_held_out(prompt: str) -> bool:
    """Return True for a tenth of the prompts, by a hash of the text. Training never uses them."""
    return zlib.crc32(prompt.encode()) % 10 == 0


def quality(prompt: str, summary: str) -> int:
    """Return the rater's true opinion of a summary.

    It is the sum of the numbers that are in the list, each counted once, minus `PENALTY` for each other character, each
    repetition, and each number fewer or more than three.
    """
    listed = set(prompt) & set("0123456789")
    named = set(summary) & listed
    return sum(map(int, named)) - PENALTY * (len(summary) - len(named) + abs(len(summary) - NAMED))


def _prompts(count: int, seed: int, held_out: bool) -> Iterator[tuple[str, random.Random]]:
    draw = random.Random(f"summaries {seed} {held_out}")
    while count:
        prompt = "".join(draw.sample("0123456789", NUMBERS)) + "?"
        if is_held_out(prompt) == held_out:
            count -= 1
            yield prompt, draw


def _summary(prompt: str, draw: random.Random, sloppy_share: float) -> str:
    """Name three numbers at random; sometimes a number that is repeated or not in the list, or four numbers."""
    if draw.random() >= sloppy_share:
        return "".join(draw.sample(prompt[:-1], NAMED))
    return "".join(draw.choice("0123456789") for _ in range(draw.choice((NAMED, NAMED, NAMED + 1))))


def prompts(count: int, seed: int = 0, held_out: bool = False) -> Iterator[dict[str, str]]:
    """Yield rows `prompt`, `answer`; the answer is the best summary."""
    for prompt, _ in _prompts(count, seed, held_out):
        yield {"prompt": prompt, "answer": "".join(sorted(prompt[:-1], reverse=True)[:NAMED])}


def demonstrations(count: int, seed: int = 0, sloppy_share: float = SLOPPY_SHARE) -> Iterator[dict[str, str]]:
    """Yield rows `prompt`, `response`: summaries of any quality."""
    for prompt, draw in _prompts(count, seed + 1, held_out=False):
        yield {"prompt": prompt, "response": _summary(prompt, draw, sloppy_share)}


def preferences(
    count: int, seed: int = 0, temperature: float = 3.0, answers: int = 2, sloppy_share: float = 0.5
) -> Iterator[dict[str, Any]]:
    """Yield rows `prompt`, `chosen`, `rejected` of a rater who is not always of the same opinion.

    He sees two summaries, the share `sloppy_share` of them against the rules, and prefers one with the probability
    sigmoid(difference of their qualities / `temperature`). So a model that knows his rule agrees with about `ceiling`
    of his preferences. With more `answers`, the rows are `prompt`, `ranking`, drawn from Plackett and Luce's model.
    """
    for prompt, draw in _prompts(count, seed + 2, held_out=False):
        seen: list[str] = []
        while len(seen) < answers:
            summary = _summary(prompt, draw, sloppy_share)
            if summary not in seen:
                seen.append(summary)
        # The largest of values with Gumbel's noise is drawn by softmax, and so is each later place of the ranking.
        noisy = {each: quality(prompt, each) / temperature - math.log(-math.log(draw.random())) for each in seen}
        ranking = sorted(seen, key=noisy.__getitem__, reverse=True)
        if answers == 2:
            yield {"prompt": prompt, "chosen": ranking[0], "rejected": ranking[1]}
        else:
            yield {"prompt": prompt, "ranking": ranking}


def ceiling(rows: Iterator[Mapping[str, Any]]) -> float:
    """Return the share of pairs in which the rater agrees with his own rule. Equal qualities count as half."""
    shares = []
    for row in rows:
        better, worse = (quality(row["prompt"], row[name]) for name in ("chosen", "rejected"))
        shares.append(1.0 if better > worse else 0.5 if better == worse else 0.0)
    return math.fsum(shares) / len(shares)


def rated(completion: str, reference: Any, prompt: Mapping[str, Any]) -> Verdict:
    """Verify a summary by the rater's rule without noise. It is `correct` if no summary is better.

    The score is the win rate: the share of the cold start's summaries of the same list that are worse. Equal ones count
    as half.
    """
    listed = str(prompt["prompt"])
    own, best = quality(listed, completion.strip()), quality(listed, str(reference))
    draw = random.Random(f"opponents {listed}")
    others = [quality(listed, _summary(listed, draw, SLOPPY_SHARE)) for _ in range(OPPONENTS)]
    wins = math.fsum(1.0 if own > other else 0.5 if own == other else 0.0 for other in others) / OPPONENTS
    reason = f"quality {own}, of {best} at most"
    return correct(reason, wins) if own >= best else wrong(reason, wins)
