from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from grpo.trackers import TensorBoardTracker, open_trackers


def scalars(run_dir: Path, name: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator: Any = EventAccumulator(str(run_dir / "tensorboard"))
    accumulator.Reload()
    return [(event.step, event.value) for event in accumulator.Scalars(name)]


def test_tensorboard_keeps_names_steps_and_times(tmp_path: Path) -> None:
    (tracker,) = open_trackers(["tensorboard"], tmp_path)
    assert isinstance(tracker, TensorBoardTracker)
    tracker.log(1, 1000.0, {"reward/mean": 0.25, "time/step_s": 2.0})
    tracker.log(2, 1002.0, {"reward/mean": 0.5})
    tracker.close()
    assert scalars(tmp_path, "reward/mean") == [(1, 0.25), (2, 0.5)]
    assert scalars(tmp_path, "time/step_s") == [(1, 2.0)]


def test_tensorboard_shows_a_resumed_run_once(tmp_path: Path) -> None:
    (tracker,) = open_trackers(["tensorboard"], tmp_path)
    for step in (1, 2, 3):
        tracker.log(step, 1000.0 + step, {"reward/mean": step / 8})
    tracker.close()
    (tracker,) = open_trackers(["tensorboard"], tmp_path)
    tracker.truncate_after(1)
    tracker.log(2, 2000.0, {"reward/mean": 1.0})
    tracker.close()
    tracker.close()
    assert scalars(tmp_path, "reward/mean") == [(1, 0.125), (2, 1.0)]


def test_an_unknown_tracker_is_refused_before_any_is_opened(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'mlflow' is not one of tensorboard, wandb"):
        open_trackers(["tensorboard", "mlflow"], tmp_path)
    assert not (tmp_path / "tensorboard").exists()


def test_a_missing_wandb_is_told_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"pip install 'verigrpo\[wandb\]'"):
        open_trackers(["wandb"], tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_gets_the_steps_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run_dir = tmp_path / "quickstart"
    for _ in range(2):
        (tracker,) = open_trackers(["wandb"], run_dir, config={"seed": 1})
        tracker.truncate_after(0)
        tracker.log(1, 1000.0, {"reward/mean": 0.5, "learner/loss": float("nan")})
        tracker.close()
    run_id = (run_dir / "wandb_id").read_text().strip()
    files = list(run_dir.glob("wandb/offline-run-*/run-*.wandb"))
    assert files and all(file.stem == f"run-{run_id}" for file in files)
    assert any(b"reward/mean" in file.read_bytes() for file in files)
