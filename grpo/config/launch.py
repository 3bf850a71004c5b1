"""The cluster section of a configuration: the requests of `grpo launch` to Slurm, Kubernetes or a Ray cluster.

It holds names, counts and paths, never a secret's value. A secret is a reference, which is resolved where the job runs.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from grpo.config.section import Positive, Section

_ABSOLUTE_PATH = r"^/[^\x00-\x1f\x7f]*$"
_TIME = r"^(\d+|\d+:\d\d(:\d\d)?|\d+-\d+(:\d\d){0,2})$"
_DNS_NAME = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"
_VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"
_LINE = r"^[^\x00-\x1f\x7f]*$"
# Names in Slurm, Kubernetes and NCCL. A shell and a YAML parser read each of them as a plain word.
Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.,:@+-]*$", max_length=200)]
DnsName = Annotated[str, Field(pattern=_DNS_NAME, max_length=253)]
Variable = Annotated[str, Field(pattern=_VARIABLE)]
AbsolutePath = Annotated[str, Field(pattern=_ABSOLUTE_PATH)]
Line = Annotated[str, Field(pattern=_LINE)]
Image = Annotated[str, Field(pattern=r"^[A-Za-z0-9/][A-Za-z0-9_./:@+#-]*$")]
LocalFolder = Annotated[str, Field(pattern=r"^(/[A-Za-z0-9_./@+-]*|\$[A-Za-z_][A-Za-z0-9_]*)$")]
TimeLimit = Annotated[str, Field(pattern=_TIME)]


# What a pattern stands for, in messages.
FORMS = {
    _ABSOLUTE_PATH: "an absolute path, such as /shared/runs",
    _TIME: "a time as Slurm writes it, such as 12:00:00 or 2-00:00:00",
    _DNS_NAME: "a name of Kubernetes: lower-case letters, digits, '-' and '.'",
    _VARIABLE: "the name of an environment variable: letters, digits and '_'",
    _LINE: "a single line of text",
}

# Ray resources that mark nodes for a single kind of actor. `grpo.cluster.cluster` respects them on every node.
LEARNER_NODE, GENERATOR_NODE = "learner_node", "generator_node"


class NodesConfig(Section):
    """Machines of one kind."""

    nodes: Positive
    """Number of machines."""
    gpus_per_node: Annotated[int, Field(ge=0)]
    """Number of GPUs of each machine."""
    gpu_type: Word | None = None
    """Slurm's name of the GPUs, for example `h100` in `gpu:h100:8`. None takes any GPUs. Kubernetes chooses by
    `node_selector`."""
    cpus_per_node: Positive
    """Number of CPU cores of each machine."""
    memory_gib_per_node: Positive | None = None
    """GiB of memory of each machine. None takes the site's default on Slurm, or the whole memory with
    `launch.slurm.options: {exclusive: true}`. Kubernetes needs a value."""
    partition: Word | None = None
    """Slurm partition. None takes the site's default."""
    node_selector: dict[str, str] = Field(default_factory=dict)
    """Kubernetes node labels."""


class KubernetesSecretConfig(Section):
    """A key of a Kubernetes secret."""

    secret: DnsName
    """Name of the secret."""
    key: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")]
    """Key in the secret."""


class SecretConfig(Section):
    """A secret by reference: the place where a launcher reads the value of an environment variable."""

    name: Variable
    """Environment variable that the job receives."""
    file: AbsolutePath | None = None
    """File with the value, on a disk that the head node reaches (local, Slurm, Ray)."""
    environment: Variable | None = None
    """Variable of the shell that launches or submits the job (local, Slurm)."""
    kubernetes: KubernetesSecretConfig | None = None
    """Only KubeRay reads this key."""

    @model_validator(mode="after")
    def _refers_to_something(self) -> Self:
        if not (self.file or self.environment or self.kubernetes):
            raise ValueError(f"the secret {self.name} needs a file, an environment variable or a kubernetes secret")
        if self.file and self.environment:
            raise ValueError(f"the secret {self.name} names a file and an environment variable; keep one")
        return self


