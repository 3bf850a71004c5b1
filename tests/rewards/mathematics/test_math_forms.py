"""Forms that data sets and models write, each with near misses, and what the verifier says of its references."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from repeated_units import LIMIT, run

from rewards.mathematics.reading.restated import is_restated
from rewards.verdict import Status
from rewards.verifiers.code import extract_code
from rewards.verifiers.math import Math
from sandbox.types import Language

FORMS = Path(__file__).parents[1] / "corpus" / "forms.txt"
OPTIONS = {"rounded": {"rounded": True}, "decimal_comma": {"decimal_comma": "always"}}


def pairs() -> dict[str, list[tuple[bool, str, str]]]:
    """By kind: whether the answer is right, the gold, the answer."""
    kinds: dict[str, list[tuple[bool, str, str]]] = {}
    for line in FORMS.read_text(encoding="utf-8").splitlines():
        if line.startswith("[") and " ;; " not in line:
            kinds[line.strip("[]")] = listed = []
        elif line.strip():
            gold, separator, answer = line[2:].partition(" ;; ")
            assert line[:2] in ("= ", "! ") and separator, line
            listed.append((line[0] == "=", gold, answer))
    return kinds


@pytest.mark.parametrize("kind", pairs())
def test_each_form_is_read(kind: str) -> None:
    verify = Math(**OPTIONS.get(kind.split()[-1], {}))
    faults = []
    for right, gold, answer in pairs()[kind]:
        verdict = verify(f"\\boxed{{{answer}}}", gold, {})
        if verdict.status.failed or (verdict.status is Status.CORRECT) != right:
            faults.append((gold, answer, verdict))
        assert verify(f"\\boxed{{{gold}}}", gold, {}).status is Status.CORRECT, gold
        assert verify.reference_problem(gold) == "", gold
    assert not faults


@pytest.mark.parametrize(
    ("reference", "problem"),
    [
        ("5", ""),
        (5.0, ""),
        (["5"], ""),
        ("\\hbar\\odot", ""),
        ("7^{1999!}", ""),
        ("[0,1)", ""),
        (None, "neither text nor a number"),
        (["1", "2"], "join a list's values"),
        (" ", "empty"),
        ("7" * 4000, "4000 characters"),
        ("2^{2^{2^{2^{2^{2^{2^2}}}}}}", "within the bounds"),
        ("\\frac{1}{x-x}", "within the bounds"),
    ],
)
def test_a_reference_that_cannot_be_used_says_why(reference: object, problem: str) -> None:
    said = Math().reference_problem(reference)
    assert problem in said if problem else not said


def test_only_an_unusable_reference_is_an_error() -> None:
    verify = Math()
    assert verify("\\boxed{3^{3^{3^{3^{3^3}}}}}", "x+1", {}).status is Status.WRONG
    assert verify("\\boxed{5}", "2^{2^{2^{2^{2^{2^{2^2}}}}}}", {}).status is Status.WRONG
    assert verify("\\boxed{3^{3^{3^{3^{3^{3^3}}}}}}", "2^{2^{2^{2^{2^{2^{2^2}}}}}}", {}).status is Status.ERROR


@pytest.mark.parametrize(
    ("problem", "answer", "copied"),
    [
        ("What is 17*23+4?", "17*23+4", True),
        ("What is 17*23+4?", "17\\times 23+4", True),
        ("What is 17*23+4?", "17 \\cdot 23 + 4", True),
        ("What is 17*23+4?", "17\u00d723+4", True),
        ("What is 17*23+4?", "(17)(23)+4", True),
        ("What is 17*23+4?", "x = 17(23) + 4", True),
        ("What is $(17)(23)+4$?", "17 \\times 23+4", True),
        ("What is 17 times 23 plus 4?", "17\\cdot23+4", True),
        ("Compute $12 \\div 4$.", "\\frac{12}{4}", True),
        ("Compute $\\frac{12}{4}$.", "12/4", True),
        ("Find $2 \\times 3^{2}$.", "2 \\cdot 3^2", True),
        ("What is 17*23+4?", "4+17*23", False),
        ("What is 17*23+4?", "391+4", False),
        ("What is 17*23+4?", "395", False),
        ("What is 17*23+4?", "17*23+5", False),
        ("Half of 6?", "\\frac{6}{2}", False),
    ],
)
def test_a_copy_of_the_problem_is_known_in_any_spelling(problem: str, answer: str, copied: bool) -> None:
    assert is_restated(answer, "395", problem) == copied


@pytest.mark.parametrize(
    ("problem", "gold", "answer", "copied"),
    [
        (r"Simplify $\sqrt{50}+\sqrt{8}$.", r"7\sqrt{2}", r"\sqrt{50} + \sqrt{8}", True),
        ("Factor $x^2+2x+1$.", "(x+1)^2", "x^2+2x+1", True),
        ("Expand $(x+1)^2$.", "x^2+2x+1", "(x+1)^2", True),
        ("Expand $(x+1)^2$.", "x^2+2x+1", "(x+1)(x+1)", False),
        (r"A quarter, $\frac{1}{4}$, of it", "0.25", r"\frac{1}{4}", False),
        (r"Which is larger, $3+2\sqrt2$ or $5$?", r"3+2\sqrt{2}", r"3+2\sqrt2", False),
        ("Which line is parallel to the axis, $y=2x+3$ or $y=3$?", "y=2x+3", "2x+3", False),
    ],
)
def test_a_copy_counts_as_work_left_where_the_reference_is_no_whole_number(
    problem: str, gold: str, answer: str, copied: bool
) -> None:
    assert is_restated(answer, gold, problem) == copied


@pytest.mark.parametrize(
    "answer",
    [
        "5^\\circ" + "\n " * 1400 + "x",
        "5^\\circ" * 400 + " " * 500,
        "\\text{5" + " " * 2800 + "!}",
        "9" * 2000 + " " * 900 + "millio",
        "1/" * 700 + "1",
        "x^" + "-" * 1400 + "2",
        "k\\pi " + "\\pm" * 1400,
        "5 cm " * 500,
        "2^" * 700 + "2",
        "x" + "^{\\prime}" * 300,
        "\\color{red}" * 250 + "6",
        "k\\pi, " + " " * 2500 + "k is an intege",
        "\\begin{cases}" * 60 + "1",
    ],
)
def test_repeated_scraps_cost_little(answer: str) -> None:
    for gold in ("5", "x+1", "\\{1,2\\}"):
        begun = time.process_time()
        assert Math()(f"\\boxed{{{answer}}}", gold, {}).status in (Status.WRONG, Status.UNPARSEABLE)
        assert time.process_time() - begun < 0.5


def test_no_repeated_unit_stalls_a_verifier_or_raises() -> None:
    assert LIMIT == 1.0
    assert not run(seed=20, most=250, seconds=20.0)


def test_a_long_fence_is_read_at_once() -> None:
    begun = time.process_time()
    assert extract_code("~" * 4000 + "`", Language.PYTHON) is None
    assert time.process_time() - begun < 0.5
