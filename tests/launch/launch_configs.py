"""Configurations to launch, and the stand-in for Slurm."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from grpo.config import TrainConfig
from launch.job import LaunchJob

ROOT = Path(__file__).resolve().parents[2]
FAKES = Path(__file__).parent / "fake_slurm"


def settings(folder: Path, launch: Mapping[str, Any], **sections: Any) -> dict[str, Any]:
    """A training configuration whose run lies in `folder`."""
    return {
        "run": {"folder": str(folder / "run")},
        "policy": {"path": str(folder / "policy")},
        "data": {"generator": "grpo.data.arithmetic:questions", "options": {"count": 64}},
        "verifiers": [{"name": "answer", "use": "numeric"}],
        "train": {"steps": 3},
        "launch": {
            "nodes": 2,
            "gpus_per_node": 0,
            "cpus_per_node": 1,
            "storage": str(folder),
            "venv": sys.prefix,
            **launch,
        },
        **sections,
    }


def job(folder: Path, launch: Mapping[str, Any], **sections: Any) -> LaunchJob:
    (folder / "policy").mkdir(exist_ok=True)
    return LaunchJob(TrainConfig.model_validate(settings(folder, launch, **sections)), folder)


def idle_nodes() -> set[str]:
    """The idle nodes of a real Slurm that answers here."""
    if shutil.which("sbatch") is None:
        return set()
    told = subprocess.run(["sinfo", "-hN", "-o", "%N", "-t", "idle"], capture_output=True, text=True, check=False)
    return set(told.stdout.split()) if told.returncode == 0 else set()


@dataclass(frozen=True)
class Slurm:
    """The stand-in: its folder, and the environment in which its commands are found."""

    folder: Path
    environment: dict[str, str]
    # A process runs one test at a time; what tests beside it do with their jobs is theirs.
    job: str = field(default_factory=lambda: str(os.getpid()))

    def signal_batch(self, number: int) -> None:
        """What Slurm sends with `--signal=B:`: to the batch shell alone."""
        os.kill(int((self.folder / "batch.pid").read_text()), number)

    def wait(self, deadline_s: float) -> list[int]:
        """Wait for the job's last attempt; the exit status of each."""
        started = time.monotonic()
        while not (self.folder / "done").exists():
            assert time.monotonic() - started < deadline_s, f"the job did not end within {deadline_s} s"
            time.sleep(0.1)
        return [int(line) for line in (self.folder / "attempts").read_text().splitlines()]

    def processes(self) -> list[psutil.Process]:
        """Every process that the job has on its nodes; Slurm's own is none of them."""
        ours = {os.getpid(), int((self.folder / "controller.pid").read_text())}
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("FAKE_SLURM") == str(self.folder) and process.pid not in ours:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
        return found


def fake_slurm(folder: Path, *components: str, programs: Mapping[str, str] | None = None) -> Slurm:
    """A Slurm whose nodes are this machine; `programs` stand in for others on the PATH (name -> text)."""
    binaries = folder / "bin"
    shutil.copytree(FAKES, binaries)
    for name, text in (programs or {}).items():
        (binaries / name).write_text(text)
        (binaries / name).chmod(0o755)
    (folder / "nodes").write_text("\n".join(components))
    path = f"{binaries}:{os.environ['PATH']}"
    # A Ray that other tests have started in this process has left its variables.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    slurm = Slurm(folder, {**inherited, "PATH": path, "FAKE_SLURM": str(folder), "COLUMNS": "200"})
    (folder / "job").write_text(slurm.job)
    return slurm