# Options of sbatch for which the config has keys, and options that the script sets itself.
_OWN_KEYS = {
    "nodes": "launch.nodes",
    "partition": "launch.partition",
    "account": "launch.slurm.account",
    "qos": "launch.slurm.qos",
    "constraint": "launch.slurm.constraint",
    "time": "launch.slurm.time_limit",
    "mem": "launch.memory_gib_per_node",
    "cpus-per-task": "launch.cpus_per_node",
    "gpus-per-node": "launch.gpus_per_node and launch.gpu_type",
    "job-name": "run.folder",
}
_SCRIPT_OPTIONS = (
    *("array", "error", "export", "gpus", "mem-per-cpu", "mem-per-gpu", "no-requeue", "ntasks", "ntasks-per-node"),
    *("open-mode", "output", "requeue", "signal", "wrap"),
)


class SlurmConfig(Section):
    """Settings for Slurm."""

    account: Word | None = None
    """Account that pays for the job."""
    qos: Word | None = None
    """Quality of service."""
    constraint: Word | None = None
    """Node features that the job needs."""
    time_limit: TimeLimit | None = None
    """Time limit in the format of `sbatch --time`, for example `12:00:00` or `2-00:00:00`."""
    modules: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+/-]*$")], ...] = ()
    """Environment modules to load."""
    options: dict[str, str | int | bool] = Field(default_factory=dict)
    """Further options of sbatch by their long names, for example `{reservation: maintenance, exclusive: true}`. `true`
    stands for an option without a value. `gres` replaces the request for GPUs."""
    template: str | None = None
    """Your own Jinja template of the script. It may begin with `{% extends "slurm.sh.j2" %}` and replace some blocks
    (docs/cluster.md)."""
    container: Literal["apptainer", "pyxis"] = "apptainer"
    """Program that runs the image: Apptainer, or NVIDIA's Pyxis and enroot."""
    image: Image | None = None
    """Container image on Slurm. None takes `launch.image`. Apptainer needs a file; Pyxis takes a file or a name in a
    registry."""
    local_folder: LocalFolder | None = None
    """Folder on the disk of each node for objects that Ray spills: a path, or `$NAME` for a variable of the job. None
    takes Ray's folder in `/tmp`."""
    checkpoint_lead_s: Positive = 300
    """Seconds before the time limit at which the run gets the signal to write its checkpoint. Choose more than a step
    and a checkpoint take."""

    @field_validator("options")
    @classmethod
    def _passes_through(cls, options: dict[str, str | int | bool]) -> dict[str, str | int | bool]:
        for name, value in options.items():
            if not re.fullmatch(r"[a-z][a-z0-9-]+", name):
                raise ValueError(f"{name!r} is not a long option of sbatch; write for example `exclude` for -x")
            if name in _OWN_KEYS:
                raise ValueError(f"the config sets --{name}: use {_OWN_KEYS[name]} instead")
            if name in _SCRIPT_OPTIONS:
                raise ValueError(f"the script sets --{name} itself; remove it, or write launch.slurm.template")
            if value is False:
                raise ValueError(f"{name}: false has no meaning for sbatch; leave the option out")
            if re.search(r"[\x00-\x1f\x7f\"'\\#]", str(value)):
                raise ValueError(f"{name}={value!r} has a quote, a backslash, # or a control character; remove it")
        return options


