"""Submit a job to a running Ray cluster through its dashboard."""

from __future__ import annotations

import shlex
import tempfile
from pathlib import Path

from launch.job import LaunchJob, capacity_problems, refuse, secret_file, storage_problems


def entrypoint(job: LaunchJob) -> str:
    """The shell command that Ray runs on the head node, in a folder that holds `config.yaml`.

    Raises:
        ValueError: the job does not fit the cluster section.
    """
    launch = job.launch
    refuse(
        capacity_problems(job)
        + storage_problems(job, starts_here=False)
        + [
            f"launch.secrets: {secret.name} must name a file on the head node, because every "
            "user of the dashboard can see the values in a submission"
            for secret in launch.secrets
            if secret.file is None
        ]
    )
    lines = ["set -eu"]
    if launch.venv:
        lines.append(f'export PATH={shlex.quote(launch.venv + "/bin")}:"$PATH"')
    lines += [str(secret_file(secret)) for secret in launch.secrets]
    lines.append(f"exec grpo {job.command} config.yaml")
    return "bash -c " + shlex.quote("\n".join(lines))


def render(job: LaunchJob) -> str:
    """The equivalent `ray job submit` command, for people.

    Raises:
        ValueError: as `entrypoint`.
    """
    environment = "".join(f"#   {name}={value}\n" for name, value in job.launch.variables.items())
    variables = f"# with these environment variables:\n{environment}" if environment else ""
    return (
        "# in a folder with the resolved configuration as config.yaml; RAY_AUTH_TOKEN_PATH names the token's file\n"
        f"{variables}"
        f"ray job submit --address {shlex.quote(job.launch.ray.dashboard)} --working-dir . --no-wait \\\n"
        f"  -- {entrypoint(job)}\n"
    )


def submit(job: LaunchJob) -> str:
    """Submit the job; return a sentence with its id.

    Raises:
        ValueError: as `entrypoint`.
        ConnectionError: nobody answers at `launch.ray.dashboard`.
        RuntimeError: the cluster refused.
    """
    command, launch = entrypoint(job), job.launch
    from ray.job_submission import JobSubmissionClient

    with tempfile.TemporaryDirectory(prefix="grpo-launch-") as folder:
        (Path(folder) / "config.yaml").write_text(job.snapshot("auto"), encoding="utf-8")
        client = JobSubmissionClient(launch.ray.dashboard)
        job_id = client.submit_job(
            entrypoint=command, runtime_env={"working_dir": folder, "env_vars": launch.variables}
        )
    return f"submitted as {job_id}; follow it with: ray job logs --address {launch.ray.dashboard} -f {job_id}"
