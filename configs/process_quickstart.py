"""The verifier of configs/process_quickstart.yaml: it scores each step of a sum, and the answer."""

import re
from collections.abc import Mapping
from typing import Any

from rewards.verdict import Status, Verdict

STEP = re.compile(r"(-?\d+)([+-])(\d+)=(-?\d+)")
ANSWER = re.compile(r"<answer>(-?\d+)</answer>")


def steps(completion: str, reference: str, prompt: Mapping[str, Any]) -> Verdict:
    """Score the steps of `2-9+8=?`: `2-9=-7; -7+8=1`, then the answer.

    A step is right if it goes on from the result before it with the next term, and its own result is right. So an early
    mistake does not make the later steps wrong, and a step that the sum does not need earns nothing.
    """
    first, *terms = re.findall(r"[+-]?\d+", prompt["prompt"])
    total, spans = int(first), []
    thought = completion.split("<answer>")[0]
    for number, step in enumerate(STEP.finditer(thought)):
        begin, sign, term, result = step.groups()
        needed = number < len(terms) and int(begin) == total and int(sign + term) == int(terms[number])
        right = needed and int(result) == total + int(terms[number])
        spans.append((step.start(), step.end(), float(right)))
        total = int(result)
    answer = ANSWER.search(completion, len(thought))
    right = answer is not None and int(answer[1]) == int(reference)
    if answer:
        spans.append((answer.start(), answer.end(), float(right)))
    return Verdict(float(right), Status.CORRECT if right else Status.WRONG, spans=spans)
