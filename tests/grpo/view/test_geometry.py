from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo.report.metrics_log import Curve
from grpo.report.step_time import StepTime
from grpo.view.geometry import BOTTOM, LEFT, RIGHT, TOP, line_chart, nice_ticks, number_label, step_time_chart


def places(points: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in points.split())]


def test_a_line_runs_from_corner_to_corner() -> None:
    chart = line_chart("loss", {"loss": Curve((0, 5, 10), (1.0, 3.0, 2.0))}, (0, 10))
    assert chart is not None
    assert places(chart.shapes[0].points) == [(LEFT, BOTTOM), ((LEFT + RIGHT) / 2, TOP), (RIGHT, (TOP + BOTTOM) / 2)]
    assert [tick.label for tick in chart.x_ticks] == ["0", "2", "4", "6", "8", "10"]
    assert chart.summary == "loss 1 at step 0, 2 at step 10"


def test_nothing_to_draw_is_no_chart() -> None:
    assert line_chart("x", {"x": Curve((), ()), "y": Curve((1,), (math.nan,))}, (0, 1)) is None


def test_a_single_point_and_a_constant_are_drawn_inside_the_box() -> None:
    for curve in (Curve((3,), (0.0,)), Curve((1, 2), (5.0, 5.0))):
        chart = line_chart("x", {"x": curve}, (curve.steps[0], curve.steps[-1]))
        assert chart is not None
        for x, y in places(chart.shapes[0].points):
            assert LEFT <= x <= RIGHT and y == pytest.approx((TOP + BOTTOM) / 2)
    single = line_chart("x", {"x": Curve((3,), (0.0,))}, (0, 9))
    assert single is not None and len(single.shapes[0].dots) == 1


def test_a_spike_survives_thinning() -> None:
    values = [0.0] * 5000
    values[3210] = 7.0
    chart = line_chart("x", {"x": Curve(tuple(range(5000)), tuple(values))}, (0, 4999))
    assert chart is not None
    smooth, single_steps = chart.shapes
    assert single_steps.is_faint and not smooth.is_faint
    drawn = places(single_steps.points)
    assert len(drawn) < 500
    assert min(y for _, y in drawn) == TOP < min(y for _, y in places(smooth.points))


def test_areas_lie_on_each_other_and_inside_the_box() -> None:
    parts = {"generate": (1.0, 2.0, 1.0), "verify": (0.0,) * 3, "learn": (1.0,) * 3, "sync": (0.0,) * 3}
    chart = step_time_chart(StepTime((1, 2, 3), {**parts, "rest": (0.0, 0.0, 30.0)}))
    assert chart.title == "Step time (longest 32.0 s)"
    generate = places(chart.shapes[0].points)
    learn = places(chart.shapes[2].points)
    assert min(y for _, y in learn) < min(y for _, y in generate)
    assert all(TOP <= y <= BOTTOM for shape in chart.shapes for _, y in places(shape.points))


@given(
    st.floats(min_value=-1e9, max_value=1e9), st.floats(min_value=1e-6, max_value=1e9), st.integers(2, 8), st.booleans()
)
def test_ticks_are_few_and_within(low: float, extent: float, count: int, whole: bool) -> None:
    high = low + extent
    ticks = nice_ticks(low, high, count, whole=whole)
    slack = 1e-6 * (abs(low) + extent)
    assert len(ticks) <= count + 2
    assert all(low - slack <= tick <= high + slack for tick in ticks)
    if whole and high > low:
        assert all(tick == round(tick) for tick in ticks)


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (0.0, "0"),
        (0.30000000000000004, "0.3"),
        (0.99999, "1"),
        (1e-5, "1e-5"),
        (12000.0, "12,000"),
        (-2.5, "-2.5"),
        (1234.0, "1,234"),
        (1.5e300, "1.5e300"),
        (5e-324, "4.941e-324"),
    ],
)
def test_numbers_are_short(value: float, label: str) -> None:
    assert number_label(value) == label


