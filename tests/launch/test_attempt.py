"""An attempt on Kubernetes: which failures KubeRay sees, and so tries again."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from launch_configs import ROOT, settings

from launch import attempt, ray_job


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


@pytest.fixture
def stops(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How often the Ray job was asked to stop; Ray's signal does not come."""
    asked: list[str] = []
    monkeypatch.setattr(ray_job, "stop_this_job", lambda: asked.append("stop"))
    return asked


def test_a_wrong_configuration_is_tried_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], stops: list[str]
) -> None:
    (tmp_path / "config.yaml").write_text("run: {folder: x}\n")
    # The real command: it reports the mistake itself.
    assert attempt.main(["train", str(tmp_path / "config.yaml")]) == 2
    told = capfd.readouterr().err
    assert "policy is missing" in told and "FAILED with exit status 2" in told and "must be corrected" in told
    assert stops == ["stop"]


def test_outside_of_a_ray_job_the_status_is_the_run_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(ray_job.JOB_VARIABLE, raising=False)
    ends_with(monkeypatch, attempt.MISTAKE)
    assert attempt.main(["train", written(tmp_path)]) == attempt.MISTAKE
    assert "could not stop itself" in capfd.readouterr().err


def test_a_run_that_ends_well_ends_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stops: list[str]) -> None:
    ends_with(monkeypatch, 0)
    assert attempt.main(["train", written(tmp_path)]) == 0
    assert not stops


@pytest.mark.parametrize("status", [1, 137])
def test_a_failure_is_tried_again_until_nothing_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], status: int, stops: list[str]
) -> None:
    config, checkpoints = written(tmp_path), tmp_path / "run" / "checkpoints"
    ends_with(monkeypatch, status)
    assert [attempt.main(["train", config]) for _ in range(2)] == [status, status]
    # A newer checkpoint: the failure was not the same again.
    ends_with(monkeypatch, status, checkpoints / "step_000010")
    assert attempt.main(["train", config]) == status
    ends_with(monkeypatch, status)
    assert [attempt.main(["train", config]) for _ in range(2)] == [status, status]
    assert not stops
    assert attempt.main(["train", config]) == status
    assert stops == ["stop"] and "3 attempts brought no newer checkpoint" in capfd.readouterr().err


STATUS = """
import sys
from ray.job_submission import JobSubmissionClient
print(JobSubmissionClient(sys.argv[1]).get_job_status("one").value)
"""


@pytest.fixture
def dashboard() -> Iterator[tuple[str, dict[str, str]]]:
    """The address of a Ray that accepts jobs, and the environment of its commands. It has a token, as on Kubernetes."""
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        port, dashboard_port = one.getsockname()[1], other.getsockname()[1]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = {**inherited, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    # A short path, because Unix sockets lie in it.
    with tempfile.TemporaryDirectory(prefix="grpo-test-") as folder:
        # The dashboard's processes leave folders of Python's multiprocessing.
        environment["TMPDIR"] = folder
        command = ["ray", "start", "--head", "--block", "--num-cpus=1", f"--port={port}", "--include-dashboard=true"]
        command += [f"--dashboard-port={dashboard_port}", "--dashboard-host=127.0.0.1", f"--temp-dir={folder}"]
        command += ["--dashboard-agent-listen-port=0", "--node-ip-address=127.0.0.1", "--disable-usage-stats"]
        with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as head:
            yield f"http://127.0.0.1:{dashboard_port}", environment
            head.terminate()
            head.wait(60)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_kuberay_sees_a_ray_job_that_is_stopped(tmp_path: Path, dashboard: tuple[str, dict[str, str]]) -> None:
    """KubeRay makes a new attempt after a Ray job that FAILED. After a Ray job that is STOPPED it ends the RayJob."""
    address, environment = dashboard
    (tmp_path / "config.yaml").write_text("run: {folder: x}\n")
    entrypoint = [sys.executable, "-P", "-m", "launch.attempt", "train", str(tmp_path / "config.yaml")]
    submit = ["ray", "job", "submit", "--address", address, "--submission-id", "one", "--no-wait", "--", *entrypoint]
    started = time.monotonic()
    while (done := subprocess.run(submit, env=environment, capture_output=True, text=True, check=False)).returncode:
        assert time.monotonic() - started < 120, done.stdout + done.stderr
        time.sleep(1)
    # KubeRay's submitter follows the log. The RayJob would also fail if the submitter failed.
    follow = ["ray", "job", "logs", "--address", address, "--follow", "one"]
    log = subprocess.run(follow, env=environment, capture_output=True, text=True, check=False, timeout=200)
    assert log.returncode == 0 and "the run FAILED with exit status 2" in log.stdout, log.stdout + log.stderr
    asked = [sys.executable, "-c", STATUS, address]
    assert subprocess.check_output(asked, env=environment, text=True) == "STOPPED\n"
