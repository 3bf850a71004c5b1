"""The script on a real Slurm of two nodes or more, where one answers; `ray` and `grpo` are stand-ins."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from launch_configs import idle_nodes, job

from launch import slurm

RAY = """#!/bin/bash
printf '%s\\n' "$*" >> "FOLDER/ray.$SLURMD_NODENAME"
echo $$ > "FOLDER/pid.$SLURMD_NODENAME"
trap 'exit 0' TERM
while :; do sleep 0.2; done
"""
GRPO = """#!/bin/bash
printf '%s\\n' "$*" >> FOLDER/grpo
trap 'echo stopped >> FOLDER/grpo; exit 0' TERM
while [[ ! -e FOLDER/end ]]; do sleep 0.2; done
"""


@pytest.fixture
def submitted(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The number of a job that was submitted from its printed script, in a folder that all nodes reach."""
    if len(idle_nodes()) < 2:
        pytest.skip("no Slurm with two idle nodes answers here")
    (tmp_path / "bin").mkdir()
    way = request.node.callspec.params["way"]
    ray = RAY.replace("trap 'exit 0' TERM", "trap '' TERM") if way.endswith("does not end") else RAY
    for name, text in {"ray": ray, "grpo": GRPO, "python": "#!/bin/bash\nexit 0\n"}.items():
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


def folders(folder: Path, number: str) -> list[Path]:
    """Ray's folders of a job, on the nodes' disk and in `launch.slurm.local_folder`."""
    return [one for place in (Path("/tmp"), folder) for one in place.glob(f"grpo-{number}-*")]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["end", "cancel", "cancel, and Ray does not end", "requeue", "a node is lost"])
def test_a_job_starts_on_every_node_and_leaves_no_folder(tmp_path: Path, submitted: str, way: str) -> None:
    wait_until((tmp_path / "grpo").exists, "the run did not start")
    # The stand-in for `python` does not wait until Ray has started on both nodes.
    wait_until(lambda: len([*tmp_path.glob("pid.*")]) == 2, "Ray did not start on both nodes")
    told = [path.read_text() for path in tmp_path.glob("ray.*")]
    assert len(told) == 2 and all(f"--memory={2**30 * 7 // 10} " in one for one in told)
    assert len(folders(tmp_path, submitted)) == 4
    asked = subprocess.check_output(["scontrol", "show", "job", submitted], text=True)
    assert "Comment=two words" in asked and "Nice=5" in asked
    if way == "end":
        (tmp_path / "end").touch()
    elif way.startswith("cancel"):
        subprocess.run(["scancel", submitted], check=True)
    else:
        if way == "a node is lost":
            (worker,) = (path for path in tmp_path.glob("ray.*") if "--head" not in path.read_text())
            os.kill(int((tmp_path / f"pid{worker.suffix}").read_text()), signal.SIGKILL)
        else:
            subprocess.run(["scancel", "--batch", "--signal=USR1", submitted], check=True)
        # A job that was requeued waits for its begin time.
        wait_until(lambda: "PD" in subprocess.getoutput(f"squeue -h -o %t -j {submitted}"), "the job was not requeued")
        assert (tmp_path / "grpo").read_text().splitlines()[1] == "stopped"
    # After a loss, Ray's logs stay on the nodes. Spilled objects, which may be large, never stay.
    logs = folders(tmp_path, submitted)[:2] if way == "a node is lost" else []
    try:
        wait_until(lambda: folders(tmp_path, submitted) == logs, "a folder of Ray stayed")
        assert all((folder / "kept").exists() and folder.parent == Path("/tmp") for folder in logs)
    finally:
        for folder in logs:
            shutil.rmtree(folder)
