from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.verdict import Status
from rewards.verifiers.math import Math


def accepts(gold: str, answer: str, problem: str = "", **options) -> bool:
    verdict = Math(**options)(f"\\boxed{{{answer}}}", gold, {"problem": problem})
    assert not verdict.status.failed, verdict
    return verdict.status is Status.CORRECT


@pytest.mark.parametrize(
    ("options", "gold", "answer", "default", "with_it"),
    [
        ({"percent": "value"}, "25\\%", "25", True, False),
        ({"percent": "strict"}, "25\\%", "0.25", True, False),
        ({"percent": "strict"}, "25\\%", "25\\%", True, True),
        ({"units": "strict"}, "5 \\text{ cm}", "5", True, False),
        ({"units": "ignore"}, "5 \\text{ cm}", "5 \\text{ m}", False, True),
        ({"ordered": True}, "1, 2", "2, 1", True, False),
        ({"ordered": True}, "1, 2", "1, 2.0", True, True),
        ({"rounded": True}, "3.14", "\\pi", False, True),
        ({"rounded": True}, "3.14", "3.15", False, False),
        ({"rounded": True}, "\\pi", "3.14", False, False),
        ({"rounded": True}, "0.33", "\\frac13", False, True),
        ({"rounded": True}, "3.14", "\\sqrt{-2}", False, False),
        ({"bare_base": True}, "1011_2", "1011", False, True),
        ({"bare_base": True}, "1011_2", "1011_3", False, False),
        ({"bare_base": True}, "1011_2", "11", True, True),
        ({"log_base": 0}, "\\log 5", "\\ln 5", False, True),
        ({"log_base": 0}, "\\log 5", "\\log_{10} 5", True, False),
        ({"decimal_comma": False}, "3.14", "3,14", True, False),
        ({"decimal_comma": "always"}, "3.141", "3,141", False, True),
        ({"decimal_comma": "always"}, "5", "5,000", False, True),
        ({"decimal_comma": "always"}, "5000", "5,000", True, True),
        ({"decimal_comma": "always"}, "0.125", "0,125", True, True),
        ({"decimal_comma": "always"}, "1234.567", "1.234,567", True, True),
        ({"decimal_comma": "always"}, "1.5", "1{,}500", False, True),
    ],
)
def test_each_setting_changes_what_it_says(options, gold, answer, default, with_it) -> None:
    assert accepts(gold, answer) is default
    assert accepts(gold, answer, **options) is with_it


def test_an_answer_that_restates_the_problem_is_refused() -> None:
    problem = "What is $\\sqrt{16} + \\binom{5}{2}$?"
    assert not accepts("14", "\\sqrt{16}+\\binom{5}{2}", problem)
    assert accepts("14", "\\sqrt{16}+\\binom{5}{2}", problem, problem_column=None)
    assert accepts("14", "4+10", problem)
    assert accepts("x+1", "x + 1", "Simplify $x+1$.")
    # Only copies are refused.
    assert accepts("14", "\\binom{5}{2}+\\sqrt{16}", problem)


def test_sums_and_integrals_are_not_worked_out() -> None:
    assert not accepts("5050", "\\sum_{k=1}^{100} k")
    assert not accepts("\\frac13", "\\int_0^1 x^2 dx")


@pytest.mark.parametrize(
    ("gold", "answer", "same"),
    [
        ("\\sqrt{10^{40}+1}-10^{20}", "\\frac{1}{\\sqrt{10^{40}+1}+10^{20}}", True),
        ("\\sqrt{10^{40}+1}-10^{20}", "\\sqrt{10^{40}+2}-10^{20}", False),
        ("5", "\\ln(10^{100}+1)", False),
        ("x", "\\sqrt{10^{2000}+1}", False),
        ("0", "\\sin \\pi", True),
        ("10^{-30}", "\\sin \\pi", False),
        ("1", "\\sin^2 10^\\circ + \\cos^2 10^\\circ", True),
        ("(-1)^n", "-1", False),
        ("\\lfloor x \\rfloor", "x", False),
        ("a", "A", False),
        ("5", "0 \\cup 0", False),
        ("5", "\\det(5)", False),
        ("5", "5 \\cup 5", False),
        ("\\frac12", "\\frac12 \\text{ or } 0.5", True),
        ("\\frac12", "\\frac12 \\text{ or } 0.51", False),
        ("2,\\! 000", "2000", True),
    ],
)
def test_cancellation_zeros_and_coincidences(gold, answer, same) -> None:
    assert accepts(gold, answer) is same


