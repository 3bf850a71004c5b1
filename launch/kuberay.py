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

CONFIG_FOLDER = "/etc/verigrpo"
# How long Kubernetes waits between SIGTERM and SIGKILL when it takes a pod away.
GRACE_S = 120


def manifests(job: LaunchJob) -> list[dict[str, Any]]:
    """The ConfigMap and the RayJob.

    Raises:
        ValueError: something that Kubernetes needs is missing, or the nodes do not fit the job.
    """
    refuse(capacity_problems(job) + storage_problems(job, starts_here=False) + _problems(job))
    launch, name = job.launch, re.sub(r"\.", "-", job.name)
    metadata = {"name": name, "namespace": launch.kuberay.namespace, "labels": {"app.kubernetes.io/name": "verigrpo"}}
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
            "entrypoint": f"grpo {job.command} {CONFIG_FOLDER}/config.yaml",
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
    """Both as one YAML stream, for `kubectl apply -f`.

    Raises:
        ValueError: as `manifests`.
    """
    return yaml.safe_dump_all(manifests(job), sort_keys=False)


def submit(job: LaunchJob) -> str:
    """Hand the manifests to kubectl; return its answer.

    Raises:
        ValueError: as `manifests`, or kubectl is not installed.
        RuntimeError: kubectl refused.
    """
    text = render(job)
    if shutil.which("kubectl") is None:
        raise ValueError("there is no kubectl on the PATH: install it, or print the manifest with --dry-run")
    done = subprocess.run(["kubectl", "apply", "-f", "-"], input=text, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"kubectl refused the manifest: {done.stderr.strip()}")
    return done.stdout.strip()


def _problems(job: LaunchJob) -> list[str]:
    launch, problems = job.launch, []
    if launch.image is None:
        problems.append("launch.image must name the container image of the pods (the Dockerfile builds one)")
    if launch.storage is None or launch.kuberay.storage_claim is None:
        problems.append("launch.storage and launch.kuberay.storage_claim must name the storage that pods share")
    for section, group in (("launch", launch), ("launch.generators", launch.generators)):
        if group is not None and group.memory_gib_per_node is None:
            problems.append(f"{section}.memory_gib_per_node must say how much memory a pod gets")
    problems += [
        f"launch.secrets: {secret.name} names no Kubernetes secret; give kubernetes: {{secret: ..., key: ...}}"
        for secret in launch.secrets
        if secret.kubernetes is None
    ]
    return problems


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
    kuberay = launch.kuberay
    amounts = {"cpu": str(group.cpus_per_node), "memory": f"{group.memory_gib_per_node}Gi"}
    if group.gpus_per_node:
        amounts["nvidia.com/gpu"] = str(group.gpus_per_node)
    variables = {"RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0", **launch.variables}
    environment: list[dict[str, Any]] = [{"name": key, "value": value} for key, value in variables.items()]
    environment += [
        {
            "name": secret.name,
            "valueFrom": {"secretKeyRef": {"name": secret.kubernetes.secret, "key": secret.kubernetes.key}},
        }
        for secret in launch.secrets
        if secret.kubernetes is not None
    ]
    spec: dict[str, Any] = {
        "terminationGracePeriodSeconds": GRACE_S,
        # A run does not call Kubernetes, and a program that breaks out must find no token for it.
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
                "env": environment,
                # Requests equal to limits: Kubernetes then takes other pods away first.
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
        # Root of a namespace in the pod then has no rights on the node, although the runtime's profiles are off.
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
    return {"spec": spec}
