"""`grpo launch`: local runs, submissions to a running Ray cluster, and what --dry-run prints."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from launch_configs import job, settings
from typer.testing import CliRunner, Result

from grpo.cli.app import app
from grpo.config.launch import LaunchConfig
from launch import local, ray_job
from launch.job import Target
from launch.start import render

HERE = {"nodes": 1, "cpus_per_node": 2}
KUBERNETES = {"venv": None, "memory_gib_per_node": 8, "image": "x/y:1", "kuberay": {"storage_claim": "shared"}}
NEEDS: dict[str, dict[str, Any]] = {"kuberay": KUBERNETES}


def invoke(folder: Path, target: str, launch: dict[str, Any] | None, *arguments: str) -> Result:
    data = settings(folder, launch or {})
    if launch is None:
        del data["launch"]
    (folder / "config.yaml").write_text(yaml.safe_dump(data))
    (folder / "policy").mkdir(exist_ok=True)
    runner = CliRunner(env={"COLUMNS": "400", "TERM": "dumb"})
    with contextlib.chdir(folder):
        return runner.invoke(app, ["launch", target, str(folder / "config.yaml"), *arguments])


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("local", 'grpo train "$folder/config.yaml"'),
        ("slurm", "#SBATCH --cpus-per-task=2"),
        ("kuberay", "kind: RayJob"),
        ("ray", "ray job submit"),
    ],
)
def test_a_dry_run_prints_and_writes_nothing(tmp_path: Path, target: str, told: str) -> None:
    launch = {**HERE, **NEEDS.get(target, {})}
    result = invoke(tmp_path, target, launch, "--dry-run", "launch.environment.NCCL_DEBUG=WARN")
    assert result.exit_code == 0, result.output
    assert told in result.stdout and "NCCL_DEBUG" in result.stdout and "WARN" in result.stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("target", ["local", "slurm", "kuberay", "ray"])
def test_without_a_cluster_section_it_says_what_is_missing(tmp_path: Path, target: str) -> None:
    result = invoke(tmp_path, target, None, "--dry-run")
    assert result.exit_code == 2
    assert "no section `launch`" in result.stderr
    # The lines can be copied as they stand.
    copied = yaml.safe_load(result.stderr[result.stderr.index("\nlaunch:\n") :])
    assert LaunchConfig.model_validate(copied["launch"]).nodes == 1


def test_an_unknown_key_of_the_section_is_told_with_the_nearest(tmp_path: Path) -> None:
    result = invoke(tmp_path, "slurm", {"slurm": {"acount": "x"}}, "--dry-run")
    assert result.exit_code == 2 and "did you mean launch.slurm.account?" in result.stderr


def test_where_there_is_no_scheduler_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for target, program in (("slurm", "sbatch"), ("kuberay", "kubectl")):
        result = invoke(tmp_path, target, {**HERE, **NEEDS.get(target, {})})
        assert result.exit_code == 2 and f"no {program} on the PATH" in result.stderr


def test_a_local_run_gets_environment_and_secrets_and_its_status_is_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").write_text("hunter2\n")
    launch = {**HERE, "environment": {"A": "b c"}, "secrets": [{"name": "KEY", "file": str(tmp_path / "key")}]}
    started: list[Any] = []

    class Process:
        def __init__(self, program: list[str], env: dict[str, str]) -> None:
            started.append((program, env, Path(program[-1]).read_text()))

        def __enter__(self) -> Process:
            return self

        def __exit__(self, *error: object) -> None:
            return None

        def wait(self) -> int:
            return 3

    monkeypatch.setattr(subprocess, "Popen", Process)
    described = job(tmp_path, launch)
    assert local.run(described) == 3
    ((program, environment, config),) = started
    assert program[-2] == "train" and environment["A"] == "b c" and environment["KEY"] == "hunter2"
    assert yaml.safe_load(config)["run"]["resume"] == "auto" and "hunter2" not in config
    assert "hunter2" not in local.render(described)


STAND_IN = """#!/bin/bash
printf '%s\\n' "$@" > "$FOLDER/arguments"
for word in "$@"; do if [[ -d "$word" ]]; then cp "$word/config.yaml" "$FOLDER/sent.yaml"; fi; done
if [[ -f "${2:-}" ]]; then cp "$2" "$FOLDER/sent.yaml"; fi
echo "$A|${KEY:-}" > "$FOLDER/variables"
"""


@pytest.mark.parametrize(("target", "program"), [("local", "grpo"), ("ray", "ray")])
def test_the_printed_script_can_be_run_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: Target, program: str
) -> None:
    (tmp_path / "key").write_text("hunter2\n")
    secrets = [{"name": "KEY", "file": str(tmp_path / "key")}]
    described = job(tmp_path, {**HERE, "environment": {"A": "b c"}, "secrets": secrets}, train={"steps": 17})
    text = render(target, described)
    assert "hunter2" not in text
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / program).write_text(STAND_IN)
    (tmp_path / "bin" / program).chmod(0o755)
    (tmp_path / "temporary").mkdir()
    for name, value in {"FOLDER": tmp_path, "TMPDIR": tmp_path / "temporary", "A": "not set"}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    subprocess.run(["bash", "-c", text], check=True)
    assert yaml.safe_load((tmp_path / "sent.yaml").read_text())["train"]["steps"] == 17
    arguments = (tmp_path / "arguments").read_text().splitlines()
    if target == "local":
        assert arguments[0] == "train" and (tmp_path / "variables").read_text() == "b c|hunter2\n"
    else:
        variables = json.loads(arguments[arguments.index("--runtime-env-json") + 1])
        assert arguments[:2] == ["job", "submit"] and variables == {"env_vars": {"A": "b c"}}
    assert not list((tmp_path / "temporary").iterdir())


def test_a_local_run_has_one_machine(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="asks for 2 machines"):
        local.render(job(tmp_path, {}))


def test_a_secret_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_SET", raising=False)
    with pytest.raises(ValueError, match="NOT_SET, which is not set"):
        local.run(job(tmp_path, {**HERE, "secrets": [{"name": "KEY", "environment": "NOT_SET"}]}))


def test_a_submitted_command_reads_its_secrets_on_the_head_node(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("hunter2\n")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "grpo").write_text('#!/bin/bash\necho "$KEY|$*"\n')
    (tmp_path / "bin" / "grpo").chmod(0o755)
    launch = {"venv": str(tmp_path), "secrets": [{"name": "KEY", "file": str(tmp_path / "key")}]}
    command = ray_job.entrypoint(job(tmp_path, launch))
    assert "hunter2" not in command
    done = subprocess.run(shlex.split(command), capture_output=True, text=True, check=True)
    assert done.stdout == "hunter2|train config.yaml\n"


def test_a_submission_carries_no_secret_of_our_shell(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="KEY must name a file on the head node"):
        ray_job.render(job(tmp_path, {"secrets": [{"name": "KEY", "environment": "KEY"}]}))


def test_a_submission_carries_the_resolved_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray.job_submission

    sent: list[Any] = []

    class Client:
        def __init__(self, address: str) -> None:
            sent.append(address)

        def submit_job(self, *, entrypoint: str, runtime_env: dict[str, Any]) -> str:
            sent.append((entrypoint, (Path(runtime_env["working_dir"]) / "config.yaml").read_text(), runtime_env))
            return "raysubmit_1"

    monkeypatch.setattr(ray.job_submission, "JobSubmissionClient", Client)
    launch = {"ray": {"dashboard": "http://127.0.0.1:9999"}, "environment": {"NCCL_DEBUG": "WARN"}}
    assert "raysubmit_1" in ray_job.submit(job(tmp_path, launch, train={"steps": 17}))
    address, (entrypoint, config, environment) = sent
    assert address == "http://127.0.0.1:9999" and "exec grpo train config.yaml" in entrypoint
    assert yaml.safe_load(config)["train"]["steps"] == 17 and yaml.safe_load(config)["cluster"]["address"] == "auto"
    assert environment["env_vars"] == {"NCCL_DEBUG": "WARN"}
