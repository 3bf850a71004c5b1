r"""A fuzzer of repeated units: completions that say the same few scraps over and over, where a search may explode.

    PYTHONPATH=. python tests/support/repeated_units.py [--seed 0] [--seconds 300]

runs it by hand and prints every text over the limit and every exception. The same seed gives the same texts.
"""

from __future__ import annotations

import argparse
import random
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from rewards.verdict import Verdict
from rewards.verifiers.choice import Choice
from rewards.verifiers.code import extract_code
from rewards.verifiers.exact import Exact
from rewards.verifiers.format import Format
from rewards.verifiers.length import Length
from rewards.verifiers.math import Math
from rewards.verifiers.numeric import Numeric
from rewards.verifiers.ordered_list import OrderedList
from rewards.verifiers.repetition import Repetition
from sandbox.types import Language

# Seconds of processor time that one verdict may take.
LIMIT = 1.0

_SCRAPS = (
    " ", "  ", "\n", "\n\n", "\t", "\r\n", "\u00a0", "\u3000", "0", "1", "9", "12", "123", "1,000", "3.5", ".5",
    "1e5", "x", "i", "k", "a", "N", "+", "-", "*", "/", "^", "_", "=", "!", "%", "'", "\"", "|", ",", ";", ":", ".",
    "...", "?", "&", "~", "#", "(", ")", "[", "]", "{", "}", "<", ">", "$", "$$", "\\", "\\\\", "@", "`", "\\frac",
    "\\frac{1}{2}", "\\frac12", "\\sqrt", "\\sqrt[3]{2}", "^2", "^{2}", "_1", "_{10}", "x^2_1", "^\\circ",
    "^{\\circ}", "\\circ", "\\pi", "\\infty", "\\pm", "\\cdot", "\\times", "\\div", "\\left(", "\\right)",
    "\\left\\{", "\\right.", "\\{", "\\}", "\\,", "\\;", "\\!", "\\ ", "\\quad", "\\text{", "\\text{ cm}",
    "\\text{ and }", "\\text{ or }", "\\mathrm{", "\\mathbf{i}", "\\hat{j}", "\\overline{3}", "\\dot{3}",
    "\\color{red}", "\\textcolor{red}{", "\\begin{cases}", "\\end{cases}", "\\begin{pmatrix}", "\\end{pmatrix}",
    "\\begin{array}{ll}", "\\cup", "\\setminus", "\\mathbb{R}", "\\mathbb{Z}", "\\in", "\\pmod{7}", "(\\bmod 7)",
    "\\bmod", "\\sin", "\\ln(", "\\log_2", "\\sum_{k=1}^n", "\\int", "\\binom{5}{2}", "\\le", "\\ne", "\\mid",
    "\\lfloor", "\\rfloor", "\\%", "\\$", "\\boxed", "\\boxed{", "\\boxed{6}", "\\fbox{6}", "\\prime", "\\ldots",
    "\\Gamma(", "\\choose", "\\over", "\\operatorname{", "2^", "2**", "(x+1)", "x!", "9!", "* ", "- ", "** ", "**",
    "1. ", "1) ", "(1) ", "(a)", "A) ", "a.", "## ", "#### ", "####", "```", "```python\n", "~~~", "> ", "<think>",
    "</think>", "<answer>", "</answer>", "<answer>6</answer>", "[THINK]", "<|im_end|>", "and ", "or ", "maybe ",
    "is ", "not ", "the answer is ", "Answer:", "answer: ", "**Answer:** ", "The answer is 6. ", "Wait, ", "no, ",
    "so ", "because ", "miles per hour ", "apples ", "hundred ", "thousand ", "million ", "percent ", "option ",
    "case ", "integer ", "where k ", "5 cm ", "$x$ ", "$5", "12\u4e2a", "\u4e07", "\u7b54\u6848", "\u3002", "\uff0c",
    "\u00bd", "\u00b2", "\u2083", "\u2212", "\u00d7", "\u221a", "\u222a", "\u2192", "\u2019", "\u2026", "\u200b",
    "\u202e", "\u0301", "\ud800",
)  # fmt: skip
_PLACES = (
    "{}", "\\boxed{{{}}}", "\\boxed{{5{}}}", "\\boxed{{{}5}}", "\\boxed{{5{}6}}", "\\boxed{{\\text{{5{}}}}}",
    "\\boxed{{5^\\circ{}}}", "First \\boxed{{6}}{} so \\boxed{{7}}", "\\boxed{{6}}{}\\boxed{{7}}",
    "<answer>{}</answer>", "<answer>5{}</answer>", "<answer>6</answer>{}<answer>7</answer>", "The answer is {}",
    "The answer is 5{}", "The answer is 5{}.", "The answer is 5 {} 6.", "Answer:{}5", "Answer:\n{}", "#### {}",
    "#### 5{}", "{}#### 5", "So it is 5{}", "It is 5 {} and 6.", "5. {}", "$5{}$", "$${}$$", "\\[{}\\]",
    "<think>{}</think>5", "{}</think>5", "```python\n{}\n```", "{}```python\nx\n```", "1. A{}\n2. B", "A) {} B) {}",
    "The answer isn't 5. {} It is 6.", "\\boxed{{\\begin{{cases}} {} \\end{{cases}}}}", "\\boxed{{({})}}",
    "\\boxed{{\\{{{}\\}}}}", "\\boxed{{x={}}}", "\\boxed{{{}, k\\in\\mathbb{{Z}}}}",
    "\\boxed{{k\\pi {} k is an integer}}", "\\boxed{{7^{{{}}}}}",
)  # fmt: skip
_GOLDS = (
    "5", "-\\frac{1}{2}", "1.6", "8.7 \\times 10^{8}", "x+1", "x^2+y", "(1,2)", "[2,5)", "\\{1,2\\}", "1,2,3",
    "5\\text{ cm}", "50\\%", "30^\\circ", "\\text{yes}", "C", "x=5", "y=2x", "x>2", "(0,1)\\cup(2,3)", "3:4",
    "k\\pi, k\\in\\mathbb{Z}", "3 \\pmod 7", "\\begin{pmatrix}1\\\\2\\end{pmatrix}",
    "\\begin{cases} x & x>0 \\\\ -x & x\\le 0 \\end{cases}", "3\\mathbf{i}+4\\mathbf{j}", "1 \\pm \\sqrt{2}",
    "f(x)=x^2", "\\sqrt[3]{x-2}", "2^{100}", "\\text{does not exist}", "a, b, c",
)  # fmt: skip
_LONGEST = 4000


