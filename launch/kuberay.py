"""KubeRay: one RayJob (ray.io/v1) and the ConfigMap with its configuration, as plain data and as YAML."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from importlib.metadata import version
from typing import Any

import yaml

from grpo.config.launch import GENERATOR_NODE, LEARNER_NODE, LaunchConfig, NodesConfig
from launch.job import LaunchJob, capacity_problems, refuse, storage_problems
from launch.keys import key_problems

CONFIG_FOLDER = "/etc/verigrpo"
# How long Kubernetes waits between SIGTERM and SIGKILL when it takes a pod away.
GRACE_S = 120


def manifests(job: LaunchJob) -> list[dict[str, Any]]:
    """The ConfigMap and the RayJob.

    Raises:
        ValueError: something that Kubernetes needs is missing, or the nodes do not fit the job.
    """
    problems = key_problems(job, "kuberay") + capacity_problems(job) + storage_problems(job, starts_here=False)
    refuse(problems + _problems(job))
    launch, name = job.launch, re.sub(r"\.", "-", job.name)
    metadata = {
        "name": name,
        "namespace": launch.kuberay.namespace,
        "labels": {"app.kubernetes.io/name": "verigrpo", **launch.kuberay.labels},
    }
    if launch.kuberay.annotations:
        metadata["annotations"] = dict(launch.kuberay.annotations)
    grpo = f"{job.command} {CONFIG_FOLDER}/config.yaml"
    config_map = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata,
        "data": {"config.yaml": job.snapshot("auto")},
    }
    ray_job = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": metadata,
        "spec": {
            # KubeRay makes a new attempt after every failure. After a failure that a new attempt would only repeat,
            # `launch.attempt` stops the Ray job. Without new attempts this is not needed.
            "entrypoint": f"python -P -m launch.attempt {grpo}" if launch.max_restarts else f"grpo {grpo}",
            "submissionMode": "K8sJobMode",
            # Each attempt gets a new cluster. The run continues there from its newest checkpoint.
            "backoffLimit": launch.max_restarts,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": launch.kuberay.ttl_s,
            "rayClusterSpec": _cluster(launch, name),
        },
    }
    return [config_map, ray_job]


def render(job: LaunchJob) -> str:
    """Return the ConfigMap and the RayJob as one YAML stream, for `kubectl apply -f`.

    Raises:
        ValueError: as `manifests`.
    """
    return (
        "# start it: kubectl apply -f FILE; start it again after its end: kubectl replace --force -f FILE\n"
        + yaml.dump_all(manifests(job), Dumper=_ReadableDumper, sort_keys=False, allow_unicode=True)
    )


class _ReadableDumper(yaml.SafeDumper):
    """Writes a text of several lines, such as the configuration, as a block."""


_ReadableDumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def submit(job: LaunchJob) -> str:
    """Hand the manifests to kubectl; return its answer.

    A RayJob of this name that has ended is deleted first, because `kubectl apply` would not start it again.

    Raises:
        ValueError: as `manifests`, or kubectl is not installed.
        RuntimeError: kubectl refused, or a RayJob of this name still runs.
    """
    text = render(job)
    if shutil.which("kubectl") is None:
        raise ValueError("there is no kubectl on the PATH: install it, or print the manifest with --dry-run")
    _, ray_job = manifests(job)
    named = ["rayjob", ray_job["metadata"]["name"], "--namespace", ray_job["metadata"]["namespace"]]
    present = _kubectl(["get", *named, "--ignore-not-found", "--output", "json"])
    if present:
        state = json.loads(present).get("status", {}).get("jobDeploymentStatus", "New")
        if state not in ("Complete", "Failed"):
            raise RuntimeError(
                f"the RayJob {named[1]} of this run folder has not ended (its state is {state}); wait for its end, or "
                f"stop it: kubectl delete {' '.join(named)}"
            )
        _kubectl(["delete", *named, "--wait"])
    return _kubectl(["apply", "-f", "-"], text)


def _kubectl(arguments: list[str], text: str | None = None) -> str:
    """Call kubectl with `text` as its input; return its output."""
    done = subprocess.run(["kubectl", *arguments], input=text, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"kubectl {arguments[0]} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.strip()


def _problems(job: LaunchJob) -> list[str]:
    launch, problems = job.launch, []
    if launch.image is None:
        problems.append("launch.image must name the container image of the pods (the Dockerfile builds one)")
    # For several nodes, `storage_problems` names it.
    if launch.storage is None and launch.all_nodes == 1:
        problems.append("launch.storage must name the folder where the pod reads and writes what stays")
    if launch.kuberay.storage_claim is None:
        problems.append("launch.kuberay.storage_claim must name the volume claim that pods mount at launch.storage")
    for section, group in (("launch", launch), ("launch.generators", launch.generators)):
        if group is not None and group.memory_gib_per_node is None:
            problems.append(f"{section}.memory_gib_per_node must say how much memory a pod gets")
    problems += [
        f"launch.secrets: {secret.name} names no Kubernetes secret; give kubernetes: {{secret: ..., key: ...}}"
        for secret in launch.secrets
        if secret.kubernetes is None
    ]
    for key, base, extra in _extras(launch):
        problems += _conflicts(key, base, extra)
    return problems


def _extras(launch: LaunchConfig) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """The key of the user's further fields, the launcher's fields in the same place, and the user's fields."""
    spec = _launcher_pod(launch, launch, "name", "name")
    return [
        ("launch.kuberay.pod", spec, launch.kuberay.pod),
        ("launch.kuberay.container_fields", spec["containers"][0], launch.kuberay.container_fields),
    ]


