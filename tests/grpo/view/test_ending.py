"""The sentence about a run that failed or was interrupted, read from the driver's log."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from grpo.report.logs import driver_log
from grpo.view import payloads as view_data
from grpo.view.ending import read_ending
from grpo.view.runs import open_runs


def fail(run_dir: Path, failure: BaseException, cause: BaseException | None = None) -> str | None:
    """Let a job in the folder end with this error; return the sentence."""
    with pytest.raises(type(failure)), driver_log(run_dir, "info"):
        raise failure from cause
    return read_ending(run_dir)


def test_a_run_that_failed_says_so_with_its_error_and_its_log(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "driver.log"
    assert read_ending(tmp_path) is None
    said = fail(tmp_path, RuntimeError("a rank is lost\nsecond line"))
    assert said == f"The run ended with an error: RuntimeError: a rank is lost\nIts log: {log}"
    said = fail(tmp_path, ValueError("the outer error"), KeyError("the cause"))
    assert said == f"The run ended with an error: ValueError: the outer error\nIts log: {log}"
    # An error may quote a record of the log, or the end of a traceback.
    quoted = "first\n2026-12-01T15:22:27.123Z INFO    driver 1 grpo.report.logs: the job has ended\nValueError: other"
    assert "RuntimeError: first\n" in str(fail(tmp_path, RuntimeError(quoted)))
    assert str(fail(tmp_path, KeyboardInterrupt())).startswith("The run was interrupted.")


def test_only_the_newest_job_of_a_folder_counts(tmp_path: Path) -> None:
    assert fail(tmp_path, ValueError("a mistake"))
    with driver_log(tmp_path, "info"):
        assert read_ending(tmp_path) is None, "the run goes on"
    assert read_ending(tmp_path) is None, "the run ended well"


def test_the_page_says_that_a_run_failed_before_its_first_step(tmp_path: Path) -> None:
    assert fail(tmp_path, ValueError("no such policy"))
    with pytest.raises(ValueError, match=r"completions to show\. The run ended with an error"):
        open_runs([tmp_path])
    (tmp_path / "metrics.jsonl").write_text("")
    runs = open_runs([tmp_path])
    (shown,) = view_data.overview(runs)["runs"]
    assert "ValueError: no such policy" in shown["ending"] and shown["last_step"] is None
    json.dumps(shown)


def test_a_page_that_is_open_learns_of_the_end(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    runs = open_runs([tmp_path])
    before = view_data.state(runs)
    with pytest.raises(RuntimeError), driver_log(tmp_path, "info"):
        assert view_data.state(runs) == before
        time.sleep(0.01)
        raise RuntimeError("late")
    assert view_data.state(runs) != before
