"""One Ray node of a Slurm job: the memory that Ray gets, and the folder that goes or stays."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_job import GRPO, RAY, log_of, remove_ray_folders, submitted, wait_for
from launch_configs import fake_slurm, job

from launch import slurm

pytestmark = pytest.mark.usefixtures(remove_ray_folders.__name__)
NODE = slurm.TEMPLATES / "ray_node.sh"
EPILOG = slurm.TEMPLATES / "remove_ray_folder.sh"
GIB = 2**30
RAY_THAT_STAYS = 'printf "%s\\n" "$@" > "$0/asked"; trap "exit 0" TERM; touch "$0/up"; while :; do sleep 0.05; done'


class Node:
    """One Ray node; its Ray writes its options into `asked` and stays until it is asked to end."""

    def __init__(self, folder: Path, name: str, *, spill: Path | None = None, memory: int = GIB, cpus: int = 0) -> None:
        self.here, self.keep = folder / f"test-{name}", folder / "keep"
        self.here.mkdir()
        self.folder, self.spill = Path(f"/tmp/grpo-{os.getpid()}-{folder.parent.name}{folder.name}-{name}"), spill
        arguments = [str(self.folder), str(spill or ""), str(memory), str(cpus), str(self.keep)]
        ray = ["bash", "-c", RAY_THAT_STAYS, str(self.here)]
        self.process = subprocess.Popen(["bash", str(NODE), *arguments, *ray], process_group=0)
        wait_for(self.here / "up")

    def option(self, name: str) -> int:
        (value,) = re.findall(rf"^--{name}=(\d+)$", (self.here / "asked").read_text(), re.MULTILINE)
        return int(value)

    def end(self, number: int) -> None:
        """Send a signal to the whole step, as Slurm does, and run the epilog."""
        os.killpg(self.process.pid, number)
        self.process.wait(20)
        self.epilog()

    def epilog(self) -> None:
        variables = {"GRPO_RAY_FOLDER": str(self.folder), "GRPO_SPILL_FOLDER": str(self.spill or "")}
        subprocess.run(["bash", str(EPILOG)], env={**os.environ, **variables}, check=True)


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    started: list[Node] = []
    yield started
    for node in started:
        if node.process.poll() is None:
            os.killpg(node.process.pid, signal.SIGKILL)
            node.process.wait()


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("keep", [False, True])
def test_a_node_that_is_stopped_leaves_only_what_is_wanted(
    tmp_path: Path, nodes: list[Node], number: int, keep: bool
) -> None:
    node = Node(tmp_path, "0", spill=tmp_path / "spill")
    nodes.append(node)
    if keep:
        node.keep.touch()
    assert node.folder.stat().st_mode & 0o777 == node.spill.stat().st_mode & 0o777 == 0o700  # type: ignore[union-attr]
    node.end(number)
    # Slurm kills a step whose job is cancelled: nobody will read the logs. Spilled objects serve only a live Ray.
    kept = keep and number != signal.SIGKILL
    assert (node.folder.exists(), (tmp_path / "spill").exists()) == (kept, False)


def test_the_logs_of_a_ray_that_ended_by_itself_stay(tmp_path: Path, nodes: list[Node]) -> None:
    node = Node(tmp_path, "0")
    nodes.append(node)
    (ray,) = subprocess.check_output(["pgrep", "-P", str(node.process.pid)], text=True).split()
    os.kill(int(ray), signal.SIGKILL)
    assert node.process.wait(20) == 137
    node.epilog()
    assert (node.folder / "kept").exists()


def test_a_node_removes_the_folders_of_jobs_that_no_longer_exist(tmp_path: Path, nodes: list[Node]) -> None:
    gone = Node(tmp_path, "0", spill=tmp_path / "spill")
    nodes.append(gone)
    # The machine went down: no trap and no epilog ran.
    os.killpg(gone.process.pid, signal.SIGKILL)
    gone.process.wait()
    failed = Node(tmp_path, "1")
    nodes.append(failed)
    failed.keep.touch()
    failed.end(signal.SIGUSR1)
    runs = Node(tmp_path, "2")
    nodes.append(runs)
    assert not gone.folder.exists() and not (tmp_path / "spill").exists()
    nodes.append(Node(tmp_path, "3"))
    assert runs.folder.exists(), "another job runs there"
    assert failed.folder.exists(), "the logs of a job that failed"


def test_ray_gets_the_memory_of_the_job_and_not_of_the_machine(tmp_path: Path, nodes: list[Node]) -> None:
    asked = Node(tmp_path, "0", memory=GIB)
    nodes.append(asked)
    assert asked.option("memory") == GIB * 7 // 10
    assert 0 < asked.option("object-store-memory") <= GIB * 3 // 10


def test_where_slurm_does_not_divide_memory_ray_gets_a_part_for_each_cpu(tmp_path: Path, nodes: list[Node]) -> None:
    if (all_cpus := os.cpu_count() or 1) < 2:
        pytest.skip("this machine has a single CPU")
    nodes += [Node(tmp_path, "0", memory=0), Node(tmp_path, "1", memory=0, cpus=1)]
    whole, part = (node.option("memory") for node in nodes)
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 7 // 10
    assert 0 < whole <= machine
    assert part == pytest.approx(min(machine / all_cpus, whole), rel=0.01)
    # More than the machine has, for example from a wrong slurm.conf.
    nodes.append(Node(tmp_path, "2", memory=2**50))
    assert nodes[-1].option("memory") == whole


def test_a_job_reads_from_slurm_what_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    details = "   Partition=x MinMemoryNode=0\n     Nodes=node-a CPU_IDs=0 Mem=1024 GRES=\n"
    details += "     Nodes=node-b CPU_IDs=0-3 Mem=512 GRES=\n"
    fake = fake_slurm(
        tmp_path / "slurm", "node-a node-b", programs={"ray": RAY, "grpo": GRPO, "python": "#!/bin/bash\nexit 0\n"}
    )
    (fake.folder / "details").write_text(details)
    for name in ("PATH", "FAKE_SLURM"):
        monkeypatch.setenv(name, fake.environment[name])
    slurm.submit(job(tmp_path, {"venv": str(fake.folder)}))
    ends(tmp_path, fake)
    for node, mebibytes in (("node-a", 1024), ("node-b", 512)):
        assert f"--memory={mebibytes * 2**20 * 7 // 10} " in (fake.folder / f"ray.{node}").read_text()


def test_a_job_that_gives_its_memory_gets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = submitted(tmp_path, monkeypatch, {"memory_gib_per_node": 1, "slurm": {"local_folder": str(tmp_path)}})
    ends(tmp_path, fake)
    called = (fake.folder / "ray.node-b").read_text()
    assert f"--memory={GIB * 7 // 10} " in called and f"--object-spilling-directory={tmp_path}/grpo-" in called
    assert not list(tmp_path.glob("grpo-*-0"))


def ends(folder: Path, fake: Any) -> None:
    wait_for(fake.folder / "running")
    (fake.folder / "end").write_text("0")
    assert fake.wait(60) == [0], log_of(folder)
    assert not list(Path("/tmp").glob(f"grpo-{fake.job}-*"))
