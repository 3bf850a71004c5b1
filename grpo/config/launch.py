"""The cluster section of a configuration: the requests of `grpo launch` to Slurm, Kubernetes or a Ray cluster.

It holds names, counts and paths, never a secret's value. A secret is a reference, which is resolved where the job runs.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from grpo.config.section import Positive, Section

# Names in Slurm, Kubernetes and NCCL. A shell and a YAML parser read each of them as a plain word.
Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.,:@+-]*$", max_length=200)]
DnsName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$", max_length=253)]
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
AbsolutePath = Annotated[str, Field(pattern=r"^/[^\x00-\x1f\x7f]*$")]
Line = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]*$")]
TimeLimit = Annotated[str, Field(pattern=r"^(\d+|\d+:\d\d(:\d\d)?|\d+-\d+(:\d\d){0,2})$")]


# Ray resources that mark nodes for a single kind of actor. `grpo.cluster.cluster` respects them on every node.
LEARNER_NODE, GENERATOR_NODE = "learner_node", "generator_node"


class NodesConfig(Section):
    """Machines of one kind."""

    nodes: Positive
    """Number of machines."""
    gpus_per_node: Annotated[int, Field(ge=0)]
    """Number of GPUs of each machine."""
    cpus_per_node: Positive
    """Number of CPU cores of each machine."""
    memory_gib_per_node: Positive | None = None
    """GiB of memory of each machine. None takes the scheduler's default (on Slurm, the node's whole memory). Kubernetes
    needs a value."""
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
    """Only KubeRay reads it."""

    @model_validator(mode="after")
    def _refers_to_something(self) -> Self:
        if not (self.file or self.environment or self.kubernetes):
            raise ValueError(f"the secret {self.name} needs a file, an environment variable or a kubernetes secret")
        if self.file and self.environment:
            raise ValueError(f"the secret {self.name} names a file and an environment variable; keep one")
        return self


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
    checkpoint_lead_s: Positive = 300
    """Seconds before the time limit at which the run gets the signal to write its checkpoint. Choose more than a step
    and a checkpoint take."""


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
    image: Annotated[str, Field(pattern=r"^[A-Za-z0-9/][A-Za-z0-9_./:@+-]*$")] | None = None
    """Container image. Kubernetes: the image of the pods. Slurm: Apptainer runs it."""
    venv: AbsolutePath | None = None
    """Virtual environment that has this project, at the same path on every node."""
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
    """Network interface that Ray, NCCL and Gloo use, for example `ib0`."""
    max_restarts: Annotated[int, Field(ge=0)] = 20
    """Number of times that a job is started again from its newest checkpoint, after a preemption or a lost node."""
    nodes_deadline_s: Positive = 900
    """Longest wait until every node has joined, in seconds."""
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
