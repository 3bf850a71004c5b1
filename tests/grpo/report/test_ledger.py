"""The ledger proves that no group was lost or used twice."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from fake_run import make_groups, silent_progress

from grpo.report import run_files
from grpo.report.ledger import TrainedGroup, ledger_problems, read_ledger
from grpo.report.recorder import RunRecorder

DRAWN = [f"p{number}" for number in (2, 0, 1, 3, 1, 3, 0, 2, 0, 1, 2, 3)]


def trained(*steps: str) -> list[TrainedGroup]:
    """Steps of prompts named by their numbers."""
    return [
        TrainedGroup(step, f"p{number}", (0, 0), "")
        for step, numbers in enumerate(steps, start=1)
        for number in numbers
    ]


@pytest.mark.parametrize(
    ("steps", "open_groups", "told"),
    [
        (("201", "313"), 0, None),
        (("102", "331"), 0, None),
        (("201", "133", "020"), 0, None),
        # A prompt of the second step was lost: another came in its place.
        (("201", "310"), 0, "1 of the first 7 groups drawn were never trained on, such as ['p3']"),
        (("201", "310"), 1, None),
        # A group was used twice: only a later draw could account for it.
        (("201", "220"), 0, "of the first 11 groups drawn were never trained on"),
        (("201", "224", "4"), 0, "prompt p4 was trained on 2 times more than it was drawn"),
        ((), 0, None),
    ],
)
def test_what_was_drawn_must_have_been_trained_on_once(
    steps: tuple[str, ...], open_groups: int, told: str | None
) -> None:
    found = ledger_problems(trained(*steps), DRAWN, open_groups)
    assert found == [] if told is None else any(told in line for line in found), found


def test_a_step_that_is_there_twice_or_missing_is_told() -> None:
    once = trained("20", "13")
    assert any("do not follow" in line for line in ledger_problems(once[2:], ["p1", "p3"]))
    again = [*once, *(TrainedGroup(1, one.prompt, (0, 0), "") for one in once[:2])]
    assert ledger_problems(again, DRAWN), "the groups of a step that is written twice count twice"


def test_a_report_writes_it_and_cuts_it_back(tmp_path: Path) -> None:
    generator = random.Random(0)
    groups = [make_groups(generator, step, 0.5, groups=3, size=2) for step in range(1, 5)]
    none = [[None] * 2] * 3
    with RunRecorder(tmp_path, progress=silent_progress()) as report:
        report.step(0, {"eval/accuracy": 0.1})
        for step, made in enumerate(groups, start=1):
            report.step(step, {"reward/mean": 0.5}, made, none)
    with (tmp_path / run_files.LEDGER).open("a") as file:
        file.write('{"step": 5, "groups": [{"pro')
    whole = read_ledger(tmp_path)
    assert [(one.step, one.prompt) for one in whole] == [
        (step, group.prompt.id) for step, made in enumerate(groups, start=1) for group in made
    ]
    assert len({one.sample for one in whole}) == 12, "samples differ, and so do their fingerprints"
    assert all(one.versions == (one.step - 1, one.step) for one in whole)

    with RunRecorder(tmp_path, progress=silent_progress()) as report:
        report.truncate_after(2)
        report.step(3, {"reward/mean": 0.5}, groups[2], none)
    assert read_ledger(tmp_path) == whole[:9]
