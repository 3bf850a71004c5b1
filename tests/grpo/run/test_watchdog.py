"""The watchdog notices that nothing moves; its clock, its file and what follows, without Ray."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from grpo.cluster.activity import Activity, current, driving
from grpo.cluster.failures import Stalled
from grpo.config import WatchdogConfig as Settings
from grpo.report import run_files
from grpo.run.stopwatch import Stopwatch
from grpo.run.watchdog import Watchdog, WatchedProgress
from grpo.types import Phase


class Screen:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def show(self, line: object) -> None:
        self.lines.append(str(line))


def watchdog(folder: Path, activity: Activity, screen: Screen, start_s: float = 0.2, **settings: object) -> Watchdog:
    chosen = Settings.model_validate({"stall_s": 0.3, **settings})
    return Watchdog(chosen, folder, activity, screen.show, start_s)


def until_stacks_are_written(folder: Path) -> Path:
    for _ in range(200):
        if found := list((folder / run_files.STALLS).glob("*.txt")):
            return found[0]
        time.sleep(0.05)
    raise AssertionError("no file")


def test_it_keeps_still_while_something_moves(tmp_path: Path) -> None:
    activity, screen = Activity(), Screen()
    with watchdog(tmp_path, activity, screen, stall_s=0.6):
        for _ in range(20):
            with activity.waiting("a finished group"):
                time.sleep(0.05)
    assert screen.lines == [] and not (tmp_path / run_files.STALLS).exists()


def test_it_says_once_what_it_waits_for_and_goes_on_watching(tmp_path: Path) -> None:
    activity, screen = Activity(), Screen()
    activity.time(Phase.LEARN)
    with watchdog(tmp_path, activity, screen), activity.waiting("a learner step"):
        until_stacks_are_written(tmp_path)
        time.sleep(0.8)
        assert len(screen.lines) == 1, "it is not said again and again"
        activity.moved()
        time.sleep(1.2)
    assert len(screen.lines) == 2, "another stall is another line"
    assert "phase 'learn': waiting for a learner step; stacks are in" in screen.lines[0]
    assert [line.partition(": ")[2] for line in (tmp_path / run_files.FAULTS).read_text().splitlines()] == screen.lines
    text = sorted((tmp_path / run_files.STALLS).glob("*_learn.txt"))[0].read_text()
    # The driver's own stack names the line that hangs.
    assert "test_it_says_once_what_it_waits_for_and_goes_on_watching" in text and "no actor is running" in text


@pytest.mark.parametrize("action", ["stop", "restart"])
def test_it_ends_what_hangs_in_the_driver_itself(tmp_path: Path, action: str) -> None:
    activity, lock = Activity(), threading.Lock()
    lock.acquire()
    activity.time(Phase.VERIFY)
    with (
        pytest.raises(Stalled, match=r"nothing has moved for \d+ s in phase 'verify'; stacks are in .*_verify\.txt"),
        watchdog(tmp_path, activity, Screen(), action=action),
    ):
        lock.acquire(timeout=20)


def test_a_start_has_longer(tmp_path: Path) -> None:
    activity, screen = Activity(), Screen()
    with watchdog(tmp_path, activity, screen, start_s=2.0), activity.within(Phase.START):
        time.sleep(1.2)
        assert screen.lines == []
        assert until_stacks_are_written(tmp_path).name.endswith("_start.txt")


def test_phases_and_steps_of_a_display_are_heard(tmp_path: Path) -> None:
    from fake_run import silent_progress

    activity = Activity()
    progress = WatchedProgress(silent_progress(), activity)
    activity.time(Phase.SYNC)
    assert activity.phase == (Phase.SYNC, "sync")
    with progress.phase(Phase.CHECKPOINT, "writing the checkpoint of step 3"):
        assert activity.phase == (Phase.CHECKPOINT, "writing the checkpoint of step 3")
        with activity.within(Phase.EVALUATE):
            assert activity.phase == (Phase.EVALUATE, "evaluate")
    time.sleep(0.1)
    progress.step(1, {})
    assert activity.phase[0] is Phase.SYNC and activity.still_s < 0.05
    activity.time(None)
    assert activity.phase == (Phase.BETWEEN_STEPS, "between steps")


def test_a_folder_that_cannot_be_written_to_keeps_no_line_back(tmp_path: Path) -> None:
    activity, screen = Activity(), Screen()
    (tmp_path / run_files.STALLS).write_text("in the way")
    with watchdog(tmp_path, activity, screen):
        for _ in range(100):
            if screen.lines:
                break
            time.sleep(0.05)
    assert "stacks could not be written" in screen.lines[0]


def test_two_jobs_of_one_process_are_watched_apart() -> None:
    phases, both = {}, threading.Barrier(2, timeout=20)

    def drive(phase: Phase) -> None:
        with driving() as activity:
            Stopwatch().start(phase)
            both.wait()
            phases[phase] = activity.phase[0]

    threads = [threading.Thread(target=drive, args=(phase,)) for phase in (Phase.LEARN, Phase.VERIFY)]
    with driving() as activity:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        with current().waiting("an answer"):
            assert [wait.what for wait in activity.waits] == ["an answer"]
        assert phases == {phase: phase for phase in (Phase.LEARN, Phase.VERIFY)}
        assert activity.phase == (Phase.BETWEEN_STEPS, "between steps")
