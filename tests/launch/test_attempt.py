"""An attempt on Kubernetes: which failures KubeRay sees, and so tries again."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from launch_configs import settings

from launch import attempt


def written(folder: Path) -> str:
    data = settings(folder, {}, cluster={"max_fruitless_restarts": 2})
    (folder / "config.yaml").write_text(yaml.safe_dump(data))
    return str(folder / "config.yaml")


def ends_with(monkeypatch: pytest.MonkeyPatch, status: int, checkpoint: Path | None = None) -> None:
    def run(command: str, config: str) -> int:
        if checkpoint:
            checkpoint.mkdir(parents=True)
        return status

    monkeypatch.setattr(attempt, "run", run)


def test_a_wrong_configuration_is_tried_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("run: {folder: x}\n")
    # The real command: it reports the mistake itself.
    assert attempt.main(["train", str(tmp_path / "config.yaml")]) == 0
    told = capfd.readouterr().err
    assert "policy is missing" in told and "FAILED with exit status 2" in told and "must be corrected" in told


def test_a_run_that_ends_well_ends_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends_with(monkeypatch, 0)
    assert attempt.main(["train", written(tmp_path)]) == 0


@pytest.mark.parametrize("status", [1, 137])
def test_a_failure_is_tried_again_until_nothing_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], status: int
) -> None:
    config, checkpoints = written(tmp_path), tmp_path / "run" / "checkpoints"
    ends_with(monkeypatch, status)
    assert [attempt.main(["train", config]) for _ in range(2)] == [status, status]
    # A newer checkpoint: the failure was not the same again.
    ends_with(monkeypatch, status, checkpoints / "step_000010")
    assert attempt.main(["train", config]) == status
    ends_with(monkeypatch, status)
    assert [attempt.main(["train", config]) for _ in range(3)] == [status, status, 0]
    assert "3 attempts brought no newer checkpoint" in capfd.readouterr().err
