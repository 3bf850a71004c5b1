from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from grpo.report.trackers import TensorBoardTracker, open_trackers, require_trackers


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


def test_tensorboard_shows_a_resumed_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.summary.writer import event_file_writer

    # TensorBoard reads files in the order of their names, and within a second a process's tenth comes before its ninth.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
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
    with pytest.raises(ValueError, match=r"'comet' is not one of tensorboard, wandb, mlflow, prometheus"):
        open_trackers(["tensorboard", "comet"], tmp_path)
    assert not (tmp_path / "tensorboard").exists()


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_told_with_its_remedy(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=rf"pip install 'verigrpo\[{name}\]'"):
        open_trackers([name], tmp_path)
    with pytest.raises(ValueError, match=rf"pip install 'verigrpo\[{name}\]'"):
        require_trackers(["tensorboard", name])
    monkeypatch.delitem(sys.modules, name)
    (tmp_path / name).mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    if importlib.util.find_spec(name).origin is None:  # type: ignore[union-attr]
        with pytest.raises(ValueError, match="is configured but not installed"):
            require_trackers([name])


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


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="the extra `mlflow` is not installed")
def test_mlflow_goes_on_with_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    # The whole of MLflow would want a database; the client alone still writes files where it is told to.
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/store")
    run_dir = tmp_path / "quickstart"
    for step, reward in ((1, 0.25), (2, 0.5)):
        (tracker,) = open_trackers(["mlflow"], run_dir, config={"rollout": {"group_size": 8}}, project="sums")
        tracker.log(step, 1000.0 + step, {"reward/mean": reward, "learner/loss": float("nan")})
        tracker.close()
        tracker.close()
    run_id = (run_dir / "mlflow_id").read_text().strip()
    history = MlflowClient().get_metric_history(run_id, "reward/mean")
    assert [(point.step, point.value, point.timestamp) for point in history] == [(1, 0.25, 1001000), (2, 0.5, 1002000)]
    run = MlflowClient().get_run(run_id)
    assert run.data.params == {"rollout.group_size": "8"}
    assert (run.info.status, "learner/loss" in run.data.metrics) == ("FINISHED", False)
