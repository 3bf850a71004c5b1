"""The paths of a job: absolute in its configuration, and refused if the nodes cannot reach them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from launch_configs import job

from launch import kuberay, ray_job, slurm
from launch.job import LaunchJob

POD = {"image": "x/y:1", "memory_gib_per_node": 64, "venv": None, "kuberay": {"storage_claim": "shared"}}
ELSEWHERE = [(kuberay.render, POD), (ray_job.render, {})]
RELATIVE: dict[str, Any] = {
    "run": {"folder": "runs/first"},
    "policy": {"path": "policies/small"},
    "data": {"path": ["rows/a.jsonl", "./rows/../rows/b.jsonl"]},
    "verifiers": [{"name": "mine", "use": "my_verifiers.py:number"}, {"name": "math", "use": "math"}],
    "evaluation": {"data": {"path": "rows/held_out.jsonl"}},
    "algorithm": {"advantage": "my_advantage.py:mine"},
    "callbacks": {"step": ["calls.py:step"]},
}


def write(folder: Path) -> None:
    for name in ("rows", "policies/small"):
        (folder / name).mkdir(parents=True)
    for name in (
        "rows/a.jsonl",
        "rows/b.jsonl",
        "rows/held_out.jsonl",
        "my_verifiers.py",
        "my_advantage.py",
        "calls.py",
    ):
        (folder / name).touch()


def test_the_configuration_of_a_job_has_absolute_paths(tmp_path: Path) -> None:
    write(tmp_path)
    described = job(tmp_path, {}, **RELATIVE)
    slurm.render(described)
    written = yaml.safe_load(described.snapshot(None))
    assert written["run"]["folder"] == f"{tmp_path}/runs/first"
    assert written["policy"]["path"] == f"{tmp_path}/policies/small"
    assert written["data"]["path"] == [f"{tmp_path}/rows/a.jsonl", f"{tmp_path}/rows/b.jsonl"]
    assert written["evaluation"]["data"]["path"] == f"{tmp_path}/rows/held_out.jsonl"
    assert [one["use"] for one in written["verifiers"]] == [f"{tmp_path}/my_verifiers.py:number", "math"]
    assert written["algorithm"]["advantage"] == f"{tmp_path}/my_advantage.py:mine"
    assert written["callbacks"]["step"] == [f"{tmp_path}/calls.py:step"]


@pytest.mark.parametrize("name", ["Qwen/Qwen3-1.7B", "gpt2"])
def test_a_name_on_the_hub_is_no_path(tmp_path: Path, name: str) -> None:
    described = job(tmp_path, {}, policy={"path": name}, data={"hub": "openai/gsm8k", "subset": "main"})
    slurm.render(described)
    assert yaml.safe_load(described.snapshot(None))["policy"]["path"] == name


@pytest.mark.parametrize(
    ("missing", "told"),
    [
        ("rows/b.jsonl", "data.path.1=./rows/../rows/b.jsonl"),
        ("rows/held_out.jsonl", "evaluation.data.path=rows/held_out.jsonl"),
        ("my_verifiers.py", "verifiers.0.use=my_verifiers.py:number"),
        ("my_advantage.py", "algorithm.advantage=my_advantage.py:mine"),
        ("policies/small", "policy.path=policies/small"),
    ],
)
def test_slurm_refuses_a_file_that_does_not_exist(tmp_path: Path, missing: str, told: str) -> None:
    write(tmp_path)
    lost = tmp_path / missing
    lost.rmdir() if lost.is_dir() else lost.unlink()
    with pytest.raises(ValueError, match="does not exist") as caught:
        slurm.render(job(tmp_path, {}, **RELATIVE))
    assert f"{told}: {lost}" in str(caught.value) and str(caught.value).count("does not exist") == 1


def test_one_refusal_names_every_path_outside_the_storage(tmp_path: Path) -> None:
    write(tmp_path)
    storage = tmp_path / "storage"
    sections = {**RELATIVE, "run": {"folder": str(storage / "run")}, "policy": {"path": "gpt2"}}
    with pytest.raises(ValueError) as caught:
        slurm.render(job(tmp_path, {"storage": str(storage)}, **sections))
    keys = ("data.path.0", "data.path.1", "verifiers.0.use", "evaluation.data.path", "algorithm.advantage")
    assert [key for key in keys if f"- {key}=" not in str(caught.value)] == []
    assert f"the job starts in {tmp_path}" in str(caught.value) and "launch.shared_folders" in str(caught.value)
    slurm.render(job(tmp_path, {"storage": str(storage), "shared_folders": [str(tmp_path)]}, **sections))


@pytest.mark.parametrize(("render", "launch"), ELSEWHERE)
def test_a_job_that_starts_elsewhere_needs_its_files_on_the_storage(
    tmp_path: Path, render: Callable[[LaunchJob], str], launch: dict[str, Any]
) -> None:
    storage = tmp_path / "shared"
    described = job(tmp_path, {**launch, "storage": str(storage)}, **{**RELATIVE, "policy": {"path": "gpt2"}})
    with pytest.raises(ValueError) as caught:
        render(described)
    for told in (f"data.path.0=rows/a.jsonl is {tmp_path}/rows/a.jsonl", "verifiers.0.use=my_verifiers.py:number is"):
        assert told in str(caught.value)
    # A laptop does not see the storage of the cluster, so nothing there is looked for.
    there = {"run": {"folder": "/storage/run"}, "policy": {"path": "/storage/policy"}}
    render(job(tmp_path, {**launch, "storage": "/storage"}, **there, data={"path": "/storage/rows.jsonl"}))


@pytest.mark.parametrize("render", [kuberay.render, ray_job.render])
def test_modules_and_options_of_this_folder_are_not_there(tmp_path: Path, render: Callable[[LaunchJob], str]) -> None:
    (tmp_path / "my_rewards.py").touch()
    (tmp_path / "rubric.txt").touch()
    verifiers = [
        {"name": "mine", "use": "my_rewards:number", "options": {"rubric": "rubric.txt", "word": "rubric"}},
        {"name": "theirs", "use": "other_package:number"},
    ]
    with pytest.raises(ValueError) as caught:
        render(job(tmp_path, POD, verifiers=verifiers))
    told = str(caught.value)
    assert f"verifiers.0.use=my_rewards:number names a module in {tmp_path}" in told
    assert f"verifiers.0.options.rubric=rubric.txt names a file in {tmp_path}" in told
    assert "theirs" not in told and "options.word" not in told
    # A Slurm job starts in this folder, so both work there.
    slurm.render(job(tmp_path, {}, verifiers=verifiers))


def test_without_storage_a_submission_takes_absolute_paths_only(tmp_path: Path) -> None:
    here = {"nodes": 1, "cpus_per_node": 2, "storage": None}
    with pytest.raises(ValueError, match=r"data\.path=rows\.jsonl starts from"):
        ray_job.render(job(tmp_path, here, data={"path": "rows.jsonl"}))
    ray_job.render(job(tmp_path, here, data={"path": "/data/rows.jsonl"}))


def test_slurm_refuses_an_environment_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"launch\.venv=/no/venv has no bin/grpo"):
        slurm.render(job(tmp_path, {"venv": "/no/venv"}))
