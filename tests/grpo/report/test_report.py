from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from fake_run import make_advantages, make_groups, silent_progress, write_fake_run
from rich.console import Console

from grpo.report import run_files
from grpo.report.closing_table import ClosingTable
from grpo.report.metrics_log import read_history
from grpo.report.progress import open_progress
from grpo.report.recorder import RunRecorder
from grpo.report.rollout_store import read_groups, stored_steps
from grpo.types import Completion, Group, VersionSpan
from grpo.view.page import write_report


class RecordingTracker:
    def __init__(self) -> None:
        self.calls: list[tuple[str, object]] = []

    def log(self, step: int, time: float, metrics: Mapping[str, float]) -> None:
        self.calls.append(("log", (step, dict(metrics))))

    def truncate_after(self, step: int) -> None:
        self.calls.append(("truncate", step))

    def close(self) -> None:
        self.calls.append(("close", None))


def report_steps(report: RunRecorder, *steps: int) -> None:
    generator = random.Random(0)
    for step in steps:
        groups = make_groups(generator, step, 0.5, groups=2, size=3)
        report.step(step, {"reward/mean": step / 10}, groups, make_advantages(groups))


def test_importing_the_report_starts_nothing_heavy() -> None:
    heavy = ["ray", "vllm", "deepspeed", "torch", "matplotlib", "tensorboard", "wandb"]
    program = f"import sys, grpo.report.recorder; print([name for name in {heavy} if name in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


@pytest.mark.parametrize("above", [0.02, float("nan")])
def test_a_mismatch_above_the_threshold_is_said_once(tmp_path: Path, above: float) -> None:
    said = StringIO()
    progress = open_progress("GRPO", console=Console(file=said, width=400))
    with RunRecorder(tmp_path, progress=progress, mismatch_alarm=0.01) as report:
        report.step(1, {"learner/mismatch_kl_first": 0.009, "learner/mismatch_kl": 0.5})
        assert "disagree" not in said.getvalue()
        report.step(2, {"learner/mismatch_kl_first": above})
        report.step(3, {"learner/mismatch_kl_first": above})
    assert said.getvalue().count("step 2: learner and generators disagree") == said.getvalue().count("disagree") == 1
    assert "report.mismatch_alarm=0.01" in said.getvalue()


def test_a_step_reaches_file_and_trackers_alike(tmp_path: Path) -> None:
    tracker = RecordingTracker()
    with RunRecorder(tmp_path, trackers=[tracker], progress=silent_progress()) as report:
        report.step(0, {"eval/accuracy": 0.5})
        report_steps(report, 1)
    assert [kind for kind, _ in tracker.calls] == ["log", "log", "close"]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1]
    assert lines[0]["eval/accuracy"] == 0.5 and "reward/mean" not in lines[0]
    assert abs(lines[1]["time"] - lines[0]["time"]) < 60
    metrics = {name: value for name, value in lines[1].items() if name not in ("step", "time")}
    assert tracker.calls[1] == ("log", (1, metrics))


def test_every_line_is_on_the_disk_before_the_next_step(tmp_path: Path) -> None:
    with RunRecorder(tmp_path, progress=silent_progress()) as report:
        for step in (1, 2, 3):
            report_steps(report, step)
            assert read_history(tmp_path).last_step() == step


def test_rollouts_of_first_every_nth_and_planned_last_step_are_stored(tmp_path: Path) -> None:
    with RunRecorder(tmp_path, progress=silent_progress(), rollouts_every=4, total_steps=10) as report:
        report.step(0, {"eval/accuracy": 0.5})
        report_steps(report, *range(1, 11))
        assert stored_steps(tmp_path) == (1, 4, 8, 10)
    assert len(read_groups(tmp_path, 8)) == 2


def test_a_run_stopped_anywhere_keeps_its_last_rollouts(tmp_path: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        RunRecorder(tmp_path, progress=silent_progress(), rollouts_every=4) as report,
    ):
        report_steps(report, 1, 2, 3, 4, 5, 6)
        raise KeyboardInterrupt
    assert stored_steps(tmp_path) == (1, 4, 6)


def test_no_rollouts_are_stored_when_switched_off(tmp_path: Path) -> None:
    with RunRecorder(tmp_path, progress=silent_progress(), rollouts_every=0, total_steps=2) as report:
        report_steps(report, 1, 2)
    assert stored_steps(tmp_path) == ()
    with pytest.raises(ValueError, match="rollouts_every"):
        RunRecorder(tmp_path, progress=silent_progress(), rollouts_every=-1)


def test_resuming_forgets_later_steps_everywhere_and_equals_a_straight_run(tmp_path: Path) -> None:
    with RunRecorder(tmp_path, progress=silent_progress()) as report:
        report_steps(report, 1, 2, 3, 4)
    tracker = RecordingTracker()
    with RunRecorder(tmp_path, trackers=[tracker], progress=silent_progress()) as report:
        report.truncate_after(2)
        assert stored_steps(tmp_path) == (1, 2)
        report_steps(report, 3)
    assert tracker.calls[0] == ("truncate", 2)
    assert read_history(tmp_path).curve("reward/mean").steps == (1, 2, 3)
    assert stored_steps(tmp_path) == (1, 2, 3)


