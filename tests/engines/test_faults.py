"""Processes are really killed and stopped, with the real engines: what a run makes of it."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from setups_for_tests import CPU, learner_setups, random_batch

from grpo.cluster import processes as ray_processes
from grpo.cluster.activity import driving
from grpo.cluster.failures import ProcessDied, Stalled
from grpo.config import WatchdogConfig as Settings
from grpo.report import run_files
from grpo.report.ledger import read_ledger
from grpo.run import checkpoint
from grpo.run.checkpoint import NoRoom
from grpo.run.watchdog import Watchdog
from grpo.types import Phase

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests" / "bench"))
from soak import family, left_of, of_kind, problems_of, start  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900)]

STEPS = 8
WAIT_S = 400


def last_step(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return int(json.loads(lines[-1])["step"]) if lines else -1


def wait_until_step(step: int, folder: Path, driver: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + WAIT_S
    while last_step(folder) < step:
        assert driver.poll() is None, log.read_text()[-4000:]
        assert time.monotonic() < until, f"no step {step} in {WAIT_S} s: {log.read_text()[-4000:]}"
        time.sleep(0.01)


def test_a_run_outlives_the_death_of_a_rank_a_verifier_and_the_driver(tied_policy: str, tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    overrides = [
        f"policy.path={tied_policy}",
        f"run.folder={folder}",
        f"train.steps={STEPS}",
        "train.checkpoint_every=2",
        "rollout.prompts_per_step=8",
        "rollout.max_completion_tokens=24",
        "generator.replicas=1",
        "evaluation=null",
        "report.trackers=[]",
    ]
    driver = start("configs/quickstart.yaml", overrides, log)
    wait_until_step(3, folder, driver, log)
    of_kind("verifier", driver.pid)[-1].kill()
    rank = of_kind("learner", driver.pid)[0]
    rank.kill()
    # The display of the next start tells it; the folder's log already has.
    wait_until_step(4, folder, driver, log)
    told = [line for line in log.read_text().splitlines() if "going on from" in line]
    assert len(told) == 1 and f"(pid {rank.pid} on 127.0.0.1) died: " in told[0], log.read_text()[-4000:]
    assert told[0].startswith("learner rank ") and "the checkpoint of step 2 (restart 1" in told[0]
    assert told[0] in (folder / run_files.FAULTS).read_text()

    # Whatever it is just doing.
    time.sleep(random.Random(os.getpid()).uniform(0, 0.5))
    relatives = family(driver.pid)
    driver.kill()
    driver.wait()
    assert len(relatives) > 4 and left_of(relatives) == []
    with log.open("w"):
        pass
    driver = start("configs/quickstart.yaml", [*overrides, "resume=auto"], log)
    assert driver.wait(WAIT_S) == 0, log.read_text()[-4000:]
    assert last_step(folder) == STEPS
    trained = read_ledger(folder)
    assert [one.step for one in trained] == [step for step in range(1, STEPS + 1) for _ in range(8)]
    assert problems_of(folder) == []
    assert all(one.versions == (one.step - 1, one.step - 1) for one in trained), "each step samples from the one before"


def test_supervised_fine_tuning_outlives_the_death_of_a_rank(tmp_path: Path) -> None:
    folder, log = tmp_path / "sft", tmp_path / "log"
    overrides = [
        f"run.folder={folder}",
        "policy.new={hidden_size: 32, heads: 2, key_value_heads: 1, intermediate_size: 64}",
        "learner={ranks: 1, warmup_steps: 5}",
        "data.options.count=500",
        "sft={steps: 400, batch_size: 8, max_tokens: 128, checkpoint_every: 5}",
        "report.trackers=[]",
    ]
    driver = start("configs/quickstart_sft.yaml", overrides, log, job="sft")
    wait_until_step(6, folder, driver, log)
    rank = of_kind("learner", driver.pid)[0]
    rank.kill()
    assert driver.wait(WAIT_S) == 0, log.read_text()[-4000:]
    (told,) = [line for line in (folder / run_files.FAULTS).read_text().splitlines() if "going on from" in line]
    assert re.search(
        rf"learner rank 0 \(pid {rank.pid} on 127.0.0.1\) died: .*the checkpoint of step \d+ \(restart 1", told
    )
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 401)) and (folder / "policy" / "config.json").is_file()


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_two_ranks_of_which_one_stops_answering(tied_policy: str, tmp_path: Path, ray_running: None, how: str) -> None:
    """Of a rank that is stopped the watchdog finds out; a rank that is killed is told at once, by its name."""
    from grpo.cluster.claim import Plan
    from grpo.cluster.cluster import Cluster

    batch = random_batch(ranks=2)
    with Cluster(CPU, Plan(learner_ranks=2, learner_threads=1)) as cluster:
        learner = cluster.start_learner(learner_setups(tied_policy, ranks=2))()
        learner.step(batch)
        (rank,) = [one for one in ray_processes.actors_of_job() if one.alive and one.name == "learner rank 1"]
        os.kill(rank.pid, signal.SIGSTOP if how == "stopped" else signal.SIGKILL)
        if how == "killed":
            with pytest.raises(
                ProcessDied, match=rf"learner rank 1 \(pid {rank.pid} .*the run waited for a learner step"
            ):
                learner.step(batch)
            return
        settings = Settings(stall_s=2.0, action="restart")
        with (
            driving() as activity,
            pytest.raises(
                Stalled, match=rf"phase 'learn': waiting for a learner step; .*learner rank 1 \(pid {rank.pid}"
            ),
            Watchdog(settings, tmp_path, activity, print, start_s=1.0),
        ):
            activity.time(Phase.LEARN)
            learner.step(batch)
        _, alive = psutil.wait_procs([psutil.Process(rank.pid)] if psutil.pid_exists(rank.pid) else [], timeout=20)
        assert not alive, "a process that is stopped would outlive its run"
    (file,) = (tmp_path / run_files.STALLS).glob("*_learn.txt")
    _, *parts = file.read_text().split("\n=== ")
    names = [part.partition(" (pid")[0] for part in parts]
    assert set(names) == {"learner rank 0", "learner rank 1", "driver"}
    stacks = dict(zip(names, parts, strict=True))
    # The other rank waits for it in the midst of its step; the driver waits for both.
    assert "LearnerRank.step (grpo/learner/rank.py" in stacks["learner rank 0"], stacks["learner rank 0"]
    assert "is stopped (SIGSTOP" in stacks["learner rank 1"]
    assert "in wait_for" in stacks["driver"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk that holds one checkpoint of the policy below, and the half of another."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"mounting a small disk is not allowed here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_that_fills_while_ranks_write_keeps_the_older_checkpoint(
    tied_policy: str, small_disk: Path, ray_running: None
) -> None:
    from grpo.cluster.claim import Plan
    from grpo.cluster.cluster import Cluster

    with Cluster(CPU, Plan(learner_ranks=1, learner_threads=1)) as cluster:
        learner = cluster.start_learner(learner_setups(tied_policy))()
        older = checkpoint.write(small_disk, 1, learner.save, {"step": 1}, keep=1)
        size = sum(path.stat().st_size for path in older.folder.rglob("*") if path.is_file())

        def save_beside_another_program(folder: str) -> None:
            # Room for the checkpoint was there when it was begun.
            (small_disk / "other").write_bytes(b"x" * ((2 << 20) - size - size // 2))
            learner.save(folder)

        with pytest.raises(NoRoom, match=r"step 2 was given up: .*the checkpoint of step 1 is whole and stays"):
            checkpoint.write(small_disk, 2, save_beside_another_program, {"step": 2}, keep=1)
        assert checkpoint.latest(small_disk) == older
        learner.load(str(older.folder))
        learner.step(random_batch(ranks=1))


def on_two_nodes(program: str, **values: Any) -> subprocess.CompletedProcess[str]:
    """Run a program that starts two Ray nodes."""
    paths = [str(ROOT), str(ROOT / "tests" / "support")]
    program = program.format(paths=paths, config=str(ROOT / "configs" / "quickstart.yaml"), **values)
    # A folder of its own, with a short name for the sockets in it, as in test_verifier_nodes.
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as short:
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(paths),
            "RAY_TMPDIR": short,
            "RAY_worker_niceness": "0",
        }
        return subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=600, check=False
        )


LOST_NODE = """
import contextlib, sys, time
import psutil
import ray
from pathlib import Path
from ray.cluster_utils import Cluster as Nodes

