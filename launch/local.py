"""Run a job on this machine, with the same command, environment and secrets as other launchers.

The run starts Ray on loopback.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from pathlib import Path

from grpo.config.launch import SecretConfig
from grpo.package_finder import python_command
from launch.job import LaunchJob, capacity_problems, here_document, refuse, secret_file, secret_problems
from launch.keys import key_problems


def render(job: LaunchJob) -> str:
    """Return a script that runs the job. It holds the configuration, and references instead of secrets.

    Raises:
        ValueError: the job needs more than one machine, or another launcher.
    """
    launch = job.launch
    problems = key_problems(job, "local") + capacity_problems(job) + secret_problems(job)
    if launch.all_nodes > 1:
        problems.append(
            f"launch.nodes asks for {launch.all_nodes} machines, but a local run has only one; set launch.nodes=1"
        )
    refuse(problems)
    lines = [
        "#!/bin/bash",
        "# Written by `grpo launch local`; it runs the job.",
        "set -euo pipefail",
        'folder="$(mktemp --directory)"',
        "trap 'rm -rf -- \"$folder\"' EXIT",
        f'cat > "$folder/config.yaml" {here_document(job.snapshot(job.settings.cluster.address))}'.rstrip("\n"),
        *(f"export {name}={shlex.quote(value)}" for name, value in launch.variables.items()),
        *(
            secret_file(secret) or f'export {secret.name}="${{{secret.environment}:?is not set}}"'
            for secret in launch.secrets
        ),
        f'grpo {job.command} "$folder/config.yaml"',
    ]
    return "\n".join(lines) + "\n"


def run(job: LaunchJob) -> int:
    """Run the job to its end; return the exit status.

    Raises:
        ValueError: for the reasons given in `render`, or because a secret is missing.
    """
    render(job)
    environment = {**os.environ, **job.launch.variables}
    environment |= {secret.name: value_of(secret) for secret in job.launch.secrets}
    with tempfile.TemporaryDirectory(prefix="grpo-launch-") as folder:
        config = Path(folder) / "config.yaml"
        config.write_text(job.snapshot(job.settings.cluster.address), encoding="utf-8")
        program = python_command("from grpo.cli.app import app; app()")
        with subprocess.Popen([*program, job.command, str(config)], env=environment) as process:
            while True:
                try:
                    return process.wait()
                except KeyboardInterrupt:
                    # The terminal sent Ctrl-C to the run too. Wait, because the run finishes its step.
                    continue


def value_of(secret: SecretConfig) -> str:
    """Read the value of a secret.

    Raises:
        ValueError: the secret's file or environment variable is missing.
    """
    if secret.file:
        try:
            return Path(secret.file).read_text(encoding="utf-8").rstrip("\n")
        except OSError as failure:
            raise ValueError(f"the secret {secret.name} cannot be read from {secret.file}: {failure}") from failure
    if secret.environment and secret.environment in os.environ:
        return os.environ[secret.environment]
    raise ValueError(f"the secret {secret.name} comes from the variable {secret.environment}, which is not set; set it")
