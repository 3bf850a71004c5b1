"""The parts of the comparison against plain computations: exact values, approximate values, large values, regions."""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.mathematics.comparing.arithmetics import FLOATS, precise
from rewards.mathematics.comparing.equal import Judge
from rewards.mathematics.comparing.equal_values import MAX_SYMBOLS
from rewards.mathematics.comparing.evaluate import TRIGONOMETRY, PointEvaluation, Sight
from rewards.mathematics.comparing.magnitude import is_huge
from rewards.mathematics.comparing.rational import MAX_BITS, Budget, Irrational, TooLarge, Undefined, exact
from rewards.mathematics.comparing.regions import Region, as_region, rest_of
from rewards.mathematics.conventions import Conventions
from rewards.mathematics.nodes import Apply, Constant, Node, Number, Relation, Sequence, Symbol
from rewards.mathematics.reading.parse_answer import parse


def number(value: float | Fraction) -> Number:
    return Number(Fraction(value))


def applied(op: str, *values: float | Fraction | Node) -> Apply:
    return Apply(op, tuple(number(value) if isinstance(value, (int, float, Fraction)) else value for value in values))


def exactly(op: str, *values: float | Fraction | Node) -> Fraction:
    return exact(applied(op, *values), {}, Budget())


@pytest.mark.parametrize("base", [Fraction(2), Fraction(3, 2), Fraction(10, 7), Fraction(1), Fraction(0), Fraction(97)])
@pytest.mark.parametrize("index", [1, 2, 3, 4, 5, 6, 7, 17, 63, 64])
def test_the_root_of_a_power_is_the_base(base: Fraction, index: int) -> None:
    assert exactly("root", base**index, index) == exactly("pow", base**index, Fraction(1, index)) == base
    if index % 2:
        assert exactly("root", -(base**index), index) == -base
    elif base:
        with pytest.raises(Irrational):
            exactly("root", -(base**index), index)
    if index > 1 and base > 1:
        for near in (base**index + 1, base**index - 1):
            with pytest.raises(Irrational):
                exactly("root", near, index)


def test_roots_of_long_numbers_have_a_limit() -> None:
    assert exactly("root", 3**2000, 4) == 3**500
    assert exactly("root", 1 << 4095, 3) == 1 << 1365
    for value, index in ((1 << 4096, 2), (1 << 65, 65)):
        with pytest.raises(TooLarge):
            exactly("root", value, index)
    for index in (0, -2, Fraction(1, 2)):
        with pytest.raises(Irrational):
            exactly("root", 4, index)