def test_where_to_look_is_configured() -> None:
    text = "The answer is 5. \\boxed{6}"
    assert Math(find=("boxed",))(text, "6", {}).status is Status.CORRECT
    assert Math(find=("stated",))(text, "5", {}).status is Status.CORRECT
    assert Math(find=("boxed",))("The answer is 5.", "5", {}).status is Status.UNPARSEABLE


@pytest.mark.parametrize(
    "options", [{"find": ()}, {"find": ("box",)}, {"percent": "yes"}, {"log_base": 1}, {"decimal_comma": "ever"}]
)
def test_a_wrong_setting_is_refused(options) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Math(**options)


@pytest.mark.parametrize("reference", ["", " ", None, [], ["3", "4"], [None], {"answer": "3"}])
def test_a_reference_that_is_empty_or_no_text_is_the_data_sets_fault(reference) -> None:
    verdict = Math()("\\boxed{None}", reference, {})
    assert verdict.status is Status.ERROR and "the reference" in verdict.reason


@pytest.mark.parametrize("reference", ["3", 3, 3.0, Fraction(3), ["3"], (3,), [["3"]]])
def test_a_reference_may_be_a_number_or_a_list_of_one(reference) -> None:
    assert Math()("\\boxed{3}", reference, {}).status is Status.CORRECT
    assert Math()("\\boxed{4}", reference, {}).status is Status.WRONG


def test_the_cache_answers_the_same_pair_and_only_it() -> None:
    verify = Math()
    first = verify("\\boxed{\\frac{2}{4}}", "0.5", {})
    assert verify("So \\boxed{\\frac{2}{4}}", "0.5", {}) == first
    assert verify.cache_hits == 1
    assert verify("\\boxed{\\frac{2}{4}}", "0.25", {}).status is Status.WRONG
    assert verify.cache_hits == 1


rationals = st.fractions(max_denominator=10**6).filter(lambda value: abs(value) < 10**9)


@given(rationals)
@settings(max_examples=60, deadline=None)
def test_a_rational_equals_itself_in_every_form_and_not_its_neighbour(value) -> None:
    n, d = value.numerator, value.denominator
    for form in (f"{n}/{d}", f"\\frac{{{n}}}{{{d}}}", f"\\frac{{{3 * n}}}{{{3 * d}}}", f"-\\frac{{{-n}}}{{{d}}}"):
        assert accepts(str(value), form)
    assert not accepts(str(value), f"\\frac{{{n + 1}}}{{{d}}}")
    assert not accepts(f"\\frac{{{n * 10**12 + 1}}}{{{d * 10**12}}}", f"{n}/{d}")


@pytest.mark.parametrize(("gold", "answer"), [("x+1", "0/0"), ("x", "\\frac{x}{x-x}"), ("5", "\\frac{1}{0}")])
def test_an_answer_without_a_value_is_wrong_and_not_undecided(gold, answer) -> None:
    assert Math()(f"\\boxed{{{answer}}}", gold, {}).status is Status.WRONG


@given(st.text(max_size=60), st.sampled_from(["5", "x+1", "(1,2)", "\\text{yes}", "\\{1,2\\}", "50\\%"]))
@settings(max_examples=300, deadline=None)
def test_any_text_gets_a_verdict(text, gold) -> None:
    assert not Math()(f"\\boxed{{{text}}}", gold, {}).status.failed


@pytest.mark.parametrize(
    "answer",
    [
        "x_",
        "f()",
        "\\log()",
        "5_",
        "\\begin{pmatrix}1\\end",
        "\\begin{array}{",
        "a \\sum_{k=1}^n\\pm 2",
        "\\frac",
        "\\sqrt[",
    ],
)
def test_answers_that_break_off_are_no_errors(answer) -> None:
    for gold in ("5", "f(x)=x^2", "\\sum_{k=1}^n k", "\\begin{pmatrix}1\\\\2\\end{pmatrix}"):
        assert not accepts(gold, answer)


pieces = st.sampled_from(
    [
        *"0123456789xyi+-*/^_=<>()[]{},;:|!%'",
        "\\frac",
        "\\sqrt",
        "\\pi",
        "\\pm",
        "\\text{ or }",
        "\\text{cm}",
        "\\cup",
        " ",
    ]
)


@given(st.lists(pieces, max_size=25), st.sampled_from(["5", "x+1", "(1,2)", "\\{1,2\\}", "x>2", "3:4"]))
@settings(max_examples=600, deadline=None)
def test_any_scrap_of_mathematics_gets_a_verdict(scraps, gold) -> None:
    verdict = Math()("\\boxed{" + "".join(scraps) + "}", gold, {})
    assert verdict.status is not Status.ERROR
