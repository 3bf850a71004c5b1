"""The code quickstart's task: write a function that does a few named steps. A verifier runs the function.

A question names three to five steps, such as `add 7; times 3; max 5`. The answer is a Python function `f(x)` in a
fenced block. The reference holds hidden calls of the function. The cold start uses careful demonstrations, with a line
for each step, and sloppy demonstrations, which do a single step and return. The policy then does all steps less than
half of the time. Reinforcement learning teaches it to do all steps.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator

from grpo.data.arithmetic import is_held_out

SHORTEST, LONGEST = 3, 5
_CALLS = 6  # number of hidden calls of a function
_LARGEST = 20  # largest absolute argument of a hidden call
_LEAST_RESULTS = 3  # least number of different results of the hidden calls; a policy could guess fewer results
# Name of a step -> its Python text and its meaning. `k` is a digit from 2 to 9: with 1, `times` would do nothing.
_STEPS: dict[str, tuple[str, Callable[[int, int], int]]] = {
    "add": ("x+{k}", lambda x, k: x + k),
    "take": ("x-{k}", lambda x, k: x - k),
    "times": ("x*{k}", lambda x, k: x * k),
    "mod": ("x%{k}", lambda x, k: x % k),
    "max": ("max(x,{k})", lambda x, k: max(x, k)),
    "min": ("min(x,{k})", lambda x, k: min(x, k)),
}

Steps = list[tuple[str, int]]


def _arguments(question: str) -> list[int]:
    """Return the arguments of the hidden calls; they depend only on the question."""
    return random.Random(question).sample(range(-_LARGEST, _LARGEST + 1), _CALLS)


def _draw(count: int, seed: int, held_out: bool) -> Iterator[tuple[str, Steps]]:
    generator = random.Random(f"expressions {seed} {held_out}")
    while count:
        length = generator.randint(SHORTEST, LONGEST)
        steps = [(generator.choice(list(_STEPS)), generator.randint(2, 9)) for _ in range(length)]
        question = "; ".join(f"{name} {k}" for name, k in steps)
        results = {value(steps, x) for x in _arguments(question)}
        if is_held_out(question) == held_out and len(results) >= _LEAST_RESULTS:
            count -= 1
            yield question, steps


def value(steps: Steps, x: int) -> int:
    """Apply `steps` to `x`."""
    for name, k in steps:
        x = _STEPS[name][1](x, k)
    return x


def _program(steps: Steps) -> str:
    body = "".join(f" x={_STEPS[name][0].format(k=k)}\n" for name, k in steps)
    return f"def f(x):\n{body} return x"


def questions(count: int, seed: int = 0, held_out: bool = False) -> Iterator[dict[str, str]]:
    """Yield rows with steps (`prompt`), the verifier's calls as JSON (`answer`) and a right program.

    The calls have the format of APPS. The check of gold answers uses the program, `canonical_solution`.
    """
    for question, steps in _draw(count, seed, held_out):
        arguments = _arguments(question)
        calls = {"fn_name": "f", "inputs": [[x] for x in arguments], "outputs": [[value(steps, x)] for x in arguments]}
        yield {"prompt": question, "answer": json.dumps(calls), "canonical_solution": _program(steps)}


def demonstrations(count: int, seed: int = 0, careful_share: float = 0.45) -> Iterator[dict[str, str]]:
    """Yield rows `prompt`, `response`; on average, `careful_share` of them are careful."""
    generator = random.Random(f"expression demonstrations {seed}")
    for question, steps in _draw(count, seed + 1, held_out=False):
        texts = [_STEPS[name][0].format(k=k) for name, k in steps]
        if generator.random() < careful_share:
            program = _program(steps)
        else:
            program = f"def f(x):\n return {generator.choice(texts)}"
        yield {"prompt": question, "response": f"```python\n{program}\n```"}
