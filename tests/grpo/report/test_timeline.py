"""The file that says who was busy when: bounded, and cut back with the metrics."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_run import silent_progress

from grpo.report import run_files
from grpo.report.json_lines import complete_lines
from grpo.report.recorder import RunRecorder
from grpo.report.timeline import DRIVER, TimeLine, step_lanes


def steps(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in complete_lines(folder / run_files.TIMELINE)]


def test_a_resumed_run_forgets_later_steps(tmp_path: Path) -> None:
    with RunRecorder(tmp_path, progress=silent_progress()) as report:
        for step in (1, 2, 3):
            report.busy(step, 1000.0 + step, {DRIVER: {"learn": [(1000.0 + step, 1000.5 + step)]}})
        report.truncate_after(2)
        assert steps(tmp_path) == [1, 2]
        report.busy(3, 2000.0, {})
    assert steps(tmp_path) == [1, 2, 3]


def test_what_is_near_to_a_step_is_not_joined_with_it(tmp_path: Path) -> None:
    with RunRecorder(tmp_path, progress=silent_progress()) as report:
        # The evaluation of step 0 ends a moment before step 1, and that of step 2 comes a moment after it.
        report.busy(1, 1000.0, {DRIVER: {"evaluate": [(999.9, 999.995)], "learn": [(1000.0, 1000.01)]}})
        report.busy(2, 1000.01, {DRIVER: {"learn": [(1000.01, 1000.012)], "evaluate": [(1000.012, 1000.02)]}})
    found = step_lanes(complete_lines(tmp_path / run_files.TIMELINE), 1)
    assert found is not None and found.lanes[DRIVER].keys() == {"learn"}
    assert found.lanes[DRIVER]["learn"] == [(0.0, pytest.approx(0.01))]


def test_the_file_keeps_the_newest_steps_within_its_bound(tmp_path: Path) -> None:
    line = TimeLine(tmp_path, most_bytes=4000)
    largest = 0
    for step in range(1, 201):
        line.append(step, 1000.0 * step, {DRIVER: {"learn": [(1000.0 * step, 1000.0 * step + 1)]}})
        largest = max(largest, (tmp_path / run_files.TIMELINE).stat().st_size)
    line.close()
    kept = steps(tmp_path)
    assert largest <= 4000 and kept == list(range(kept[0], 201)) and len(kept) > 15
    lines = complete_lines(tmp_path / run_files.TIMELINE)
    found = step_lanes(lines, 199)
    assert found is not None and found.lanes == {DRIVER: {"learn": [(0.0, 1.0)]}} and found.complete
    assert step_lanes(lines, 1) is None, "step 1 is gone, though other lines begin with its digit"