class KubeRayConfig(Section):
    """Settings for KubeRay."""

    namespace: DnsName = "default"
    """Kubernetes namespace of the job."""
    storage_claim: DnsName | None = None
    """Name of a persistent volume claim with access mode ReadWriteMany, mounted at `launch.storage`."""
    service_account: DnsName | None = None
    """Service account of the pods. Its token is not mounted into them."""
    user: Positive = 10001
    """Numeric user of the pods, never root. 10001 is the user of the image that the Dockerfile builds."""
    full_sandbox: bool = False
    """Let the sandbox reach `full`: a user namespace for each pod (`hostUsers: false`), all of /proc, no seccomp and no
    AppArmor profile of the runtime. It needs Kubernetes 1.33 or later, and storage that supports idmapped mounts."""
    image_pull_secret: DnsName | None = None
    """Kubernetes secret with which the nodes pull the image."""
    shared_memory_gib: Positive = 8
    """GiB of memory-backed `/dev/shm` of each pod. Ray's object store and NCCL use it."""
    tolerate_gpu_taint: bool = True
    """Tolerate the taint `nvidia.com/gpu`, which keeps other pods off GPU nodes."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Labels of the RayJob, for example `{kueue.x-k8s.io/queue-name: lab}`."""
    annotations: dict[str, str] = Field(default_factory=dict)
    """Annotations of the RayJob and of its pods."""
    pod: dict[str, Any] = Field(default_factory=dict)
    """Further fields of the pods' `spec`, for example `{priorityClassName: high}`. Lists are appended to the
    launcher's lists."""
    container_fields: dict[str, Any] = Field(default_factory=dict)
    """Further fields of the pods' container, for example `{imagePullPolicy: Always}`."""
    ttl_s: Annotated[int, Field(ge=0)] = 3600
    """Seconds for which the job's objects stay after its end."""


class RayConfig(Section):
    """Settings for the submission to a running Ray cluster."""

    dashboard: Annotated[str, Field(pattern=r"^https?://[A-Za-z0-9.:\[\]_-]+(/[A-Za-z0-9._/-]*)?$")] = (
        "http://127.0.0.1:8265"
    )
    """Address of the head's dashboard, which accepts jobs; often the end of a tunnel."""


class LaunchConfig(NodesConfig):
    """The nodes on which `grpo launch` runs the job. They hold learner ranks and, by default, generators too."""

    generators: NodesConfig | None = None
    """They hold the generators. The nodes of `launch` then hold learner ranks only."""
    image: Image | None = None
    """Container image of the Kubernetes pods, and of a Slurm job without `launch.slurm.image`."""
    venv: AbsolutePath | None = None
    """Virtual environment that has this project, at the same path on every node (Slurm, Ray). On Slurm, a job without
    image and modules takes the environment in which you call `grpo launch`."""
    storage: AbsolutePath | None = None
    """Folder that every node reaches at this path. The run's folder and all files of the config must lie in it, or in
    one of `shared_folders`. With several nodes it must be given."""
    shared_folders: tuple[AbsolutePath, ...] = ()
    """Further folders that every node reaches at the same path, for example the home folders, or a folder of the
    image."""
    environment: dict[Variable, Line] = Field(default_factory=dict)
    """Environment variables of every process, for example NCCL's. Not for secrets."""
    secrets: tuple[SecretConfig, ...] = ()
    interface: Word | None = None
    """Network interface that Ray, NCCL and Gloo use on Slurm, for example `ib0`."""
    max_restarts: Annotated[int, Field(ge=0)] = 20
    """Number of times that a job is started again from its newest checkpoint, after a preemption or a lost node
    (Slurm, Kubernetes). A job ends earlier if restarts bring no newer checkpoint (`cluster.max_fruitless_restarts`)."""
    nodes_deadline_s: Positive = 900
    """Longest wait until every node has joined, in seconds (Slurm)."""
    slurm: SlurmConfig = SlurmConfig()
    kuberay: KubeRayConfig = KubeRayConfig()
    ray: RayConfig = RayConfig()

    @property
    def groups(self) -> tuple[NodesConfig, ...]:
        """All kinds of machines, the head's first."""
        return (self, self.generators) if self.generators else (self,)

    @property
    def all_nodes(self) -> int:
        """The number of machines."""
        return sum(group.nodes for group in self.groups)

    @property
    def variables(self) -> dict[str, str]:
        """`environment`, and the variables that `interface` sets."""
        named = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME") if self.interface else ()
        return {**dict.fromkeys(named, self.interface or ""), **self.environment}
