"""A job to launch: a command of `grpo`, its configuration, and the nodes that it needs."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Literal

from grpo.cluster.claim import plan_of
from grpo.config import FineTuningConfig, JobConfig
from grpo.config.file import dump
from grpo.config.launch import LaunchConfig, NodesConfig, SecretConfig
from launch.paths import (
    NamedPath,
    elsewhere_problems,
    missing_problems,
    named_paths,
    reach_problems,
    with_absolute_paths,
)

Target = Literal["local", "slurm", "kuberay", "ray"]


@dataclass(frozen=True, slots=True)
class LaunchJob:
    """A configured job, with the folder that its paths start from.

    Attributes:
        settings: the resolved configuration.
        working_folder: the folder that relative paths of the configuration start from, absolute.
    """

    settings: JobConfig
    working_folder: Path

    @property
    def command(self) -> str:
        """The command of `grpo` that runs the job."""
        return self.settings.job if isinstance(self.settings, FineTuningConfig) else "train"

    @property
    def folder(self) -> Path:
        """The run's folder, absolute."""
        (path,) = (named.path for named in self.paths if named.kind == "folder")
        return path

    @property
    def paths(self) -> list[NamedPath]:
        """All paths of the configuration."""
        return named_paths(self.settings, self.working_folder)

    @property
    def name(self) -> str:
        """A name for the scheduler: letters, digits and dashes, from the run's folder."""
        return re.sub(r"[^a-z0-9]+", "-", f"grpo-{self.folder.name}".lower()).strip("-")[:40].rstrip("-")

    @property
    def launch(self) -> LaunchConfig:
        """The cluster section.

        Raises:
            ValueError: the configuration has no such section.
        """
        if self.settings.launch is None:
            raise ValueError(
                "the configuration has no section `launch`, so the launcher does not know which nodes to request; "
                "copy these lines into the file and write the numbers of your cluster (docs/cluster.md has the other "
                "keys):\n\nlaunch:\n  nodes: 1\n  gpus_per_node: 8\n  cpus_per_node: 64\n"
            )
        return self.settings.launch

    def snapshot(self, address: str | None) -> str:
        """Return the configuration of the job as text, with absolute paths.

        Later changes of the original file do not affect the job.

        Args:
            address: value of `cluster.address` for the job.
        """
        settings = with_absolute_paths(self.settings, self.working_folder)
        run = settings.run.model_copy(update={"resume": "auto"})
        cluster = settings.cluster.model_copy(update={"address": address})
        return dump(settings.model_copy(update={"run": run, "cluster": cluster}))


def here_document(text: str) -> str:
    """Return the end of a shell command that reads `text` from its standard input: `<<'WORD'`, the text, WORD."""
    # A line that the text does not have.
    word = "END_OF_CONFIG_" + hashlib.sha256(text.encode()).hexdigest()[:16]
    return f"<<'{word}'\n{text}{word}\n"


def secret_file(secret: SecretConfig) -> str | None:
    """Return the shell command that exports a secret from its file, without its value; None if it has no file."""
    return f'{secret.name}="$(<{quote(secret.file)})"; export {secret.name}' if secret.file else None


def capacity_problems(job: LaunchJob) -> list[str]:
    """Return the resources that the job's actors need and the nodes of the cluster section do not have."""
    settings, launch, plan = job.settings, job.launch, plan_of(job.settings)
    learner = ("learner.ranks", plan.learner_ranks, 1, plan.learner_threads)
    replicas = ("generator.replicas", plan.generators, plan.generator_devices, plan.generator_threads)
    placed: list[tuple[str, NodesConfig, list[tuple[str, int, int, int]]]]
    if launch.generators is None:
        placed = [("launch", launch, [learner, replicas])]
    elif isinstance(settings, FineTuningConfig):
        return [f"launch.generators asks for nodes that `grpo {settings.job}` would leave idle; leave it out"]
    elif plan.share_gpus:
        return ["cluster.share_gpus puts learner and generators on one GPU, launch.generators on other nodes; keep one"]
    else:
        placed = [("launch", launch, [learner]), ("launch.generators", launch.generators, [replicas])]
    on_gpus = settings.cluster.device != "cpu" and any(group.gpus_per_node for group in launch.groups)
    problems = []
    for section, group, actors in placed:
        cpus = sum(count * threads for _, count, _, threads in actors)
        if cpus > group.nodes * group.cpus_per_node:
            problems.append(
                f"{' and '.join(name for name, *_ in actors)} need {cpus} CPUs and {section} asks for {group.nodes} x "
                f"{group.cpus_per_node}; raise {section}.nodes or {section}.cpus_per_node"
            )
        if not on_gpus:
            continue
        gpus = sum(count * devices for _, count, devices, _ in actors) if not plan.share_gpus else plan.learner_ranks
        if gpus > group.nodes * group.gpus_per_node:
            problems.append(
                f"{' and '.join(name for name, *_ in actors)} need {gpus} GPUs and {section} asks for {group.nodes} x "
                f"{group.gpus_per_node}; raise {section}.nodes or {section}.gpus_per_node"
            )
        if replicas in actors and plan.generator_devices > group.gpus_per_node:
            problems.append(
                f"a generator of {plan.generator_devices} GPUs does not fit a node of {section} with "
                f"{group.gpus_per_node}; lower generator.tensor_parallel_size or generator.pipeline_parallel_size"
            )
    return problems


def storage_problems(job: LaunchJob, *, starts_here: bool, policy_comes_later: bool = False) -> list[str]:
    """Return problems of files and folders that some nodes cannot reach.

    Args:
        job: the job.
        starts_here: whether the job starts in `job.working_folder`, on a node that sees this machine's files.
        policy_comes_later: whether the job waits for another job, which may make the policy.
    """
    launch, paths = job.launch, job.paths
    if launch.storage is None and launch.all_nodes > 1:
        return ["launch.storage must name the folder that all nodes share: each node writes checkpoints"]
    problems = reach_problems(paths, launch.storage, launch.shared_folders)
    if starts_here:
        problems += missing_problems(paths, policy_comes_later=policy_comes_later)
    else:
        problems += elsewhere_problems(paths, job.working_folder, has_storage=launch.storage is not None)
    return problems


def secret_problems(job: LaunchJob) -> list[str]:
    """Return the secrets that only Kubernetes can provide, for launchers without Kubernetes."""
    return [
        f"launch.secrets: {secret.name} names only a Kubernetes secret; here it needs a file or an environment variable"
        for secret in job.launch.secrets
        if not (secret.file or secret.environment)
    ]


def refuse(problems: list[str]) -> None:
    """Report all problems in a single error.

    Raises:
        ValueError: there are problems.
    """
    if problems:
        raise ValueError("this cannot be launched:\n" + "\n".join(f"  - {problem}" for problem in problems))