# Rare shapes of a curve; each is drawn by Chromium too, in test_page.py.
ODD = {
    "one point": (0.25,),
    "constant": (5.0,) * 4,
    "zero": (0.0,) * 4,
    "the 12th digit": (0.7, 0.7 + 1e-12, 0.7 - 1e-12, 0.7),
    "the last bit": (1e6, math.nextafter(1e6, 2e6), 1e6, 1e6),
    "the 4th digit": (2.3012, 2.3011, 2.3013, 2.3009),
    "gaps": (1.0, math.nan, 3.0, math.inf),
    "only gaps but one": (math.nan, 7.0, math.nan, math.nan),
    "huge": (1e300, 1.01e300, 0.99e300, 1e300),
    "huge and nearly equal": (1e300, 1.0000000001e300, 1e300, 1e300),
    "from end to end": (-1.7e308, 1.7e308, 0.0, 1.0),
    "tiny": (5e-324, 0.0, 1e-323, 0.0),
    "small": (1.234567e-9, 1.234568e-9, 1.234569e-9, 1.3e-9),
    "millions": (1234567.0, 1300000.0, 1250000.0, 2e6),
    "below zero": (-3.0, -1.0, -2.0, -12345.678),
    "many": tuple(0.7 + 1e-13 * math.sin(step) for step in range(300)),
}


@pytest.mark.parametrize("values", ODD.values(), ids=ODD)
@pytest.mark.parametrize(("low", "high"), [(None, None), (0.0, None), (0.0, 1.0)])
def test_odd_curves_are_drawn_inside_the_box(values: tuple[float, ...], low: float | None, high: float | None) -> None:
    steps = tuple(range(100_000, 100_000 + len(values)))
    chart = line_chart("x", {"x": Curve(steps, values)}, (steps[0], steps[-1]), low=low, high=high)
    assert chart is not None
    for shape in chart.shapes:
        for x, y in (*places(shape.points), *shape.dots):
            assert chart.left - 0.1 <= x <= RIGHT + 0.1 and TOP <= y <= BOTTOM
    for ticks, begin, end in ((chart.x_ticks, chart.left, RIGHT), (chart.y_ticks, TOP, BOTTOM)):
        assert 1 <= len(ticks) <= 7
        assert all(begin - 0.1 <= tick.at <= end + 0.1 for tick in ticks)
        assert len({tick.label for tick in ticks}) == len(ticks), "two marks of an axis say the same"
    assert all(len(tick.label) <= 10 for tick in chart.y_ticks) and chart.left < RIGHT / 3


def test_noise_below_what_a_label_shows_is_a_flat_line_and_a_small_change_is_not() -> None:
    def height(*values: float) -> float:
        chart = line_chart("x", {"x": Curve((1, 2), values)}, (1, 2))
        assert chart is not None
        rows = [y for _, y in places(chart.shapes[0].points)]
        assert chart.readout["series"] == [["x", [[1, values[0]], [2, values[1]]]]]
        return max(rows) - min(rows)

    assert height(0.7, 0.70001) < 1
    assert height(0.7, 0.7002) == pytest.approx(BOTTOM - TOP)


def test_values_beyond_the_ends_that_an_axis_should_have_are_drawn_where_they_are() -> None:
    chart = line_chart("x", {"x": Curve((1, 2), (-0.5, 1.5))}, (1, 2), low=0.0, high=1.0)
    assert chart is not None
    assert places(chart.shapes[0].points) == [(LEFT, BOTTOM), (RIGHT, TOP)]


def test_numbers_that_differ_by_rounding_have_a_tick_within_the_chart() -> None:
    assert nice_ticks(1.0, 1.0000000000000002, 3) == (1.0,)
    assert nice_ticks(0.0, 1e-12, 3)[-1] == pytest.approx(1e-12)