def test_working_time_goes_on_over_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("grpo.report.recorder.time.monotonic", lambda: now[0])
    with RunRecorder(tmp_path, progress=silent_progress()) as report:
        for step in (1, 2, 3):
            now[0] += 10
            report.step(step, {})
    now[0] += 5000  # stopped for a while
    with RunRecorder(tmp_path, progress=silent_progress()) as report:
        report.truncate_after(2)
        now[0] += 7
        report.step(3, {})
    assert read_history(tmp_path).curve("time/run_s").values == (10.0, 20.0, 27.0)


def test_a_folder_in_use_is_not_overwritten_by_a_new_run(tmp_path: Path) -> None:
    with RunRecorder(tmp_path, progress=silent_progress()) as report:
        report_steps(report, 1, 2)
    with (
        RunRecorder(tmp_path, progress=silent_progress()) as report,
        pytest.raises(ValueError, match="empty run folder"),
    ):
        report_steps(report, 1)
    assert read_history(tmp_path).last_step() == 2


def test_groups_and_advantages_of_different_shape_leave_no_trace(tmp_path: Path) -> None:
    groups = make_groups(random.Random(0), 1, 0.5, groups=2, size=3)
    with RunRecorder(tmp_path, progress=silent_progress()) as report:
        with pytest.raises(ValueError, match="got 2 advantages"):
            report.step(1, {}, groups, [[0.0, 0.0, 0.0], [0.0, 0.0]])
        with pytest.raises(ValueError, match="2 groups, got 0"):
            report.step(1, {}, groups)
    assert read_history(tmp_path).lines == ()
    assert stored_steps(tmp_path) == ()


def test_finish_writes_the_whole_folder_and_returns_the_table(tmp_path: Path) -> None:
    closing = write_fake_run(tmp_path / "quickstart", steps=20, eval_every=5)
    figures = {path.name for path in (tmp_path / "quickstart" / "figures").iterdir()}
    assert figures == {"overview.png", "accuracy.png", "reward.png", "completion_length.png", "step_time.png"}
    assert (tmp_path / "quickstart" / "report.html").stat().st_size > 10_000
    rows = dict(closing.rows)
    assert rows["held-out accuracy"].startswith("0.450 -> ")
    assert rows["report"] == str(tmp_path / "quickstart" / "report.html")
    assert rows["figures"] == str(tmp_path / "quickstart" / "figures")
    assert_shown_whole(closing)


def assert_shown_whole(closing: ClosingTable) -> None:
    console = Console(file=StringIO(), width=80)
    console.print(closing)
    assert isinstance(console.file, StringIO)
    printed = console.file.getvalue().replace("\n", "").replace(" ", "").replace("│", "")
    for label, figure in closing.rows:
        assert (label + figure).replace(" ", "") in printed
        assert figure in str(closing)


def test_a_run_without_any_step_finishes_too(tmp_path: Path) -> None:
    with RunRecorder(tmp_path / "empty", progress=silent_progress()) as report:
        closing = report.finish(write_report)
    assert closing.title == "empty: no steps"
    assert dict(closing.rows) == {"report": str(tmp_path / "empty" / "report.html")}
    assert '"last_step": null' in (tmp_path / "empty" / "report.html").read_text()


def test_supervised_fine_tuning_is_reported_by_its_loss(tmp_path: Path) -> None:
    with RunRecorder(tmp_path / "sft", progress=silent_progress()) as report:
        for step in (1, 2, 3):
            report.step(step, {"learner/loss": 3.0 / step, "throughput/tokens_per_s": 5000.0, "time/step_s": 0.1})
        closing = report.finish(write_report)
    assert dict(closing.rows)["loss"] == "3.0000 -> 1.0000"
    assert dict(closing.rows)["tokens/s"] == "5,000"
    assert (tmp_path / "sft" / "figures" / "loss.png").exists()


def test_stored_completions_are_bounded_and_it_is_said_once(tmp_path: Path) -> None:
    said = StringIO()
    progress = open_progress("GRPO", console=Console(file=said, width=400))
    generator = random.Random(0)
    # Rollouts whose log-probabilities do not compress: about 0.4 MiB a step.
    groups = make_groups(generator, 1, 0.5, groups=1, size=4)
    wide, span = tuple(generator.random() for _ in range(25_000)), (VersionSpan(0, 25_000, 0),)
    rollouts = tuple(
        replace(one, completion=Completion((1,) * 25_000, wide[i:] + wide[:i], "x", "stop", span))
        for i, one in enumerate(groups[0].rollouts)
    )
    with RunRecorder(tmp_path, progress=progress, rollouts_max_mib=2) as report:
        report.evaluation(0, groups)
        for step in range(1, 10):
            report.step(step, {}, [Group(groups[0].prompt, rollouts)], [[0.0] * 4])
    kept = stored_steps(tmp_path)
    assert kept[0] == 1 and kept[-1] == 9 and 3 <= len(kept) < 9
    assert sum(path.stat().st_size for path in (tmp_path / "rollouts").iterdir()) <= 2 << 20
    assert said.getvalue().count("report.rollouts_max_mib=2") == 1
    assert stored_steps(tmp_path, run_files.EVALUATIONS) == (0,)
