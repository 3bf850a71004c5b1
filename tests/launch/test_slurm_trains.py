"""The Slurm script with real Ray, vLLM and DeepSpeed: two Ray nodes, a run, a warning before the time limit, a resume.

The first test has a stand-in for Slurm; its two nodes are two Ray nodes on this machine, each with one CPU, so that the
learner and the generator must be placed on different nodes. The second test needs a real Slurm with two nodes.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_job import remove_ray_folders
from launch_configs import ROOT, fake_slurm, idle_nodes, settings

from grpo.config import NewPolicyConfig, TrainConfig
from grpo.policy.new import make_policy
from grpo.run import checkpoint
from launch.job import LaunchJob
from launch.slurm import submit

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.timeout(900),
    pytest.mark.usefixtures(remove_ray_folders.__name__),
]

STEPS = 4
SMALL = NewPolicyConfig(hidden_size=64, layers=2, heads=2, key_value_heads=1, intermediate_size=96, max_position=256)


def metrics(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def described(tmp_path: Path) -> dict[str, Any]:
    """A run of two actors on two nodes; its verdicts take their time, so that it can be warned before its end."""
    make_policy(SMALL, [], tmp_path / "policy", 1)
    # A random policy answers nothing right; completions of odd and even length differ in their rewards. Verdicts that
    # take their time keep the run from its end until it has been warned.
    (tmp_path / "lengths.py").write_text(
        "import time\n\ndef odd(completion, reference):\n    time.sleep(0.15)\n    return len(completion) % 2 == 1\n"
    )
    return settings(
        tmp_path,
        {"venv": sys.prefix, "environment": {"PYTHONPATH": str(ROOT)}, "nodes_deadline_s": 240},
        verifiers=[{"name": "odd", "use": f"{tmp_path}/lengths.py:odd"}],
        rollout={"prompts_per_step": 4, "group_size": 4, "max_prompt_tokens": 24, "max_completion_tokens": 16},
        learner={"microbatch_tokens": 512, "learning_rate": 1e-3},
        train={"steps": STEPS, "checkpoint_every": 100},
        cluster={"device": "cpu"},
    )


def trained_to_its_end(run: Path) -> None:
    lines = metrics(run)
    assert [line["step"] for line in lines] == list(range(STEPS + 1))
    assert any(line["learner/gradient_norm"] > 0 for line in lines[1:])
    assert all(line["sync/probe_mean_difference"] < 2e-4 for line in lines[1:])
    newest = checkpoint.latest(run)
    assert newest is not None and newest.step == STEPS


def test_a_job_trains_on_two_ray_nodes_is_warned_and_goes_on(tmp_path: Path) -> None:
    addresses = subprocess.run(["hostname", "-I"], capture_output=True, text=True, check=False).stdout.split()
    if not any(address.count(".") == 3 for address in addresses):
        pytest.skip("this machine has no IPv4 address but loopback, on which Ray nodes do not find each other")
    data = described(tmp_path)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(data))
    slurm = fake_slurm(tmp_path / "slurm", "node-a node-b")
    done = subprocess.run(
        [sys.executable, "-c", "from grpo.cli.app import app; app()", "launch", "slurm", str(tmp_path / "config.yaml")],
        env={**slurm.environment, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, f"Submitted batch job {slurm.job}\n"), done.stderr

    run, started = tmp_path / "run", time.monotonic()
    log = run / "launch" / f"slurm-{slurm.job}.out"
    try:
        while len(metrics(run)) < 2:
            assert not (slurm.folder / "done").exists(), log.read_text()
            assert time.monotonic() - started < 400, log.read_text()
            time.sleep(0.02)
        slurm.signal_batch(signal.SIGUSR1)
        assert slurm.wait(400) == [0, 0], log.read_text()
    finally:
        left = slurm.processes()
        for process in left:
            process.kill()
    told = log.read_text()
    assert not left, left
    assert told.count("2 Ray nodes are up: node-a, node-b") == 2
    assert "asking for a checkpoint" in told and "resuming from step" in told
    trained_to_its_end(run)
    assert not list((run / "launch").glob("job-*")), "the token must not stay"
    assert not list(Path("/tmp").glob(f"grpo-{slurm.job}-*"))


def test_a_job_of_a_real_slurm_trains_is_warned_and_goes_on(tmp_path: Path) -> None:
    if len(idle_nodes()) < 2:
        pytest.skip("no Slurm with two idle nodes answers here")
    data = described(tmp_path)
    number = submit(LaunchJob(TrainConfig.model_validate(data), tmp_path)).split()[-1]
    run, started = tmp_path / "run", time.monotonic()
    log = run / "launch" / f"slurm-{number}.out"

    def wait_until(happened: Callable[[], bool]) -> None:
        while not happened():
            assert time.monotonic() - started < 800, log.read_text()
            time.sleep(0.2)

    def state() -> str:
        told = subprocess.check_output(["scontrol", "show", "job", number], text=True)
        return re.findall(r"JobState=(\w+)", told)[0]

    try:
        wait_until(lambda: len(metrics(run)) >= 2)
        subprocess.run(["scancel", "--batch", "--signal=USR1", number], check=True)
        # The job waits two minutes for its second begin.
        wait_until(lambda: state() not in ("RUNNING", "PENDING", "COMPLETING", "CONFIGURING"))
        assert state() == "COMPLETED", log.read_text()
        wait_until(lambda: not list(Path("/tmp").glob(f"grpo-{number}-*")))
    finally:
        subprocess.run(["scancel", number], check=False)
        for folder in Path("/tmp").glob(f"grpo-{number}-*"):
            shutil.rmtree(folder, ignore_errors=True)
    told = log.read_text()
    assert told.count("2 Ray nodes are up: ") == 2
    assert "asking for a checkpoint" in told and "resuming from step" in told
    trained_to_its_end(run)
    assert not list((run / "launch").glob("job-*")), "the token must not stay"