sys.path[:0] = {paths!r}
from fake_run import silent_progress
from setups_for_tests import learner_setups, random_batch
from grpo.run.training import checkpoint
from grpo.cluster.cluster import Cluster, wait_for_nodes
from grpo.cluster.claim import Plan
from grpo.config import TrainConfig
from grpo.config.file import load
from grpo.run.recovery import with_recovery

folder, policy = Path({folder!r}), {policy!r}
nodes = Nodes(initialize_head=True, head_node_args=dict(num_cpus=1, include_dashboard=False))
second = [nodes.add_node(num_cpus=1, resources=dict(learner_node=9))]
overrides = [f"policy.path={{policy}}", f"run.folder={{folder}}", f"cluster.address={{nodes.address}}"]
settings = load(TrainConfig, {config!r}, [*overrides, "learner.ranks=1", "generator.replicas=1"])
starts, steps = [], []


def open_display():
    # Ray's servers end with the thread that started them, so it is this one that brings the node back.
    if starts and len(second) == 1:
        second.append(nodes.add_node(num_cpus=1, resources=dict(learner_node=9)))
    return silent_progress()


def job(settings, progress):
    folder.mkdir(exist_ok=True)
    found = checkpoint.latest(folder)
    starts.append(found.step if found else None)
    with Cluster(settings.cluster, Plan(learner_ranks=1, learner_threads=1)) as cluster:
        learner = cluster.start_learner(learner_setups(policy))()
        if found:
            learner.load(str(found.folder.absolute()))
        for step in range(found.step + 1 if found else 1, 5):
            if step == 3 and len(starts) == 1:
                ours = psutil.Process().children(recursive=True)
                (rank,) = [one for one in ours if one.cmdline()[:1] == ["ray::LearnerActor"]]
                nodes.remove_node(second[0], allow_graceful=False)
                # Its processes would outlive Ray's server there for a while, and may be heard meanwhile.
                with contextlib.suppress(psutil.NoSuchProcess):
                    rank.kill()
            steps.append((step, round(learner.step(random_batch(ranks=1, seed=step))["loss"], 6)))
            checkpoint.write(folder, step, learner.save, dict(step=step), keep=1)
    return steps


