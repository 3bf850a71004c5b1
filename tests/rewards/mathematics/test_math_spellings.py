"""Spellings of values, each with a near miss: fonts, scale words, compound quantities, regions, matrices, notations."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest

from rewards.mathematics.nodes import Apply, Expression, Matrix, Number
from rewards.mathematics.reading.matrices import determinant, multiple
from rewards.verdict import Status
from rewards.verifiers.math import Math

VERIFY = Math()


def accepted(gold: str, answer: str) -> bool:
    verdict = VERIFY(f"\\boxed{{{answer}}}", gold, {})
    assert not verdict.status.failed, verdict
    return verdict.status is Status.CORRECT


@pytest.mark.parametrize(
    ("gold", "answer", "near_miss"),
    [
        # Fonts and words around a number.
        ("14", "\\text{14}", "\\text{15}"),
        ("14", "\\mathrm{14}", "\\mathrm{41}"),
        ("14", "\\text{14 dollars}", "\\text{14 million}"),
        ("14", "\\text{\\$14}", "\\text{\\$15}"),
        ("\\frac12", "\\text{1/2}", "\\text{1/3}"),
        ("14", "14\\text{}", "\\text{}"),
        ("14 \\text{ cm}", "\\text{14 cm}", "\\text{14 mm}"),
        ("5", "5 \\text{ apples}", "5 \\text{ plus six}"),
        ("5", "\\text{5 apples}", "\\text{5 or 6}"),
        ("5", "5 \\text{ km}", "5 \\text{ squared}"),
        ("5", "5 \\text{ people}", "5 \\text{ hundredths}"),
        # Numbers in words.
        ("10", "\\text{ten}", "\\text{eleven}"),
        ("\\text{twelve}", "12", "13"),
        ("3", "three apples", "three hundred"),
        ("3", "\\text{three apples}", "\\text{not three}"),
        ("\\infty", "\\text{infinity}", "-\\infty"),
        ("2", "two apples", "two pi"),
        ("3", "\\text{three apples}", "\\text{three quarters}"),
        ("3", "3 \\text{ apples}", "3 \\text{ rd}"),
        # Scale words.
        ("1000000", "1\\text{ million}", "1\\text{ billion}"),
        ("2.5\\text{ million}", "2500000", "2.5"),
        ("2500000", "2.5 million", "2.05 million"),
        ("\\$1.5\\text{ million}", "1500000", "1.5"),
        ("500000", "5 hundred thousand", "5 thousand"),
        ("3000 \\text{ km}", "3\\text{ thousand km}", "3\\text{ thousand m}"),
        # Currencies.
        ("14", "14\u20ac", "14\u20ac5"),
        ("14", "Rs. 14", "Rs. 1.4"),
        ("14\u20ac", "\u20ac14", "\u00a314"),
        # Compound quantities.
        ("2.5\\text{ hours}", "2\\text{ hours }30\\text{ minutes}", "2\\text{ hours }50\\text{ minutes}"),
        ("150 \\text{ minutes}", "2 hours and 30 minutes", "2 hours and 30 seconds"),
        ("122 \\text{ minutes}", "2 hours 2 minutes", "1 hour 62 minutes"),
        (
            "2.25 \\text{ hours}",
            "2 \\text{ hours and } 15 \\text{ minutes}",
            "2 \\text{ hours and } 25 \\text{ minutes}",
        ),
        ("3661 \\text{ s}", "1 hour 1 minute 1 second", "1 hour 61 minute"),
        ("2 \\text{ hours}, 90 \\text{ minutes}", "90 minutes, 2 hours", "3.5 hours"),
        ("1\\text{ L}", "1000\\text{ cm}^3", "100\\text{ cm}^3"),
        ("72^\\circ F", "72", "72^\\circ C"),
        # Regions.
        ("|x|<1", "(-1,1)", "[-1,1]"),
        ("|x| \\le 1", "[-1,1]", "(-1,1)"),
        ("x<-1\\text{ or }x>1", "|x|>1", "|x|<1"),
        ("(1,5)", "|x-3|<2", "|x+3|<2"),
        ("(-\\infty,0)\\cup(0,\\infty)", "|x|>0", "|x|\\ge 0"),
        ("2<|x|", "|x|>2", "|y|>2"),
        ("\\mathbb{R}\\setminus\\{0\\}", "(-\\infty,0)\\cup(0,\\infty)", "(-\\infty,\\infty)"),
        ("[0,1)\\cup(1,2]", "[0,2]\\setminus\\{1\\}", "[0,2]\\setminus\\{2\\}"),
        ("(-\\infty,0)\\cup(0,1)\\cup(1,\\infty)", "\\mathbb{R}\\setminus\\{0,1\\}", "\\mathbb{R}\\setminus\\{0\\}"),
        ("[0,1]\\cup[2,3]", "[0,3]\\setminus(1,2)", "[0,3]\\setminus[1,2]"),
        ("(0,1)", "]0,1[", "]0,1]"),
        ("[0,1)", "[0,1[", "]0,1["),
        ("\\emptyset", "\\text{no real solutions}", "\\text{no}"),
        ("\\text{no solution}", "\\emptyset", "0"),
        # Malformed and other numerals.
        ("\\frac{12}{99}", "0.\\dot{1}\\dot{2}", "0.1\\dot{2}"),
        ("\\frac{121}{999}", "0.\\dot12\\dot1", "0.\\dot12\\dot2"),
        ("\\frac12", "{1 \\over 2}", "{2 \\over 1}"),
        ("\\frac{a+b}{2}", "a+b \\over 2", "a+\\frac{b}{2}"),
        ("\\frac{1}{2}", "1/2$", "1/3$"),
        ("1234.5", "1'234.5", "1'23"),
        ("1250000", "1.250.000", "1.250"),
        ("\\log_5 125", "3", "2"),
        ("255", "\\text{0xFF}", "\\text{0xFE}"),
        ("0", "0x0", "0xFF"),
        ("1011_2", "\\text{B}_{16}", "\\text{A}_{16}"),
        ("2", "³√8", "³√9"),
        # Counting.
        ("C(10,3)", "120", "C(10,4)"),
        ("C(x+1)", "Cx+C", "Cx+1"),
        ("5!!", "15", "120"),
        ("8!!", "384", "8!"),
        ("A", "\\text{Option A}", "\\text{Option B}"),
        # Times and ratios.
        ("6\\text{ PM}", "18:00", "6\\text{ AM}"),
        ("6\\text{ PM}", "6", "18"),
        ("12\\text{ a.m.}", "0:00", "12:00 \\text{ p.m.}"),
        ("7:05", "7:05 \\text{ a.m.}", "7:5"),
        ("3:4", "3 to 4", "4 to 3"),
        ("3 to 4", "\\frac34", "\\text{3 or 4}"),
        # Matrices.
        ("\\begin{vmatrix}1&2\\\\3&4\\end{vmatrix}", "-2", "2"),
        ("\\begin{vmatrix}1&2&0\\\\3&4&0\\\\0&0&2\\end{vmatrix}", "-4", "4"),
        (
            "\\begin{pmatrix}1/2\\\\2\\end{pmatrix}",
            "\\frac12\\begin{pmatrix}1\\\\4\\end{pmatrix}",
            "\\frac12\\begin{pmatrix}1\\\\2\\end{pmatrix}",
        ),
        ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "[1,2]^T", "[2,1]^T"),
        ("\\begin{pmatrix}1&2\\end{pmatrix}", "\\begin{pmatrix}1\\\\2\\end{pmatrix}^{\\top}", "[1,2]^T"),
        # A whole number that is named, a list of one, an angle in radians.
        ("2\\pi k", "2k\\pi, k\\in\\mathbb{Z}", "k\\pi, k\\in\\mathbb{Z}"),
        ("2\\pi k", "2\\pi k", "2\\pi k, k\\in\\mathbb{N}"),
        ("5", "\\{5\\}", "[5]"),
        ("\\arcsin(1)", "90^\\circ", "1^\\circ"),
        # A comma that groups thousands.
        ("5,000", "5000", "5"),
        ("1.5", "1,5", "1,500"),
        ("0.125", "0,125", "125"),
    ],
)
def test_a_spelling_and_its_near_miss(gold: str, answer: str, near_miss: str) -> None:
    assert accepted(gold, answer)
    assert not accepted(gold, near_miss)


def test_what_copies_entries_takes_only_small_ones() -> None:
    one = Number(Fraction(1))
    small, large = Apply("add", (one,) * 4), Apply("add", (one,) * 40)
    assert isinstance(determinant(((small, one), (one, one))), Expression)
    assert determinant(((large, one), (one, one))) is None
    assert determinant(((one,) * 4,) * 4) is None
    assert isinstance(multiple([small, Matrix("matrix", ((one,),))]), Matrix)
    assert multiple([large, Matrix("matrix", ((one,),))]) is None
    assert multiple([Matrix("matrix", ((one,),)), Matrix("matrix", ((one,),))]) is None


@pytest.mark.parametrize(
    "answer",
    [
        "9" * 12 + " million" * 300,
        "\\begin{vmatrix}" * 12 + "1&2\\\\3&4" + "\\end{vmatrix}" * 12,
        ("\\begin{vmatrix}1&1&1\\\\1&1&1\\\\1&1&" * 12) + "1" + "\\end{vmatrix}" * 12,
        "(x+1)" * 100 + "\\begin{pmatrix}" + "\\\\".join(["1&" * 9 + "1"] * 20) + "\\end{pmatrix}",
        "9999999999!!",
        "(((5!!)!!)!!)!!",
        "1 hour " * 400,
        "]" + "0," * 1000 + "[",
        "\\text{" * 300,
        "0." + "\\dot{1}" * 400,
        "\\mathbb{R}" + "\\setminus\\{0\\}" * 180,
        "|" * 900 + "x<1",
        "1 \\over " * 150 + "2",
        "C(" * 300 + "3" + ",2)" * 300,
        "0x" + "F" * 2000,
    ],
)
def test_spellings_that_are_hostile_cost_little(answer: str) -> None:
    for gold in ("5", "x<1", "\\begin{pmatrix}1\\\\2\\end{pmatrix}"):
        begun = time.perf_counter()
        assert VERIFY(f"\\boxed{{{answer}}}", gold, {}).status is not Status.CORRECT
        assert time.perf_counter() - begun < 1.0
