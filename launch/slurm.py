"""One Slurm script: Ray's head and workers, the run, and what happens at a time limit or a preemption."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import jinja2

from grpo.config.launch import GENERATOR_NODE, LEARNER_NODE, NodesConfig
from launch.job import LaunchJob, capacity_problems, refuse, secret_file, secret_problems, storage_problems

TEMPLATES = Path(__file__).parent / "templates"


def render(job: LaunchJob) -> str:
    """The script.

    Raises:
        ValueError: the nodes do not fit the job, or a script cannot contain a value.
    """
    launch = job.launch
    problems = capacity_problems(job) + storage_problems(job, starts_here=True) + secret_problems(job)
    problems += _folder_problems(job)
    if not re.fullmatch(r"[A-Za-z0-9_./@+-]+", str(job.folder)):
        problems.append(
            f"run.folder={job.folder}: sbatch reads its options as plain words; use letters, digits and _.+-@"
        )
    refuse(problems)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,
        # By default Jinja would take Bash's ${#array[@]} for the start of a comment.
        comment_start_string="<#",
        comment_end_string="#>",
    )
    environment.filters["quote"] = shlex.quote

    def options(group: NodesConfig) -> list[str]:
        slurm = launch.slurm
        wanted: list[tuple[str, str | int | None]] = [
            ("partition", group.partition),
            ("account", slurm.account),
            ("qos", slurm.qos),
            ("constraint", slurm.constraint),
            ("time", slurm.time_limit),
            ("nodes", group.nodes),
            ("ntasks-per-node", 1),
            ("cpus-per-task", group.cpus_per_node),
            ("gpus-per-node", group.gpus_per_node or None),
            ("mem", f"{group.memory_gib_per_node}G" if group.memory_gib_per_node else 0),
        ]
        return [f"--{name}={value}" for name, value in wanted if value is not None]

    def resources(index: int) -> str:
        roles = (LEARNER_NODE, GENERATOR_NODE)
        return json.dumps({roles[index]: 1_000_000} if launch.generators else {})

    def nodelist(index: int) -> str:
        return f"$SLURM_JOB_NODELIST_HET_GROUP_{index}" if launch.generators else "$SLURM_JOB_NODELIST"

    return environment.get_template("slurm.sh.j2").render(
        job=job,
        launch=launch,
        folder=str(job.folder),
        gpus=any(group.gpus_per_node for group in launch.groups),
        binds=sorted({str(job.working_folder), *([launch.storage] if launch.storage else [])}),
        options=options,
        resources=resources,
        nodelist=nodelist,
        secret_file=secret_file,
    )


def _folder_problems(job: LaunchJob) -> list[str]:
    """Return problems of the folder in which the job starts, and of its virtual environment."""
    launch, problems = job.launch, []
    reached = (launch.storage, *launch.shared_folders) if launch.storage else ("/",)
    if not any(job.working_folder.is_relative_to(folder) for folder in reached):
        problems.append(
            f"the job starts in {job.working_folder}, which does not lie in launch.storage={launch.storage}; call "
            "grpo launch from a folder of the storage, or name this folder in launch.shared_folders if every node has it"
        )
    if launch.venv and not launch.image:
        problems += [
            f"launch.venv={launch.venv} has no bin/{program}; name a virtual environment in which this project is "
            "installed"
            for program in ("python", "grpo")
            if not (Path(launch.venv) / "bin" / program).exists()
        ]
    return problems


def submit(job: LaunchJob) -> str:
    """Write the script and the configuration into the run's folder and hand them to sbatch; return its answer.

    Raises:
        ValueError: as `render`, or sbatch is not installed.
        RuntimeError: sbatch refused.
    """
    script = render(job)
    if shutil.which("sbatch") is None:
        raise ValueError("there is no sbatch on the PATH: launch from a login node, or print the script with --dry-run")
    folder = job.folder / "launch"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(job.snapshot(None), encoding="utf-8")
    (folder / "job.sh").write_text(script, encoding="utf-8")
    done = subprocess.run(["sbatch", str(folder / "job.sh")], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"sbatch refused {folder / 'job.sh'}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.strip()