try:
    with_recovery(settings, open_display, job)
    assert starts == [None, 2] and [step for step, _ in steps] == [1, 2, 3, 4], (starts, steps)
    nodes.remove_node(second[-1], allow_graceful=False)
    short = settings.cluster.model_copy(update=dict(start_deadline_s=1.0))
    # Ray itself notices the loss only after some seconds.
    for _ in range(60):
        try:
            wait_for_nodes(short, Plan(1, 1, 1, 1))
        except TimeoutError as late:
            print("LATE", late)
            break
        time.sleep(1)
    print("FAULTS", (folder / "faults.log").read_text())
finally:
    ray.shutdown()
    nodes.shutdown()
"""


def test_a_run_goes_on_when_a_lost_node_is_back_and_says_what_is_missing_where_it_is_not(
    tied_policy: str, tmp_path: Path
) -> None:
    done = on_two_nodes(LOST_NODE, folder=str(tmp_path / "run"), policy=tied_policy)
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout[-2000:]
    assert "; going on from the checkpoint of step 2 (restart 1" in done.stdout, done.stdout
    assert "LATE the job needs 2 CPUs" in done.stdout and "the cluster has 1" in done.stdout, done.stdout


SLOW_NODE = """
import os, signal, sys, threading, time
import ray
from pathlib import Path
from ray.cluster_utils import Cluster as Nodes

sys.path[:0] = {paths!r}
from fake_run import silent_progress
from grpo.cluster import processes as ray_processes
from grpo.cluster.activity import driving
from grpo.config import TrainConfig, WatchdogConfig as Settings
from grpo.config.file import load
from grpo.run.recovery import with_recovery
from grpo.train_loop import train
from grpo.run.watchdog import Watchdog
from grpo.types import Phase

