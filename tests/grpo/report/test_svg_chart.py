from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo.report.charts import BOTTOM, LEFT, RIGHT, TOP, line_chart, nice_ticks, number_label, step_time_chart
from grpo.report.metrics_log import Curve
from grpo.report.step_time import StepTime


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
    [(0.0, "0"), (0.30000000000000004, "0.3"), (1e-5, "1e-05"), (12000.0, "12,000"), (-2.5, "-2.5"), (1234.0, "1,234")],
)
def test_numbers_are_short(value: float, label: str) -> None:
    assert number_label(value) == label
