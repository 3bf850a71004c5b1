"""The script on a real Slurm of two nodes or more, where one answers; `ray` and `grpo` are stand-ins."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from launch_configs import job

from launch import slurm

RAY = """#!/bin/bash
printf '%s\\n' "$*" >> "FOLDER/ray.$SLURMD_NODENAME"
trap 'exit 0' TERM
while :; do sleep 0.2; done
"""
GRPO = """#!/bin/bash
printf '%s\\n' "$*" >> FOLDER/grpo
trap 'echo stopped >> FOLDER/grpo; exit 0' TERM
while [[ ! -e FOLDER/end ]]; do sleep 0.2; done
"""


def nodes() -> int:
    """How many nodes a Slurm has that answers here."""
    if shutil.which("sbatch") is None:
        return 0
    told = subprocess.run(["sinfo", "-hN", "-o", "%N", "-t", "idle"], capture_output=True, text=True, check=False)
    return len(set(told.stdout.split())) if told.returncode == 0 else 0


@pytest.fixture
def submitted(tmp_path: Path) -> Iterator[str]:
    """The number of a job that was submitted from its printed script, in a folder that all nodes reach."""
    if nodes() < 2:
        pytest.skip("no Slurm with two idle nodes answers here")
    (tmp_path / "bin").mkdir()
    for name, text in {"ray": RAY, "grpo": GRPO, "python": "#!/bin/bash\nexit 0\n"}.items():
        (tmp_path / "bin" / name).write_text(text.replace("FOLDER", str(tmp_path)))
        (tmp_path / "bin" / name).chmod(0o755)
    section = {
        "venv": str(tmp_path),
        "memory_gib_per_node": 1,
        "slurm": {"local_folder": str(tmp_path), "options": {"comment": "two words", "nice": 5}},
    }
    (tmp_path / "job.sh").write_text(slurm.render(job(tmp_path, section)))
    # sbatch prefers variables to the script; a step would refuse this one outside of its job.
    environment = {**os.environ, "SLURM_CPU_BIND": "cores"}
    told = subprocess.check_output(["sbatch", "--parsable", tmp_path / "job.sh"], text=True, env=environment)
    yield told.strip()
    subprocess.run(["scancel", told.strip()], check=False)


def wait_until(happened: Callable[[], bool], what: str) -> None:
    started = time.monotonic()
    while not happened():
        assert time.monotonic() - started < 90, what
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["cancel", "requeue"])
def test_a_job_starts_on_every_node_and_leaves_no_folder(tmp_path: Path, submitted: str, way: str) -> None:
    wait_until((tmp_path / "grpo").exists, "the run did not start")
    assert len(list(tmp_path.glob("ray.*"))) == 2
    asked = subprocess.check_output(["scontrol", "show", "job", submitted], text=True)
    assert "Comment=two words" in asked and "Nice=5" in asked
    if way == "cancel":
        subprocess.run(["scancel", submitted], check=True)
    else:
        subprocess.run(["scancel", "--batch", "--signal=USR1", submitted], check=True)
        # A job that was requeued waits for its begin time.
        wait_until(lambda: "PD" in subprocess.getoutput(f"squeue -h -o %t -j {submitted}"), "the job was not requeued")
        assert (tmp_path / "grpo").read_text().splitlines()[1] == "stopped"
    # After a cancel, Slurm may kill the step on another node before it has removed its folder.
    names = f"grpo-{submitted}-*-{'0' if way == 'cancel' else '*'}"
    wait_until(
        lambda: not [one for place in (Path("/tmp"), tmp_path) for one in place.glob(names)], "a folder of Ray stayed"
    )
