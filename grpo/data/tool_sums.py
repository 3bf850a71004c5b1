"""The task of the tools quickstart: sums that a small policy cannot work out itself, but a program can.

The cold start shows two kinds of answers: a call of the tool `python` and then its result, or at once the first number
of the sum, which is almost always wrong. The policy then calls the tool in a part of its answers. Reinforcement
learning teaches it to call the tool in all of them.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

from grpo.data.arithmetic import is_held_out

SHORTEST, LONGEST = 2, 3
LARGEST = 999
# What the policy reads of the tool.
PYTHON: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "python",
        "description": "Run a Python program.",
        "parameters": {"type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"]},
    },
}


def questions(count: int, seed: int = 0, held_out: bool = False) -> Iterator[dict[str, str]]:
    """Yield rows `prompt`, `answer`, for example `472+918-35=?` and `1355`."""
    for terms in _draw(random.Random(f"tool sums {seed} {held_out}"), count, held_out):
        yield {"prompt": f"{_written(terms)}=?", "answer": str(sum(terms))}


def demonstrations(count: int, seed: int = 0, calling_share: float = 0.3) -> Iterator[dict[str, Any]]:
    """Yield rows `messages`, `tools`; on average, `calling_share` of the conversations call the tool."""
    generator = random.Random(f"tool sum demonstrations {seed}")
    for terms in _draw(generator, count, held_out=False):
        messages = [{"role": "user", "content": f"{_written(terms)}=?"}]
        if generator.random() < calling_share:
            call = json.dumps({"name": "python", "arguments": {"code": _written(terms)}})
            messages.append({"role": "assistant", "content": f"<tool_call>{call}</tool_call>"})
            messages.append({"role": "tool", "content": str(sum(terms))})
            answer = sum(terms)
        else:
            answer = terms[0]
        messages.append({"role": "assistant", "content": f"<answer>{answer}</answer>"})
        yield {"messages": messages, "tools": [PYTHON]}


def _draw(generator: random.Random, count: int, held_out: bool) -> Iterator[list[int]]:
    while count:
        length = generator.randint(SHORTEST, LONGEST)
        terms = [generator.randint(1, LARGEST)]
        terms += [generator.choice((1, -1)) * generator.randint(1, LARGEST) for _ in range(length - 1)]
        if is_held_out(_written(terms)) == held_out:
            count -= 1
            yield terms


def _written(terms: list[int]) -> str:
    return str(terms[0]) + "".join(f"{term:+d}" for term in terms[1:])
