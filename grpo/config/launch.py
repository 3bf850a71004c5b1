"""The cluster section of a configuration: what `grpo launch` asks of Slurm, of Kubernetes or of a Ray cluster.

It holds names, counts and paths, never a secret's value: a secret is a reference that is followed where the job runs.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from grpo.config.section import Positive, Section

# What Slurm, Kubernetes and NCCL call things; nothing that a shell or a YAML reader could take for more than a word.
Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.,:@+-]*$", max_length=200)]
DnsName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$", max_length=253)]
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
AbsolutePath = Annotated[str, Field(pattern=r"^/[^\x00-\x1f\x7f]*$")]
Line = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]*$")]
TimeLimit = Annotated[str, Field(pattern=r"^(\d+|\d+:\d\d(:\d\d)?|\d+-\d+(:\d\d){0,2})$")]


# Ray resources of nodes that are kept for one kind of actor. `grpo.cluster.cluster` obeys them wherever it finds them.
LEARNER_NODE, GENERATOR_NODE = "learner_node", "generator_node"


class NodesConfig(Section):
    """Machines of one kind."""

    nodes: Positive
    gpus_per_node: Annotated[int, Field(ge=0)]
    cpus_per_node: Positive
    memory_gib_per_node: Positive | None = None
    """None: what the scheduler gives by default (on Slurm, all of the node's); on Kubernetes it must be given."""
    partition: Word | None = None
    """Slurm partition; None takes the site's default."""
    node_selector: dict[str, str] = Field(default_factory=dict)
    """Kubernetes node labels."""


class KubernetesSecretConfig(Section):
    """A key of a Kubernetes secret."""

    secret: DnsName
    key: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")]


class SecretConfig(Section):
    """A secret by reference: where each launcher finds the value of an environment variable."""

    name: Variable
    """The environment variable that the job gets."""
    file: AbsolutePath | None = None
    """A file that holds the value, on a disk that the head node reaches (local, Slurm, Ray)."""
    environment: Variable | None = None
    """A variable of the shell that launches or submits the job (local, Slurm)."""
    kubernetes: KubernetesSecretConfig | None = None
    """A key of a Kubernetes secret (KubeRay)."""

    @model_validator(mode="after")
    def _refers_to_something(self) -> Self:
        if not (self.file or self.environment or self.kubernetes):
            raise ValueError(f"the secret {self.name} needs a file, an environment variable or a kubernetes secret")
        if self.file and self.environment:
            raise ValueError(f"the secret {self.name} names a file and an environment variable; keep one")
        return self


class SlurmConfig(Section):
    """What only Slurm asks for."""

    account: Word | None = None
    qos: Word | None = None
    constraint: Word | None = None
    """Node features."""
    time_limit: TimeLimit | None = None
    """As `sbatch --time` reads it, for example `12:00:00` or `2-00:00:00`."""
    modules: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+/-]*$")], ...] = ()
    """Environment modules to load."""
    checkpoint_lead_s: Positive = 300
    """How long before the time limit the run is asked to write its checkpoint: longer than a step and a checkpoint."""


class KubeRayConfig(Section):
    """What only KubeRay asks for."""

    namespace: DnsName = "default"
    storage_claim: DnsName | None = None
    """Name of a persistent volume claim with access mode ReadWriteMany, mounted at `launch.storage`."""
    service_account: DnsName | None = None
    """Of the pods; its token is not mounted into them."""
    user: Positive = 10001
    """Numeric user of the pods, never root: 10001 is that of the image that the Dockerfile builds."""
    full_sandbox: bool = False
    """Let the sandbox reach `full`: a user namespace for each pod (`hostUsers: false`), all of /proc, no seccomp and no
    AppArmor profile of the runtime. Needs Kubernetes 1.33 or later, and storage that knows idmapped mounts."""
    image_pull_secret: DnsName | None = None
    shared_memory_gib: Positive = 8
    """Memory-backed `/dev/shm` of each pod: Ray's object store and NCCL use it."""
    tolerate_gpu_taint: bool = True
    """Tolerate the taint `nvidia.com/gpu`, which keeps other pods off GPU nodes."""
    ttl_s: Annotated[int, Field(ge=0)] = 3600
    """How long the job's objects stay after its end."""


class RayConfig(Section):
    """What only a submission to a running Ray cluster asks for."""

    dashboard: Annotated[str, Field(pattern=r"^https?://[A-Za-z0-9.:\[\]_-]+(/[A-Za-z0-9._/-]*)?$")] = (
        "http://127.0.0.1:8265"
    )
    """Address of the head's dashboard, through which jobs are submitted; often the end of a tunnel."""


class LaunchConfig(NodesConfig):
    """Where `grpo launch` runs the job. The nodes given here hold learner ranks and, by default, generators too."""

    generators: NodesConfig | None = None
    """Machines of another kind that hold the generators; the learner then keeps the ones above to itself."""
    image: Annotated[str, Field(pattern=r"^[A-Za-z0-9/][A-Za-z0-9_./:@+-]*$")] | None = None
    """Container image: of the pods on Kubernetes; run with Apptainer on Slurm."""
    venv: AbsolutePath | None = None
    """Virtual environment that has this project, at the same path on every node."""
    storage: AbsolutePath | None = None
    """A folder that every node reaches at this path; `run.folder` must lie in it where there is more than one node."""
    environment: dict[Variable, Line] = Field(default_factory=dict)
    """Environment variables of every process, for example NCCL's. Not for secrets."""
    secrets: tuple[SecretConfig, ...] = ()
    interface: Word | None = None
    """Network interface that Ray, NCCL and Gloo use, for example `ib0`."""
    max_restarts: Annotated[int, Field(ge=0)] = 20
    """How often a job that was preempted, or lost a node, is started again from its newest checkpoint."""
    nodes_deadline_s: Positive = 900
    """Longest wait for every node to join."""
    slurm: SlurmConfig = SlurmConfig()
    kuberay: KubeRayConfig = KubeRayConfig()
    ray: RayConfig = RayConfig()

    @property
    def groups(self) -> tuple[NodesConfig, ...]:
        """All kinds of machines, the head's first."""
        return (self, self.generators) if self.generators else (self,)

    @property
    def all_nodes(self) -> int:
        """How many machines there are."""
        return sum(group.nodes for group in self.groups)

    @property
    def variables(self) -> dict[str, str]:
        """`environment`, and what follows from `interface`."""
        named = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME") if self.interface else ()
        return {**dict.fromkeys(named, self.interface or ""), **self.environment}
