"""A strict model of what we use of KubeRay's RayJob (ray.io/v1, fields as of KubeRay 1.5.1) and of Kubernetes' pods.

Unknown fields are refused, as the API server refuses them with strict validation; types, required fields and patterns
are those of the resource definitions. Written from their references, not generated from them.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
Quantity = Annotated[str, Field(pattern=r"^\d+(\.\d+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$")]
Count = Annotated[int, Field(ge=0, strict=True)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Metadata(Strict):
    # RayJobs: at most 47, as names of pods and services are made from it.
    name: Annotated[Name, Field(max_length=47)]
    namespace: Name
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class SecretKeyRef(Strict):
    name: str
    key: str


class ValueFrom(Strict):
    secretKeyRef: SecretKeyRef


class Variable(Strict):
    name: str
    value: str | None = None
    valueFrom: ValueFrom | None = None

    @model_validator(mode="after")
    def _one(self) -> Variable:
        assert (self.value is None) != (self.valueFrom is None)
        return self


# `nvidia.com/gpu`, and what a device plugin of the cluster offers besides.
Resource = Annotated[str, Field(pattern=r"^(cpu|memory|[a-z0-9.-]+/[a-zA-Z0-9_.-]+)$")]


class Resources(Strict):
    limits: dict[Resource, Quantity]
    requests: dict[Resource, Quantity]


class Mount(Strict):
    name: Name
    mountPath: Annotated[str, Field(pattern=r"^/[^:]*$")]
    readOnly: bool = False


class Profile(Strict):
    type: Literal["RuntimeDefault", "Unconfined"]


class Capabilities(Strict):
    drop: list[str]
    add: list[str] = []


class SecurityContext(Strict):
    allowPrivilegeEscalation: bool
    capabilities: Capabilities
    procMount: Literal["Default", "Unmasked"] = "Default"


class PodSecurityContext(Strict):
    runAsNonRoot: bool
    runAsUser: Annotated[int, Field(ge=0, strict=True)]
    seccompProfile: Profile
    appArmorProfile: Profile | None = None


class Container(Strict):
    name: Name
    image: str
    imagePullPolicy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    env: list[Variable]
    resources: Resources
    securityContext: SecurityContext
    volumeMounts: list[Mount]


class Claim(Strict):
    claimName: str


class ConfigMapSource(Strict):
    name: str


class EmptyDir(Strict):
    medium: Literal["", "Memory"]
    sizeLimit: Quantity


class Volume(Strict):
    name: Name
    persistentVolumeClaim: Claim | None = None
    configMap: ConfigMapSource | None = None
    emptyDir: EmptyDir | None = None

    @model_validator(mode="after")
    def _one(self) -> Volume:
        assert [self.persistentVolumeClaim, self.configMap, self.emptyDir].count(None) == 2
        return self


class Toleration(Strict):
    key: str
    operator: Literal["Exists", "Equal"]
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]


class PullSecret(Strict):
    name: str


class PodSpec(Strict):
    containers: Annotated[list[Container], Field(min_length=1)]
    volumes: list[Volume]
    terminationGracePeriodSeconds: Count
    automountServiceAccountToken: bool
    hostUsers: bool = True
    securityContext: PodSecurityContext
    nodeSelector: dict[str, str] = {}
    priorityClassName: str | None = None
    hostNetwork: bool = False
    serviceAccountName: str | None = None
    imagePullSecrets: list[PullSecret] = []
    tolerations: list[Toleration] = []

    @model_validator(mode="after")
    def _all_of_proc_needs_a_namespace(self) -> PodSpec:
        unmasked = any(one.securityContext.procMount == "Unmasked" for one in self.containers)
        assert not (unmasked and self.hostUsers), "procMount: Unmasked needs hostUsers: false"
        return self

    @model_validator(mode="after")
    def _mounts_are_volumes(self) -> PodSpec:
        volumes = {volume.name for volume in self.volumes}
        assert all({mount.name for mount in one.volumeMounts} <= volumes for one in self.containers)
        return self


class PodMetadata(Strict):
    annotations: dict[str, str]


class Template(Strict):
    metadata: PodMetadata | None = None
    spec: PodSpec


class HeadGroup(Strict):
    rayStartParams: dict[str, str]
    template: Template


class WorkerGroup(Strict):
    groupName: Name
    replicas: Count
    minReplicas: Count
    maxReplicas: Count
    rayStartParams: dict[str, str]
    template: Template


class AuthOptions(Strict):
    mode: Literal["disabled", "token"]


class ClusterSpec(Strict):
    rayVersion: str
    authOptions: AuthOptions
    enableInTreeAutoscaling: bool
    headGroupSpec: HeadGroup
    workerGroupSpecs: list[WorkerGroup]


class JobSpec(Strict):
    entrypoint: str
    submissionMode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]
    backoffLimit: Count
    shutdownAfterJobFinishes: bool
    ttlSecondsAfterFinished: Count
    rayClusterSpec: ClusterSpec

    @model_validator(mode="after")
    def _ttl_needs_shutdown(self) -> JobSpec:
        # The operator refuses the one without the other.
        assert self.shutdownAfterJobFinishes or self.ttlSecondsAfterFinished == 0
        return self


class RayJob(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: JobSpec


class ConfigMap(Strict):
    apiVersion: Literal["v1"]
    kind: Literal["ConfigMap"]
    metadata: Metadata
    data: dict[str, str]
