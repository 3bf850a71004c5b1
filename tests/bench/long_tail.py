"""The long-tailed task: quickstart sums, of which one in N is marked and answered at great length.

The mark is the question's last character. The policy's cold start shows it to work a marked sum several times over,
counting down, before it answers: about 400 tokens where the others take 5 to 40. Both sides then sample from that
policy as they sample from any other; nothing is scripted.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from grpo.data.arithmetic import LONGEST, SHORTEST, demonstrations, questions

MARK = "*"
# A marked sum has the most terms there are, so that a pass over it takes about 35 tokens.
PASSES = 11


def training_rows(count: int, marked_one_in: int) -> Iterator[dict[str, str]]:
    """Rows `prompt`, `answer`; about one sum in `marked_one_in`, drawn by lot, is marked."""
    lots = random.Random("long tail")
    for row in questions(count):
        yield {**row, "prompt": row["prompt"] + MARK} if _is_drawn(row["prompt"], marked_one_in, lots) else row


def cold_start_rows(count: int, marked_one_in: int) -> Iterator[dict[str, str]]:
    """Rows `prompt`, `response`: the quickstart's demonstrations and, for marked sums, long ones."""
    lots = random.Random("long tail demonstrations")
    for row in demonstrations(count, seed=2):
        if _is_drawn(row["prompt"], marked_one_in, lots):
            yield {"prompt": row["prompt"] + MARK, "response": _at_length(row["prompt"])}
        else:
            yield row


def _is_drawn(question: str, marked_one_in: int, lots: random.Random) -> bool:
    # All numbers of terms are equally frequent, so that the longest sums have to be drawn so much more often.
    chance = (LONGEST - SHORTEST + 1) / marked_one_in
    return len(re.findall(r"\d", question)) == LONGEST and lots.random() < chance


def _at_length(question: str) -> str:
    total, *terms = (int(term) for term in re.findall(r"[+-]?\d", question))
    steps = []
    for term, sign in zip(terms, re.findall(r"[+-]", question), strict=True):
        steps.append(f"{total}{sign}{abs(term)}={total + term}")
        total += term
    passes = (f"{number}: {'; '.join(steps)}" for number in range(PASSES, 0, -1))
    return f"<think>{'; '.join(passes)}</think><answer>{total}</answer>"