def _conflicts(key: str, base: dict[str, Any], extra: dict[str, Any]) -> list[str]:
    """The fields that the launcher sets and that cannot be merged."""
    problems = []
    for name, value in extra.items():
        present = base.get(name)
        if isinstance(present, dict) and isinstance(value, dict):
            problems += _conflicts(f"{key}.{name}", present, value)
        elif name in base and not (isinstance(present, list) and isinstance(value, list)):
            problems.append(f"{key}.{name}: the launcher sets this field to {present!r}; remove it")
    return problems


def _merged(base: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    """The launcher's fields and the user's: dictionaries are merged, lists are joined."""
    result = dict(base)
    for name, value in extra.items():
        present = result.get(name)
        if isinstance(present, dict):
            result[name] = _merged(present, value)
        else:
            result[name] = [*present, *value] if isinstance(present, list) else value
    return result


def _cluster(launch: LaunchConfig, name: str) -> dict[str, Any]:
    roles = (LEARNER_NODE, GENERATOR_NODE) if launch.generators else (None, None)
    workers = [
        {
            "groupName": group_name,
            "replicas": count,
            "minReplicas": count,
            "maxReplicas": count,
            "rayStartParams": _start(group, role),
            "template": _pod(launch, group, name, "ray-worker"),
        }
        for group_name, group, role, count in (
            ("nodes", launch, roles[0], launch.nodes - 1),
            ("generators", launch.generators, roles[1], launch.generators.nodes if launch.generators else 0),
        )
        if group is not None and count > 0
    ]
    return {
        "rayVersion": version("ray"),
        # The operator makes the token as a Kubernetes secret, and gives it to every pod.
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": False,
        "headGroupSpec": {
            "rayStartParams": _start(launch, roles[0]),
            "template": _pod(launch, launch, name, "ray-head"),
        },
        "workerGroupSpecs": workers,
    }


def _start(group: NodesConfig, role: str | None) -> dict[str, str]:
    start = {"num-cpus": str(group.cpus_per_node)}
    if role:
        # JSON twice, because KubeRay puts the value into a shell command without quotes.
        start["resources"] = json.dumps(json.dumps({role: 1_000_000}))
    return start


def _pod(launch: LaunchConfig, group: NodesConfig, name: str, container: str) -> dict[str, Any]:
    """The template of a pod, with the user's further fields."""
    kuberay, spec = launch.kuberay, _launcher_pod(launch, group, name, container)
    spec["containers"] = [_merged(spec["containers"][0], kuberay.container_fields)]
    pod: dict[str, Any] = {"spec": _merged(spec, kuberay.pod)}
    if kuberay.annotations:
        pod["metadata"] = {"annotations": dict(kuberay.annotations)}
    return pod


def _environment(launch: LaunchConfig) -> list[dict[str, Any]]:
    variables = {"RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0", **launch.variables}
    environment: list[dict[str, Any]] = [{"name": key, "value": value} for key, value in variables.items()]
    return environment + [
        {
            "name": secret.name,
            "valueFrom": {"secretKeyRef": {"name": secret.kubernetes.secret, "key": secret.kubernetes.key}},
        }
        for secret in launch.secrets
        if secret.kubernetes is not None
    ]


def _launcher_pod(launch: LaunchConfig, group: NodesConfig, name: str, container: str) -> dict[str, Any]:
    """The launcher's own `spec` of a pod."""
    kuberay = launch.kuberay
    amounts = {"cpu": str(group.cpus_per_node), "memory": f"{group.memory_gib_per_node}Gi"}
    if group.gpus_per_node:
        amounts["nvidia.com/gpu"] = str(group.gpus_per_node)
    spec: dict[str, Any] = {
        "terminationGracePeriodSeconds": GRACE_S,
        # A run does not call Kubernetes. So the pod holds no Kubernetes token, which a program that escapes from the
        # sandbox could use.
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": kuberay.user,
            "seccompProfile": {"type": "Unconfined" if kuberay.full_sandbox else "RuntimeDefault"},
        },
        "containers": [
            {
                "name": container,
                "image": launch.image,
                "env": _environment(launch),
                # Requests equal limits, so Kubernetes evicts other pods before this pod.
                "resources": {"limits": amounts, "requests": dict(amounts)},
                "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                "volumeMounts": [
                    {"name": "storage", "mountPath": launch.storage},
                    {"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True},
                    {"name": "shared-memory", "mountPath": "/dev/shm"},
                ],
            }
        ],
        "volumes": [
            {"name": "storage", "persistentVolumeClaim": {"claimName": kuberay.storage_claim}},
            {"name": "config", "configMap": {"name": name}},
            {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": f"{kuberay.shared_memory_gib}Gi"}},
        ],
    }
    if kuberay.full_sandbox:
        # With this setting, the root user of a namespace in the pod has no rights on the node. This is needed because
        # the runtime's profiles are off.
        spec["hostUsers"] = False
        spec["securityContext"]["appArmorProfile"] = {"type": "Unconfined"}
        # The kernel mounts a new /proc only if the pod's /proc is fully visible.
        spec["containers"][0]["securityContext"]["procMount"] = "Unmasked"
    if group.node_selector:
        spec["nodeSelector"] = dict(group.node_selector)
    if kuberay.service_account:
        spec["serviceAccountName"] = kuberay.service_account
    if kuberay.image_pull_secret:
        spec["imagePullSecrets"] = [{"name": kuberay.image_pull_secret}]
    if group.gpus_per_node and kuberay.tolerate_gpu_taint:
        spec["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    return spec
