"""`grpo launch`: from a configuration and a target to a printed script or a started job."""

from __future__ import annotations

from launch import kuberay, local, ray_job, slurm
from launch.job import LaunchJob, Target

RENDERERS = {"local": local.render, "slurm": slurm.render, "kuberay": kuberay.render, "ray": ray_job.render}
SUBMITTERS = {"slurm": slurm.submit, "kuberay": kuberay.submit, "ray": ray_job.submit}


def render(target: Target, job: LaunchJob) -> str:
    """Return the command or the script that `start` would use.

    Raises:
        ValueError: the job cannot run there; the message has every reason.
    """
    return RENDERERS[target](job)


def start(target: Target, job: LaunchJob) -> int:
    """Run the job here, or submit it; return the exit status.

    Raises:
        ValueError: the job cannot run there; the message has every reason.
        RuntimeError: the scheduler refused.
    """
    if target == "local":
        return local.run(job)
    print(SUBMITTERS[target](job), flush=True)
    return 0
