"""What a Slurm script asks for: the options of sbatch and srun, and the container."""

from __future__ import annotations

import re
from pathlib import Path

from grpo.config.launch import NodesConfig
from launch.job import LaunchJob

# A scheme such as docker://, which Apptainer downloads.
_SCHEME = re.compile(r"^[a-z]+://")
# Variables of the shell that may stay, because they say which Slurm answers and how it answers.
_SETTINGS_OF_SLURM = {"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT", "SLURM_TIME_FORMAT"}
# The user's defaults for keys of the config. They apply if the config leaves the key out.
_DEFAULTS = {
    "SBATCH_ACCOUNT": "account",
    "SBATCH_PARTITION": "partition",
    "SBATCH_QOS": "qos",
    "SBATCH_CONSTRAINT": "constraint",
    "SBATCH_TIMELIMIT": "time",
    "SBATCH_RESERVATION": "reservation",
}


def gpu_request(job: LaunchJob, group: NodesConfig) -> str | None:
    """Return the option that asks for the GPUs of each node, for sbatch and srun; None without GPUs."""
    if "gres" in job.launch.slurm.options:
        return f"--gres={job.launch.slurm.options['gres']}"
    if not group.gpus_per_node:
        return None
    kind = f"{group.gpu_type}:" if group.gpu_type else ""
    return f"--gpus-per-node={kind}{group.gpus_per_node}"


def gpu_problems(job: LaunchJob) -> list[str]:
    """Return types of GPUs that the request for GPUs does not contain."""
    problems = []
    for name, group in zip(("launch", "launch.generators"), job.launch.groups, strict=False):
        if group.gpu_type is None:
            continue
        if "gres" in job.launch.slurm.options:
            problems.append(f"{name}.gpu_type and launch.slurm.options.gres both choose the GPUs; keep one of them")
        elif not group.gpus_per_node:
            problems.append(f"{name}.gpu_type={group.gpu_type} has no effect without GPUs; set {name}.gpus_per_node")
    return problems


def owns_nodes(job: LaunchJob) -> bool:
    """Return whether the job has its nodes for itself."""
    return job.launch.slurm.options.get("exclusive") is True


def options(job: LaunchJob, group: NodesConfig) -> list[str]:
    """Return the options of sbatch for one kind of nodes, each as a line of the script has it."""
    slurm = job.launch.slurm
    named: list[tuple[str, str | int | None]] = [
        ("partition", group.partition),
        ("account", slurm.account),
        ("qos", slurm.qos),
        ("constraint", slurm.constraint),
        ("time", slurm.time_limit),
        ("nodes", group.nodes),
        ("ntasks-per-node", 1),
        ("cpus-per-task", group.cpus_per_node),
        ("mem", f"{group.memory_gib_per_node}G" if group.memory_gib_per_node else 0 if owns_nodes(job) else None),
    ]
    lines = [f"--{name}={value}" for name, value in named if value is not None]
    if request := gpu_request(job, group):
        lines.append(request)
    for name, value in slurm.options.items():
        if value is True:
            lines.append(f"--{name}")
        elif name != "gres":
            lines.append(f'--{name}="{value}"' if re.search(r"\s", str(value)) else f"--{name}={value}")
    return lines


def clean_environment(job: LaunchJob, environment: dict[str, str]) -> dict[str, str]:
    """Return the variables for sbatch, without values that would change the job.

    sbatch prefers its variables (`SBATCH_*`) to the lines of the script, and a job inherits the variables of the job
    from which it is submitted (`SLURM_*`). A user's default, such as SBATCH_ACCOUNT, stays if the config does not set
    the option.
    """
    set_here = {line.removeprefix("--").split("=")[0] for group in job.launch.groups for line in options(job, group)}

    def stays(name: str) -> bool:
        if name.startswith("SLURM_"):
            return name in _SETTINGS_OF_SLURM
        if name.startswith(("SBATCH_", "SRUN_")):
            return name in _DEFAULTS and _DEFAULTS[name] not in set_here
        return True

    return {name: value for name, value in environment.items() if stays(name)}


def image(job: LaunchJob) -> str | None:
    """Return the image as the container program wants it; None without a container."""
    slurm = job.launch.slurm
    named = slurm.image or job.launch.image
    if named is None or slurm.container == "apptainer" or named.startswith("/") or "#" in named:
        return named
    # enroot separates the registry from the name by #.
    registry, slash, name = named.partition("/")
    return f"{registry}#{name}" if slash and re.search(r"[.:]", registry) else named


def image_problems(job: LaunchJob) -> list[str]:
    """Return problems of the image with the container program."""
    slurm, named = job.launch.slurm, image(job)
    key = "launch.slurm.image" if slurm.image else "launch.image"
    if named is None and slurm.container == "pyxis":
        return ["launch.slurm.container=pyxis runs an image; name it in launch.slurm.image or launch.image"]
    if named is None or _SCHEME.match(named):
        return []
    is_file = named.startswith("/")
    if is_file and not Path(named).exists():
        return [f"{key}={named} does not exist; build the image there, or name another file"]
    if slurm.container == "apptainer" and not is_file:
        return [
            f"{key}={named} is a name in a registry, and Apptainer runs a file; make the file once with `apptainer "
            f"pull verigrpo.sif docker://{named}`, then give its absolute path in launch.slurm.image; or set "
            "launch.slurm.container=pyxis if the cluster has Pyxis"
        ]
    return []


def mounted_folders(job: LaunchJob) -> list[str]:
    """Return the folders that the container needs from the node."""
    launch = job.launch
    folders = {str(job.working_folder), *launch.shared_folders, *([launch.storage] if launch.storage else [])}
    folders |= {str(job.folder)}
    for path in job.paths:
        if path.kind in ("data", "code"):
            folders.add(str(path.fixed_part if path.fixed_part.is_dir() else path.fixed_part.parent))
        elif path.kind == "policy":
            folders.add(str(path.path))
    folders.discard("/")
    # A folder inside another mounted folder needs no mount of its own.
    return sorted(
        folder
        for folder in folders
        if not any(Path(folder) != Path(o) and Path(folder).is_relative_to(o) for o in folders)
    )
