"""A job to launch: a command of `grpo`, its configuration, and the nodes that it needs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Literal

from grpo.cluster.claim import plan_of
from grpo.config import SftConfig, TrainConfig
from grpo.config.file import dump
from grpo.config.launch import LaunchConfig, NodesConfig, SecretConfig

Target = Literal["local", "slurm", "kuberay", "ray"]


@dataclass(frozen=True, slots=True)
class LaunchJob:
    """A configured job, with the folder that its paths start from.

    Attributes:
        settings: the resolved configuration.
        working_folder: the folder that relative paths of the configuration start from, absolute.
    """

    settings: TrainConfig | SftConfig
    working_folder: Path

    @property
    def command(self) -> str:
        """The command of `grpo` that runs the job."""
        return "sft" if isinstance(self.settings, SftConfig) else "train"

    @property
    def folder(self) -> Path:
        """The run's folder, absolute."""
        return self.working_folder / self.settings.run.folder

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
                "add one with nodes, gpus_per_node and cpus_per_node (docs/cluster.md)"
            )
        return self.settings.launch

    def snapshot(self, address: str | None) -> str:
        """Return the configuration of the job as text. Later changes of the original file do not affect it.

        Args:
            address: value of `cluster.address` for the job.
        """
        settings = self.settings
        run = settings.run.model_copy(update={"folder": str(self.folder), "resume": "auto"})
        cluster = settings.cluster.model_copy(update={"address": address})
        return dump(settings.model_copy(update={"run": run, "cluster": cluster}))


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
    elif isinstance(settings, SftConfig):
        return ["launch.generators asks for nodes that supervised fine-tuning would leave idle; leave it out"]
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


def storage_problems(job: LaunchJob) -> list[str]:
    """Return problems of a run folder that some nodes cannot reach."""
    launch = job.launch
    if launch.storage is None:
        if launch.all_nodes == 1:
            return []
        return ["launch.storage must name the folder that all nodes share: each node writes checkpoints"]
    if not job.folder.is_relative_to(launch.storage):
        return [f"run.folder={job.folder} does not lie in launch.storage={launch.storage}, which all nodes share"]
    return []


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