class Slow(Exception):
    """A verdict was stopped at the limit."""


def texts(seed: int) -> Iterator[tuple[str, str]]:
    """Golds with completions, without an end."""
    chance = random.Random(seed)
    while True:
        unit = "".join(chance.choices(_SCRAPS, k=chance.randint(1, 4)))
        most = max(1, _LONGEST // len(unit))
        times = chance.choice((chance.randint(12, 40), chance.randint(1, most), most))
        body = unit * min(times, most)
        if chance.random() < 0.5:
            body += chance.choice(_SCRAPS)
        if chance.random() < 0.3:
            body = chance.choice(_SCRAPS) + body
        if chance.random() < 0.2:
            other = "".join(chance.choices(_SCRAPS, k=chance.randint(1, 3)))
            body += other * chance.randint(1, max(1, _LONGEST // len(other)))
        yield chance.choice(_GOLDS), chance.choice(_PLACES).replace("{}", body).replace("{{", "{").replace("}}", "}")


def verifiers() -> dict[str, Callable[[str, str], object]]:
    """Every built-in verifier that reads a text, by name, as functions of gold and completion."""
    math, rounded = Math(), Math(rounded=True, decimal_comma="always")
    others = {
        "numeric": (Numeric(), "5"),
        "exact": (Exact(), "yes"),
        "choice": (Choice(), "B"),
        "ordered_list": (OrderedList(), ["a", "b"]),
        "format": (Format(), ""),
        "repetition": (Repetition(), ""),
        "length": (Length(100, 50, characters_per_token=4.0), ""),
    }
    row: dict[str, Any] = {"problem": "What is $17 \\times 23+4$?", "choices": ["one", "two", "three"]}

    def as_gold(gold: str, completion: str) -> None:
        rounded.reference_problem(completion[:_LONGEST], row)
        rounded.judge(completion[:_LONGEST], gold)

    def as_problem(gold: str, completion: str) -> None:
        rounded("\\boxed{17(23)+4}", "395", {"problem": completion})

    return {
        "math": lambda gold, completion: math(completion, gold, row),
        "math, the text as the gold": as_gold,
        "math, the text as the problem": as_problem,
        "code": lambda gold, completion: extract_code(completion, Language.PYTHON),
        **{
            name: lambda gold, completion, verify=verify, reference=reference: verify(completion, reference, row)
            for name, (verify, reference) in others.items()
        },
    }


def run(seed: int, most: int, seconds: float) -> list[str]:
    """What was slow and what raised, of so many texts, or of as many as so many seconds of processor time allow."""
    calls = verifiers()
    faults: list[str] = []
    before = signal.signal(signal.SIGPROF, _stop)
    begun = time.process_time()
    try:
        for at, (gold, completion) in enumerate(texts(seed)):
            if at == most or time.process_time() - begun > seconds:
                break
            for name, call in calls.items():
                signal.setitimer(signal.ITIMER_PROF, LIMIT)
                try:
                    verdict = call(gold, completion)
                except Slow:
                    faults.append(f"{name}: over {LIMIT} s: gold {gold!r}, completion {completion[:300]!r}")
                except Exception as problem:  # what it raises is what is looked for
                    faults.append(f"{name}: {problem!r}: gold {gold!r}, completion {completion[:300]!r}")
                else:
                    # The references can be used: no completion may make a verdict the machinery's fault.
                    if isinstance(verdict, Verdict) and verdict.status.failed:
                        faults.append(f"{name}: {verdict}: gold {gold!r}, completion {completion[:300]!r}")
                finally:
                    signal.setitimer(signal.ITIMER_PROF, 0)
    finally:
        signal.signal(signal.SIGPROF, before)
    return faults


def _stop(number: int, frame: FrameType | None) -> None:
    raise Slow


def main() -> None:
    """Run by hand and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=300.0)
    options = parser.parse_args()
    faults = run(options.seed, -1, options.seconds)
    print("\n".join(faults) or f"nothing in {options.seconds:g} s")


if __name__ == "__main__":
    main()
