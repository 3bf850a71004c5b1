"""One Slurm script: Ray's head and workers, the run, and what happens at a time limit or a preemption."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import jinja2

from grpo.config.launch import GENERATOR_NODE, LEARNER_NODE
from launch import slurm_options
from launch.job import (
    LaunchJob,
    capacity_problems,
    here_document,
    refuse,
    secret_file,
    secret_problems,
    storage_problems,
)
from launch.keys import key_problems

TEMPLATES = Path(__file__).parent / "templates"
# Pyxis keeps these variables although the image may set others.
_RAY_VARIABLES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_worker_niceness", "RAY_USAGE_STATS_ENABLED")


def render(job: LaunchJob) -> str:
    """The script. It holds the configuration, so that it can be submitted as it is.

    Raises:
        ValueError: the nodes do not fit the job, the nodes do not reach a file, a script cannot contain a value, or
            the user's template fails.
    """
    waits = "dependency" in job.launch.slurm.options
    problems = key_problems(job, "slurm") + capacity_problems(job)
    problems += storage_problems(job, starts_here=True, policy_comes_later=waits)
    problems += secret_problems(job) + _folder_problems(job)
    problems += slurm_options.gpu_problems(job) + slurm_options.image_problems(job)
    given = job.launch.slurm.template
    template = job.working_folder / given if given else TEMPLATES / "slurm.sh.j2"
    if not template.is_file():
        problems.append(f"launch.slurm.template={given}: there is no file {template}")
    refuse(problems)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, TEMPLATES]),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,
        # By default Jinja would take Bash's ${#array[@]} for the start of a comment.
        comment_start_string="<#",
        comment_end_string="#>",
    )
    environment.filters["quote"] = shlex.quote
    # In an array, commas between words without quotes look like a mistake.
    environment.filters["in_quotes"] = lambda text: "'" + text.replace("'", "'\\''") + "'"
    try:
        return environment.get_template(template.name).render(_values(job))
    except jinja2.TemplateError as failure:
        if given is None:
            raise
        line = f", line {failure.lineno}" if isinstance(failure, jinja2.TemplateSyntaxError) else ""
        raise ValueError(f"launch.slurm.template={template}{line}: {failure}") from failure


def _values(job: LaunchJob) -> dict[str, object]:
    """The values that a template may use."""
    launch = job.launch
    roles = (LEARNER_NODE, GENERATOR_NODE)
    local = launch.slurm.local_folder or ""
    return {
        "job": job,
        "launch": launch,
        "folder": str(job.folder),
        "output": _output(job),
        "config": here_document(job.snapshot(None)),
        "gpus": any(group.gpus_per_node for group in launch.groups),
        "folders": slurm_options.mounted_folders(job),
        "mounts": ",".join(f"{folder}:{folder}" for folder in ["/tmp", *slurm_options.mounted_folders(job)]),
        "kept_variables": ",".join([*_RAY_VARIABLES, *launch.variables, *(secret.name for secret in launch.secrets)]),
        "image": slurm_options.image(job),
        "venv": _venv(job),
        "local_variable": local.removeprefix("$") if local.startswith("$") else "",
        "passes_on": (TEMPLATES / "passes_on.sh").read_text(encoding="utf-8"),
        "ray_node": (TEMPLATES / "ray_node.sh").read_text(encoding="utf-8"),
        "remove_ray_folder": (TEMPLATES / "remove_ray_folder.sh").read_text(encoding="utf-8"),
        "owns_nodes": slurm_options.owns_nodes(job),
        "options": lambda group: slurm_options.options(job, group),
        "gpu_request": lambda group: slurm_options.gpu_request(job, group),
        "memory": lambda group: (group.memory_gib_per_node or 0) * 2**30,
        "resources": lambda index: json.dumps({roles[index]: 1_000_000} if launch.generators else {}),
        "nodelist": lambda index: (
            f"$SLURM_JOB_NODELIST_HET_GROUP_{index}" if launch.generators else "$SLURM_JOB_NODELIST"
        ),
        "secret_file": secret_file,
    }


def _output(job: LaunchJob) -> str:
    """The file of the job's output. Slurm writes it only into a folder that exists at the start of the job."""
    launch_folder = job.folder / "launch"
    if launch_folder.is_dir():
        return f"{launch_folder}/slurm-%j.out"
    existing = next(folder for folder in job.folder.parents if folder.is_dir())
    return f"{str(existing).rstrip('/')}/{job.name}-%j.out"


def _venv(job: LaunchJob) -> str | None:
    """The virtual environment of the job: the configured one, or this one if nothing else names the software."""
    launch = job.launch
    if launch.venv or slurm_options.image(job) or launch.slurm.modules or sys.prefix == sys.base_prefix:
        return launch.venv
    return sys.prefix


def _folder_problems(job: LaunchJob) -> list[str]:
    """Return problems of the folder in which the job starts, and of its virtual environment."""
    launch, problems, venv = job.launch, [], _venv(job)
    reached = (launch.storage, *launch.shared_folders) if launch.storage else ("/",)
    if not re.fullmatch(r"[A-Za-z0-9_./@+-]+", str(job.folder)):
        problems.append(
            f"run.folder={job.folder}: sbatch reads its options as plain words; use letters, digits and _.+-@"
        )
    if not any(job.working_folder.is_relative_to(folder) for folder in reached):
        problems.append(
            f"the job starts in {job.working_folder}, which does not lie in launch.storage={launch.storage}; call "
            "grpo launch from a folder of the storage, or name this folder in launch.shared_folders if every node has "
            "it"
        )
    if venv and not launch.venv and not any(Path(venv).is_relative_to(folder) for folder in reached):
        problems.append(
            f"launch.venv is not set, and the environment of this command, {venv}, does not lie in "
            f"launch.storage={launch.storage}; set launch.venv to an environment that every node has"
        )
    if venv and not slurm_options.image(job):
        problems += [
            f"launch.venv={venv} has no bin/{program}; name a virtual environment in which this project is installed"
            for program in ("python", "grpo")
            if not (Path(venv) / "bin" / program).exists()
        ]
    return problems


def submit(job: LaunchJob) -> str:
    """Write the script into the run's folder and hand it to sbatch; return its answer.

    Raises:
        ValueError: as `render`, or sbatch is not installed.
        RuntimeError: sbatch refused.
    """
    render(job)
    if shutil.which("sbatch") is None:
        raise ValueError("there is no sbatch on the PATH: launch from a login node, or print the script with --dry-run")
    folder = job.folder / "launch"
    folder.mkdir(parents=True, exist_ok=True)
    # Again, because the output of the job goes into the folder now that it exists.
    (folder / "job.sh").write_text(render(job), encoding="utf-8")
    environment = slurm_options.clean_environment(job, dict(os.environ))
    done = subprocess.run(
        ["sbatch", str(folder / "job.sh")], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"sbatch refused {folder / 'job.sh'}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.strip()
