"""The code quickstart through the command line, short: rewards come from programs that the sandbox ran."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from rewards.verdict import Status

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]


def grpo(*arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    command = [sys.executable, "-c", "from grpo.cli.app import app; app()", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout + done.stderr


def sandbox_processes() -> set[int]:
    found = set()
    for process in psutil.process_iter(["cmdline"]):
        if any("sandbox.inside.zygote" in word for word in process.info["cmdline"] or ()):
            found.add(process.pid)
    return found


def test_rewards_come_from_programs_that_were_run(tmp_path: Path) -> None:
    before = sandbox_processes()
    cold, run = tmp_path / "sft", tmp_path / "run"
    # Careful demonstrations only: so much is learned in a few seconds that some functions are right and some are not.
    brief = ["learner.ranks=1", "sft.steps=180", "sft.batch_size=32", "learner.warmup_steps=20"]
    brief += ["data.options={count: 6000, careful_share: 1.0}"]
    grpo("sft", "configs/code_quickstart_sft.yaml", f"run.folder={cold}", *brief)
    small = ["train.steps=2", "learner.ranks=1", "generator.replicas=1", "rollout.prompts_per_step=16"]
    small += ["evaluation.data.options.count=20", "evaluation.every=1"]
    grpo("train", "configs/code_quickstart.yaml", f"policy.path={cold}/policy", f"run.folder={run}", *small)

    lines: list[dict[str, Any]] = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2]
    for line in lines[1:]:
        assert line["rollout/failed_verdicts"] == 0
        shares = {status: line[f"verdict/tests/{status}"] for status in Status}
        assert shares[Status.CORRECT] > 0 and shares[Status.WRONG] > 0, shares
        assert line["learner/gradient_norm"] > 0
    assert all("eval/accuracy" in line for line in lines)
    assert not sandbox_processes() - before, "a run leaves no sandbox behind"
