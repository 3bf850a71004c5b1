"""The code quickstart's task: write a function that does what a few words say, judged by running it.

A question names three to five steps, such as `add 7; times 3; max 5`; the answer is a Python function `f(x)` in a
fenced block, and its reference are hidden calls of it. A cold-started policy has seen careful demonstrations, one line
for each step, and sloppy ones, which do a single step and return. It can write the function when it goes step by step,
and does so less than half of the time: that this pays, it finds out from programs that were run.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator

from grpo.data.arithmetic import is_held_out

SHORTEST, LONGEST = 3, 5
_CALLS = 6  # hidden calls of one function
_LARGEST = 20  # argument of a hidden call, either sign
_LEAST_RESULTS = 3  # different results of the hidden calls; fewer could be guessed without the steps
# What a step is called, its Python text and its meaning. `k` is one digit; 2 at least, so that no step does nothing.
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
    """Arguments of the hidden calls, the same for the same question."""
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
    """What the function that does `steps` returns for `x`."""
    for name, k in steps:
        x = _STEPS[name][1](x, k)
    return x


def _program(steps: Steps) -> str:
    body = "".join(f" x={_STEPS[name][0].format(k=k)}\n" for name, k in steps)
    return f"def f(x):\n{body} return x"


def questions(count: int, seed: int = 0, held_out: bool = False) -> Iterator[dict[str, str]]:
    """Rows of steps (`prompt`), as JSON the calls that the code verifier makes (`answer`), and the right program.

    The calls are in the form of APPS; the program, `canonical_solution`, is for the check of gold answers.
    """
    for question, steps in _draw(count, seed, held_out):
        arguments = _arguments(question)
        calls = {"fn_name": "f", "inputs": [[x] for x in arguments], "outputs": [[value(steps, x)] for x in arguments]}
        yield {"prompt": question, "answer": json.dumps(calls), "canonical_solution": _program(steps)}


def demonstrations(count: int, seed: int = 0, careful_share: float = 0.45) -> Iterator[dict[str, str]]:
    """Rows `prompt`, `response`: a share of them careful, the others sloppy."""
    generator = random.Random(f"expression demonstrations {seed}")
    for question, steps in _draw(count, seed + 1, held_out=False):
        texts = [_STEPS[name][0].format(k=k) for name, k in steps]
        if generator.random() < careful_share:
            program = _program(steps)
        else:
            program = f"def f(x):\n return {generator.choice(texts)}"
        yield {"prompt": question, "response": f"```python\n{program}\n```"}