@pytest.mark.parametrize(
    ("op", "values", "expected"),
    [
        ("add", (1, 2, Fraction(1, 2)), Fraction(7, 2)),
        ("mul", (3, 2, Fraction(1, 4)), Fraction(3, 2)),
        ("div", (3, 4), Fraction(3, 4)),
        ("pow", (Fraction(4, 9), Fraction(3, 2)), Fraction(8, 27)),
        ("pow", (Fraction(2, 3), -2), Fraction(9, 4)),
        ("pow", (0, 0), 1),
        ("pow", (0, 5), 0),
        ("pow", (1, -(10**30)), 1),
        ("pow", (-1, 10**30), 1),
        ("pow", (-1, 10**30 + 1), -1),
        ("pow", (-1, -3), -1),
        ("pow", (2, -1), Fraction(1, 2)),
        ("pow", (-2, 3), -8),
        ("pow", (0, -1), Undefined),
        ("pow", (2**65, Fraction(1, 65)), Irrational),
        ("div", (1, 0), Undefined),
        ("factorial", (0,), 1),
        ("factorial", (5,), 120),
        ("factorial", (-1,), Undefined),
        ("factorial", (Fraction(1, 2),), Undefined),
        ("factorial", (5001,), TooLarge),
        ("double_factorial", (7,), 105),
        ("double_factorial", (8,), 384),
        ("double_factorial", (1,), 1),
        ("double_factorial", (0,), 1),
        ("gamma", (1,), 1),
        ("gamma", (5,), 24),
        ("gamma", (0,), Undefined),
        ("gamma", (Fraction(1, 2),), Irrational),
        ("binom", (5, 2), 10),
        ("binom", (5, 0), 1),
        ("binom", (0, 0), 1),
        ("binom", (2, 5), 0),
        ("binom", (10**15, 1), 10**15),
        ("binom", (1, 10**15), 0),
        ("binom", (-1, 1), Undefined),
        ("binom", (1, -1), Undefined),
        ("binom", (4002, 2001), TooLarge),
        ("binom", (2**64, 1), TooLarge),
        ("binom", (2**64 - 1, 1), 2**64 - 1),
        ("abs", (-3,), 3),
        ("neg", (3,), -3),
        ("floor", (Fraction(-1, 2),), -1),
        ("ceiling", (Fraction(-3, 2),), -1),
        ("max", (1, 3, 2), 3),
        ("min", (2, 1, 3), 1),
        ("percent", (25,), Fraction(1, 4)),
        ("gcd", (12, 18), 6),
        ("lcm", (4, 6), 12),
        ("mod", (17, 5), 2),
        ("mod", (-1, 5), 4),
        ("mod", (1, 0), Undefined),
        ("gcd", (Fraction(1, 2), 1), Undefined),
        ("sin", (1,), Irrational),
        ("pow", (2, MAX_BITS // 2 + 1), TooLarge),
        ("mul", (2**200_000, 2**200_000), TooLarge),
    ],
)
def test_exact_values(op: str, values: tuple[float | Fraction, ...], expected: object) -> None:
    if isinstance(expected, type):
        with pytest.raises(expected):
            exactly(op, *values)
    else:
        assert exactly(op, *values) == expected


def test_limits_of_exact_values() -> None:
    assert exactly("pow", 2, MAX_BITS // 2) == 1 << MAX_BITS // 2
    assert exactly("pow", 3, 100_000) == 3**100_000
    assert exactly("factorial", 5000) == math.factorial(5000)
    assert exactly("binom", 4000, 2000) == math.comb(4000, 2000)
    assert exactly("add", 2 ** (MAX_BITS - 2), 0).numerator.bit_length() == MAX_BITS - 1
    with pytest.raises(TooLarge):
        exactly("add", 2 ** (MAX_BITS - 1), 0)
    budget = Budget(3)
    budget.spend(3)
    with pytest.raises(TooLarge):
        budget.spend(1)
    left = Budget(1000)
    exact(applied("add", 1, 2), {}, left)
    assert left.left == 1000 - 50 - 3, "the cost of an operation grows with the bits of its result"


INVERSES: dict[str, Callable[[complex], complex]] = {
    "cot": lambda x: 1 / cmath.tan(x), "sec": lambda x: 1 / cmath.cos(x), "csc": lambda x: 1 / cmath.sin(x),
    "coth": lambda x: 1 / cmath.tanh(x), "arccot": lambda x: cmath.pi / 2 - cmath.atan(x),
    "arcsec": lambda x: cmath.acos(1 / x), "arccsc": lambda x: cmath.asin(1 / x),
}  # fmt: skip


def approximately(node: Node, name: str, **sight: object) -> complex:
    arithmetic = FLOATS if name == "float" else precise()
    return complex(PointEvaluation(arithmetic, Sight({}, Budget(), **sight)).value(node))


@pytest.mark.parametrize("name", ["float", "precise"])
@pytest.mark.parametrize("op", sorted(TRIGONOMETRY))
def test_trigonometry_is_that_of_the_library(op: str, name: str) -> None:
    plain = getattr(cmath, op.replace("arc", "a"), None)
    for x in (0.5, -0.25, 0.75, *((2.0, -5.0) if op in ("arcsec", "arccsc") or not op.startswith("arc") else ())):
        if op in ("arcsec", "arccsc") and abs(x) < 1:
            continue
        expected = (INVERSES.get(op) or plain)(x)
        assert approximately(applied(op, x), name) == pytest.approx(expected, rel=1e-12), x


E, PI, UNIT = Constant("e"), Constant("pi"), Constant("i")


@pytest.mark.parametrize("name", ["float", "precise"])
@pytest.mark.parametrize(
    ("node", "expected"),
    [
        (PI, math.pi),
        (E, math.e),
        (UNIT, 1j),
        (applied("add", PI, 1), math.pi + 1),
        (applied("mul", PI, E), math.pi * math.e),
        (applied("neg", PI), -math.pi),
        (applied("div", PI, 4), math.pi / 4),
        (applied("pow", PI, 3), math.pi**3),
        (applied("pow", 2, PI), 2**math.pi),
        (applied("pow", PI, -1), 1 / math.pi),
        (applied("pow", 0, PI), 0),
        (applied("pow", 0, 0), 1),
        (applied("root", PI, 2), math.sqrt(math.pi)),
        (applied("root", applied("neg", PI), 2), 1j * math.sqrt(math.pi)),
        (applied("root", applied("neg", PI), 3), -(math.pi ** (1 / 3))),
        (applied("root", PI, 4), math.pi**0.25),
        (applied("pow", -8, Fraction(1, 3)), 1 + 1j * math.sqrt(3)),
        (applied("log", 1000), 3),
        (applied("log", 8, 2), 3),
        (applied("ln", PI), math.log(math.pi)),
        (applied("ln", 1), 0),
        (applied("percent", PI), math.pi / 100),
        (applied("degree", 60), math.pi / 3),
        (applied("abs", applied("add", 3, applied("mul", 4, UNIT))), 5),
        (applied("floor", PI), 3),
        (applied("ceiling", PI), 4),
        (applied("floor", applied("neg", PI)), -4),
        (applied("max", PI, E, 3), math.pi),
        (applied("min", PI, E, 3), math.e),
        (applied("binom", 5, 2), 10),
    ],
    ids=str,
)
def test_approximate_values(node: Node, expected: complex, name: str) -> None:
    assert approximately(node, name) == pytest.approx(expected, rel=1e-12, abs=1e-300)


def test_conventions_of_an_evaluation() -> None:
    assert approximately(applied("log", 8), "float", log_base=2) == pytest.approx(3)
    assert approximately(applied("log", E), "float", log_base=0) == pytest.approx(1)
    for exponent, root in ((Fraction(1, 3), -2), (Fraction(2, 3), 4), (Fraction(-1, 3), -0.5), (Fraction(5, 3), -32)):
        real = approximately(applied("pow", -8, exponent), "float", real_roots=True)
        assert real == pytest.approx(root), exponent
        fraction = applied("pow", -8, applied("div", exponent.numerator, exponent.denominator))
        assert approximately(fraction, "float", real_roots=True) == pytest.approx(root)
    assert approximately(applied("pow", -4, Fraction(1, 2)), "float", real_roots=True) == pytest.approx(2j)
    assert approximately(applied("gamma", Fraction(1, 2)), "precise") == pytest.approx(math.sqrt(math.pi))
    assert approximately(applied("zeta", 2), "precise") == pytest.approx(math.pi**2 / 6)


@pytest.mark.parametrize("name", ["float", "precise"])
@pytest.mark.parametrize(
    "node",
    [
        applied("ln", 0),
        applied("pow", 0, -1),
        applied("div", 1, 0),
        applied("root", 2, 0),
        applied("root", 2, 1001),
        applied("root", 2, UNIT),
        applied("floor", UNIT),
        applied("factorial", Fraction(1, 2)),
        applied("max", 1, UNIT),
        applied("tan", applied("div", PI, 2)),
        applied("unknown", 1),
    ],
    ids=str,
)
def test_what_has_no_value(node: Node, name: str) -> None:
    with pytest.raises(Undefined):
        approximately(node, name)


@pytest.mark.parametrize(
    "node",
    [
        applied("add", PI, applied("neg", PI)),
        applied("sin", PI),
        applied("ln", Fraction(10**12 + 1, 10**12)),
        applied("sin", 10**7),
        applied("sinh", 601),
        applied("pow", 2, 900),
        applied("gamma", Fraction(1, 2)),
        applied("add", 1, Fraction(-(10**8) + 1, 10**8)),
    ],
    ids=str,
)
def test_floats_leave_to_a_hundred_digits_what_they_cannot_tell(node: Node) -> None:
    with pytest.raises(TooLarge):
        approximately(node, "float")
    approximately(node, "precise")


def test_a_hundred_digits_have_limits_too() -> None:
    assert approximately(applied("add", PI, applied("neg", PI)), "precise") == 0
    assert approximately(applied("sin", PI), "precise") == 0
    assert approximately(applied("ln", Fraction(10**12 + 1, 10**12)), "precise") == pytest.approx(1e-12)
    for node in (
        applied("zeta", Fraction(7, 5)),
        applied("gamma", 101),
        applied("zeta", UNIT),
        applied("pow", 2, 10**6),
    ):
        with pytest.raises(TooLarge):
            approximately(node, "precise")


@pytest.mark.parametrize(
    ("node", "huge"),
    [
        (number(10**501), True),
        (number(10**499), False),
        (number(Fraction(10**600, 10**101)), False),
        (number(Fraction(10**601, 10**100)), True),
        (applied("neg", 10**501), True),
        (applied("pow", 10, 501), True),
        (applied("pow", 10, 499), False),
        (applied("pow", 10, applied("pow", 10, applied("pow", 10, 10))), True),
        (applied("mul", 10**251, 10**251), True),
        (applied("mul", 10**249, 10**249), False),
        (applied("add", 10**501, 1), True),
        (applied("add", 10**499, 10**499), False),
        (applied("factorial", 260), True),
        (applied("factorial", 250), False),
        (applied("factorial", 1), False),
        (applied("pow", 10, Fraction(1, 2)), False),
        (applied("mul", 10**600, Fraction(1, 10**600)), False),
        (applied("add", 10**600, applied("neg", 10**600)), False),
        (applied("sin", 10**600), False),
        (Symbol("n"), True),
        (Symbol("m"), False),
        (PI, False),
    ],
    ids=lambda value: str(value)[:40],
)
def test_huge_is_what_is_certainly_above_ten_to_the_five_hundredth(node: Node, huge: bool) -> None:
    assert is_huge(node, {"n": Fraction(10**501)}) == huge


def locate(node: Node) -> float | None:
    try:
        return float(exact(node, {}, Budget()))
    except Irrational:
        return None


def holds(region: Region, point: float) -> bool:
    return any(
        each.low_at < point < each.high_at
        or (point == each.low_at and each.low_in)
        or (point == each.high_at and each.high_in)
        for each in region.intervals
    )


LINE = [half / 2 for half in range(-2, 24)]
ends = st.integers(0, 10)
intervals = st.tuples(ends, ends, st.sampled_from(["()", "[)", "(]", "[]"])).filter(lambda each: each[0] < each[1])


def sequence(low: int, high: int, brackets: str) -> tuple[Node, Callable[[float], bool]]:
    def inside(x: float) -> bool:
        return low < x < high or (x == low and brackets[0] == "[") or (x == high and brackets[1] == "]")

    return Sequence(brackets, (number(low), number(high))), inside


def is_in_order(region: Region) -> bool:
    """The intervals neither overlap nor touch, and their ends stand where their positions say."""
    for each in region.intervals:
        assert all(at in (math.inf, -math.inf, locate(end)) for end, at in ((each.low, each.low_at),))
        assert each.low_at < each.high_at or (each.low_at == each.high_at and each.low_in and each.high_in)
    pairs = zip(region.intervals, region.intervals[1:], strict=False)
    return all(a.high_at < b.low_at or (a.high_at == b.low_at and not (a.high_in or b.low_in)) for a, b in pairs)


@settings(max_examples=150, deadline=None)
@given(st.lists(intervals, min_size=2, max_size=4))
def test_regions_hold_the_points_of_their_sets(chosen: list[tuple[int, int, str]]) -> None:
    nodes, inside = zip(*(sequence(*each) for each in chosen), strict=True)
    union, common = (as_region(Apply(op, nodes), locate) for op in ("union", "intersection"))
    without = as_region(Apply("difference", nodes[:2]), locate)
    rest = rest_of([as_region(node, locate) for node in nodes])
    assert union and common and without and rest
    for region in (union, common, without, rest):
        assert is_in_order(region)
    for x in LINE:
        assert holds(union, x) == any(each(x) for each in inside)
        assert holds(common, x) == all(each(x) for each in inside)
        assert holds(without, x) == (inside[0](x) and not inside[1](x))
        assert holds(rest, x) != holds(union, x)


COMPARED: dict[str, Callable[[float, float], bool]] = {
    "<": lambda a, b: a < b, "<=": lambda a, b: a <= b, ">": lambda a, b: a > b, ">=": lambda a, b: a >= b,
    "!=": lambda a, b: a != b,
}  # fmt: skip
X = Symbol("x")


@pytest.mark.parametrize("op", sorted(COMPARED))
def test_inequalities_describe_their_regions(op: str) -> None:
    compared = COMPARED[op]
    right, left = Relation((X, number(5)), (op,)), Relation((number(5), X), (op,))
    for node, expected in ((right, lambda x: compared(x, 5)), (left, lambda x: compared(5, x))):
        region = as_region(node, locate)
        assert region is not None and region.variable == "x"
        assert [holds(region, x) for x in LINE] == [expected(x) for x in LINE]
    if op == "!=":
        return
    for second in ("<", "<="):
        chain = as_region(Relation((number(3), X, number(7)), ("<", second)), locate)
        assert chain is not None
        assert [holds(chain, x) for x in LINE] == [x > 3 and COMPARED[second](x, 7) for x in LINE]
    shifted = Apply("abs", (applied("add", X, applied("neg", 4)),))
    for node, expected in (
        (Relation((shifted, number(2)), (op,)), lambda x: compared(abs(x - 4), 2)),
        (Relation((number(2), shifted), (op,)), lambda x: compared(2, abs(x - 4))),
        (Relation((Apply("abs", (X,)), number(2)), (op,)), lambda x: compared(abs(x), 2)),
    ):
        region = as_region(node, locate)
        assert region is not None and region.variable == "x"
        assert [holds(region, x) for x in LINE] == [expected(x) for x in LINE]


def test_what_is_no_region() -> None:
    infinity = Constant("infinity")
    backwards = Sequence("()", (number(2), number(1)))
    for node in (
        number(1),
        backwards,
        Sequence("()", (infinity, number(1))),
        Sequence("()", (number(1), applied("neg", infinity))),
        Sequence("()", (number(1), X)),
        Relation((X, number(5)), ("=",)),
        Relation((X, Symbol("y")), ("<",)),
        Relation((Apply("abs", (X,)), number(-1)), ("<",)),
        Relation((Apply("abs", (X,)), number(0)), ("<",)),
        Apply("union", (backwards, Sequence("()", (number(1), number(2))))),
    ):
        assert as_region(node, locate) is None, node
    point = as_region(Relation((Apply("abs", (X,)), number(0)), ("<=",)), locate)
    assert point is not None and [x for x in LINE if holds(point, x)] == [0]
    whole = as_region(Sequence("[]", (applied("neg", infinity), infinity)), locate)
    assert whole is not None and not (whole.intervals[0].low_in or whole.intervals[0].high_in)


@pytest.mark.parametrize("name", ["float", "precise"])
@pytest.mark.parametrize("op", ["floor", "ceiling"])
def test_rounding_noise_does_not_move_a_whole_number(op: str, name: str) -> None:
    for whole in (1, 7, 10**6, -(10**6), 123_456_789):
        for radicand in (2, 3, 5, 7, 11):
            root = applied("root", radicand, 2)
            noisy = applied("div", applied("mul", whole, root, root), radicand)
            assert approximately(applied(op, noisy), name) == whole


def test_an_expression_may_have_as_many_variables_as_the_limit() -> None:
    def total(count: int) -> str:
        return "+".join(f"x_{{{number}}}" for number in range(count))

    judge = Judge(Conventions(), Budget())
    for count in (MAX_SYMBOLS, MAX_SYMBOLS + 1):
        gold, answer = parse(total(count)), parse("+".join(reversed(total(count).split("+"))))
        if count > MAX_SYMBOLS:
            with pytest.raises(TooLarge, match="25 variables"):
                judge.same(gold, answer)
        else:
            assert judge.same(gold, answer)
