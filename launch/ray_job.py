"""Submit a job to a running Ray cluster through its dashboard, and stop a job from within."""

from __future__ import annotations

import json
import os
import shlex
import signal
import tempfile
import time
from pathlib import Path

from launch.job import LaunchJob, capacity_problems, here_document, refuse, secret_file, storage_problems
from launch.keys import key_problems

# Ray gives every job this variable. Its `metadata` has the id of the job.
JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
STOP_DEADLINE_S = 60.0


def entrypoint(job: LaunchJob) -> str:
    """The shell command that Ray runs on the head node, in a folder that holds `config.yaml`.

    Raises:
        ValueError: the job does not fit the cluster section.
    """
    launch = job.launch
    refuse(
        key_problems(job, "ray")
        + capacity_problems(job)
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
    """Return a script that submits the job. It holds the configuration.

    Raises:
        ValueError: as `entrypoint`.
    """
    launch = job.launch
    variables = json.dumps({"env_vars": launch.variables})
    return (
        "#!/bin/bash\n"
        "# Written by `grpo launch ray`; it submits the job. RAY_AUTH_TOKEN_PATH names the token's file.\n"
        "set -euo pipefail\n"
        'folder="$(mktemp --directory)"\n'
        "trap 'rm -rf -- \"$folder\"' EXIT\n"
        f'cat > "$folder/config.yaml" {here_document(job.snapshot("auto"))}'
        f'ray job submit --address {shlex.quote(launch.ray.dashboard)} --working-dir "$folder" \\\n'
        f"  --runtime-env-json {shlex.quote(variables)} --no-wait \\\n"
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


def stop_this_job() -> None:
    """Ask Ray to end the Ray job of this process as STOPPED, and wait for Ray's signal, which ends this process.

    Raises:
        RuntimeError: this process belongs to no Ray job, or Ray did not end it.
        OSError: Ray's dashboard does not answer.
    """
    if JOB_VARIABLE not in os.environ:
        raise RuntimeError(f"this process belongs to no Ray job, because {JOB_VARIABLE} is not set")
    from ray.job_submission import JobSubmissionClient

    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Ray also sets RAY_ADDRESS, from which the client gets the address of the dashboard.
    JobSubmissionClient().stop_job(json.loads(os.environ[JOB_VARIABLE])["metadata"]["job_submission_id"])
    time.sleep(STOP_DEADLINE_S)
    raise RuntimeError(f"Ray did not end this process within {STOP_DEADLINE_S:.0f} s")