folder = Path({folder!r})
nodes = Nodes(initialize_head=True, head_node_args=dict(num_cpus=2, include_dashboard=False))
nodes.add_node(num_cpus=1)
overrides = [*{overrides!r}, f"cluster.address={{nodes.address}}"]
settings = load(TrainConfig, {config!r}, overrides)
over = threading.Event()


def throttle():
    # Of every 100 ms the engine of the second node runs 20.
    found = []
    while not found and not over.wait(0.2):
        here = ray.is_initialized() and ray.get_runtime_context().get_node_id()
        found = [one for one in ray_processes.actors_of_job() if here and one.alive and one.node != here]
    print("THROTTLED", found[0].description, flush=True)
    while not over.wait(0.02):
        os.kill(found[0].pid, signal.SIGSTOP)
        time.sleep(0.08)
        os.kill(found[0].pid, signal.SIGCONT)


class Stuck:
    def __repr__(self):
        return "stuck"

    def stand_still(self):
        time.sleep(600)


try:
    throttling = threading.Thread(target=throttle)
    throttling.start()
    try:
        with_recovery(settings, silent_progress, train)
    finally:
        over.set()
        throttling.join()
    print("FAULTS", (folder / "faults.log").read_text(), flush=True)

    # What the watchdog sees of an actor on another node.
    ray.init(address=nodes.address, logging_level="ERROR", log_to_driver=False)
    there = next(node["NodeID"] for node in ray.nodes() if node["NodeID"] != ray.get_runtime_context().get_node_id())
    where = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(there, soft=False)
    actor = ray.remote(Stuck).options(num_cpus=0, scheduling_strategy=where).remote()
    waited = actor.stand_still.remote()
    ray.wait([waited], timeout=5)
    told = []
    settings = Settings(stall_s=1.0, action="warn")
    with driving() as activity, Watchdog(settings, folder, activity, told.append, start_s=1.0):
        activity.time(Phase.LEARN)
        with activity.waiting("an answer", [waited]):
            until = time.monotonic() + 60
            while not told and time.monotonic() < until:
                time.sleep(0.1)
    print("TOLD", told, flush=True)
    (file,) = (folder / "stalls").glob("*_learn.txt")
    print("STACKS", file.read_text(), flush=True)
finally:
    over.set()
    ray.shutdown()
    nodes.shutdown()
"""


def test_a_slow_node_is_waited_for_and_named_and_the_watchdog_reads_stacks_there(
    tied_policy: str, tmp_path: Path
) -> None:
    """Of two generators the one on the second node is really slowed down, by stopping it for most of the time."""
    folder = tmp_path / "run"
    overrides = [
        f"policy.path={tied_policy}",
        f"run.folder={folder}",
        "train.steps=6",
        "rollout.prompts_per_step=8",
        "rollout.max_completion_tokens=24",
        "learner.ranks=1",
        "generator.replicas=2",
        "evaluation=null",
        "report.trackers=[]",
    ]
    done = on_two_nodes(SLOW_NODE, folder=str(folder), overrides=overrides)
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout[-2000:]
    slow = re.search(r"THROTTLED generator (\d) \(pid (\d+)", done.stdout)
    assert slow, done.stdout
    (line,) = [one for one in done.stdout.splitlines() if " is slow: " in one]
    named = re.search(r"generator (\d) \(pid (\d+) on [\d.]+\) is slow: .* ([\d.]+) times fewer than", line)
    assert named and named.groups()[:2] == slow.groups(), (line, slow)
    assert float(named[3]) >= 2
    # Nothing was lost or used twice, and nobody was taken for dead.
    assert problems_of(folder) == [] and "restarted" not in done.stdout
    trained = read_ledger(folder)
    assert [one.step for one in trained] == [step for step in range(1, 7) for _ in range(8)]
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["throughput/slowest_generator"] >= 2
    stacks = done.stdout.partition("STACKS")[2]
    assert "no answer from stuck (pid" in done.stdout.partition("TOLD")[2], done.stdout
    of_actor = stacks.partition("=== stuck (pid")[2].partition("===")[0]
    assert "stand_still" in of_actor and "no answer from" not in of_actor, stacks
