"""A job on the stand-in for Slurm whose `ray`, `python` and `grpo` only write down how they were called."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from launch_configs import Slurm, fake_slurm, job

from launch import slurm

RAY = """#!/bin/bash
# A Ray node: it stays until it is told to go.
printf '%s\\n' "$*" >> "$FAKE_SLURM/ray.$SLURMD_NODENAME"
stat -c %a "$RAY_AUTH_TOKEN_PATH" "$(dirname "$RAY_AUTH_TOKEN_PATH")" > "$FAKE_SLURM/modes"
cat "$RAY_AUTH_TOKEN_PATH" > "$FAKE_SLURM/token"
trap 'exit 0' TERM
while [[ ! -e "$FAKE_SLURM/lose.$SLURMD_NODENAME" ]]; do sleep 0.1; done
rm "$FAKE_SLURM/lose.$SLURMD_NODENAME"
exit 1
"""
GRPO = """#!/bin/bash
printf '%s\\n' "$*" >> "$FAKE_SLURM/grpo"
env > "$FAKE_SLURM/environment"
trap 'echo stopped >> "$FAKE_SLURM/grpo"; exit 0' TERM
touch "$FAKE_SLURM/running"
while [[ ! -e "$FAKE_SLURM/end" ]]; do sleep 0.1; done
exit "$(cat "$FAKE_SLURM/end")"
"""


def submitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launch: dict[str, Any] | None = None) -> Slurm:
    fake = fake_slurm(
        tmp_path / "slurm", "node-a node-b", programs={"ray": RAY, "grpo": GRPO, "python": "#!/bin/bash\nexit 0\n"}
    )
    for name in ("PATH", "FAKE_SLURM"):
        monkeypatch.setenv(name, fake.environment[name])
    assert (
        slurm.submit(job(tmp_path, {"venv": str(fake.folder), **(launch or {})})) == f"Submitted batch job {fake.job}"
    )
    return fake


def wait_for(path: Path, deadline_s: float = 30) -> None:
    started = time.monotonic()
    while not path.exists():
        assert time.monotonic() - started < deadline_s, f"{path} did not appear"
        time.sleep(0.05)


def log_of(tmp_path: Path) -> str:
    (log,) = (tmp_path / "run" / "launch").glob("slurm-*.out")
    return log.read_text()


@pytest.fixture
def remove_ray_folders() -> Iterator[None]:
    """Remove the folders of Ray that failed jobs have left for their logs."""
    yield
    for folder in Path("/tmp").glob(f"grpo-{os.getpid()}-*"):
        shutil.rmtree(folder)
