from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo.report.metrics_log import Curve, MetricsLine, MetricsLog, read_history


def write(run_dir: Path, *steps: int) -> None:
    with MetricsLog(run_dir) as log:
        for step in steps:
            log.append(MetricsLine(step, 1000.0 + step, {"reward/mean": step / 10}))


def test_lines_are_strict_json_and_read_back_the_same(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        log.append(MetricsLine(3, 5.5, {"learner/loss": math.nan, "learner/ratio_max": math.inf, "reward/mean": 0.1}))
    text = (tmp_path / "metrics.jsonl").read_text()
    refuse = pytest.fail  # called by json for NaN and Infinity, which are not JSON
    record = json.loads(text, parse_constant=refuse)
    assert record == {"step": 3, "time": 5.5, "learner/loss": None, "learner/ratio_max": None, "reward/mean": 0.1}
    history = read_history(tmp_path)
    assert history.curve("reward/mean").values == (0.1,)
    assert math.isnan(history.curve("learner/loss").values[0])
    assert not history.curve("learner/loss").finite()


def test_truncating_drops_later_steps_only_and_lets_the_run_go_on(tmp_path: Path) -> None:
    write(tmp_path, 0, 1, 2, 3, 4)
    with MetricsLog(tmp_path) as log:
        log.truncate_after(2)
        assert log.last_step == 2
        log.append(MetricsLine(3, 9.0, {"reward/mean": 0.9}))
    assert read_history(tmp_path).curve("reward/mean").steps == (0, 1, 2, 3)
    assert read_history(tmp_path).curve("reward/mean").values == (0.0, 0.1, 0.2, 0.9)


def test_truncating_before_everything_leaves_an_empty_log(tmp_path: Path) -> None:
    write(tmp_path, 5, 6)
    with MetricsLog(tmp_path) as log:
        log.truncate_after(0)
        assert log.last_step is None
        log.append(MetricsLine(1, 9.0, {}))
    assert [line.step for line in read_history(tmp_path).lines] == [1]


@pytest.mark.parametrize("step", [4, 3, 0])
def test_a_step_that_does_not_rise_is_refused(tmp_path: Path, step: int) -> None:
    write(tmp_path, 1, 4)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with MetricsLog(tmp_path) as log, pytest.raises(ValueError, match=r"truncate_after"):
        log.append(MetricsLine(step, 0.0, {}))
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_reserved_names_are_refused(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log, pytest.raises(ValueError, match="'time' is reserved"):
        log.append(MetricsLine(1, 0.0, {"time": 3.0}))


@settings(max_examples=30, deadline=None)
@given(cut=st.integers(min_value=1, max_value=40))
def test_a_half_written_line_is_passed_over_and_not_glued_to_the_next(
    cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run_dir = tmp_path_factory.mktemp("run")
    write(run_dir, 1, 2, 3)
    path = run_dir / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    assert [line.step for line in read_history(run_dir).lines] == [1, 2]
    write(run_dir, 3)
    assert [line.step for line in read_history(run_dir).lines] == [1, 2, 3]


def test_a_foreign_line_is_named(tmp_path: Path) -> None:
    write(tmp_path, 1)
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"epoch": 2}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: .*'step'"):
        read_history(tmp_path)


def test_lines_of_the_same_step_are_merged(tmp_path: Path) -> None:
    write(tmp_path, 1, 2)
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 1, "time": 2000.0, "eval/accuracy": 0.5}\n')
    history = read_history(tmp_path)
    assert [line.step for line in history.lines] == [1, 2]
    assert history.lines[0].metrics == {"reward/mean": 0.1, "eval/accuracy": 0.5}
    assert history.lines[0].time == 1001.0


def test_no_file_is_an_empty_history(tmp_path: Path) -> None:
    history = read_history(tmp_path)
    assert history.lines == () and history.names() == () and history.last_step() is None


def test_smoothing_is_centred_and_keeps_the_mean_level() -> None:
    spike = Curve(tuple(range(100)), (0.0,) * 50 + (10.0,) + (0.0,) * 49)
    smooth = spike.smooth()
    assert smooth.steps == spike.steps
    assert [at for at, value in enumerate(smooth.values) if value] == [48, 49, 50, 51, 52]
    assert smooth.values[50] == 2.0
    assert Curve((0, 1, 2), (4.0, 4.0, 4.0)).smooth().values == (4.0, 4.0, 4.0)
