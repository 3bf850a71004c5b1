"""The closing table of a run that is read from its folder: how far the run came, and the commands that come next."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from grpo.report.closing_table import ClosingTable
from grpo.run.stored_run import read_run


def summary(folder: Path, job: str, last: int, total: int) -> ClosingTable:
    """The closing table of a run of `total` steps after its step `last`."""
    folder.mkdir()
    (folder / "config.yaml").write_text(f"{job}: {{steps: {total}}}\n")
    lines = [{"step": step, "time": 0.0, "learner/loss": 1.0} for step in range(1, last + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    policy = folder / "checkpoints" / f"step_{last:06d}" / "policy" if last < total else folder / "policy"
    policy.mkdir(parents=True)
    (policy / "config.json").write_text("{}")
    (policy.parent / "driver.pt").touch()
    return read_run(folder).summary


@pytest.mark.parametrize("job", ["train", "sft", "dpo", "reward"])
def test_a_run_that_stopped_early_says_so_and_how_to_continue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: str
) -> None:
    monkeypatch.chdir(tmp_path)
    table = summary(Path("mine"), job, 3, 7)
    assert table.title == "mine: 3 of 7 steps"
    rows = dict(table.rows)
    assert rows["continue it"] == f"grpo {job} CONFIG resume=auto"
    assert not {"evaluate it", "train it"} & set(rows)


def test_after_a_cold_start_grpo_comes_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    table = summary(Path("my start"), "sft", 7, 7)
    assert table.title == "my start: 7 steps"
    rows = dict(table.rows)
    command, _, hint = rows["train it"].partition("   ")
    assert shlex.split(command) == ["grpo", "train", "CONFIG", "policy.path=my start/policy"]
    assert "configs/quickstart.yaml" in hint and "evaluate it" not in rows


def test_after_training_the_reader_chooses_the_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command, _, hint = dict(summary(Path("mine"), "train", 7, 7).rows)["evaluate it"].partition("   ")
    assert command == "grpo eval mine --task TASK"
    assert "docs/evaluation.md" in hint and "grpo eval tasks" in hint


def test_a_folder_without_a_config_has_a_table_too(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 3, "time": 0.0, "learner/loss": 1.0}\n')
    assert read_run(tmp_path).summary.title == f"{tmp_path.name}: 3 steps"
