"""The KubeRay manifests: what the API server would take, and that they say what the configuration says."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from kuberay_model import ConfigMap, RayJob
from launch_configs import job
from pydantic import ValidationError

from grpo.config import TrainConfig
from launch import kuberay

POD = {
    "image": "registry.example/verigrpo:0.1",
    "memory_gib_per_node": 64,
    "venv": None,
    "kuberay": {"storage_claim": "shared"},
}
FULL = {
    **POD,
    "gpus_per_node": 8,
    "cpus_per_node": 32,
    "environment": {"NCCL_DEBUG": "INFO", "NCCL_SOCKET_IFNAME": "eth0"},
    "secrets": [{"name": "WANDB_API_KEY", "kubernetes": {"secret": "wandb", "key": "api-key"}, "file": "/x"}],
    "node_selector": {"gpu": "a100"},
    "max_restarts": 5,
    "kuberay": {
        "namespace": "lab",
        "storage_claim": "shared",
        "service_account": "trainer",
        "image_pull_secret": "reg",
    },
    "generators": {
        "nodes": 3,
        "gpus_per_node": 4,
        "cpus_per_node": 16,
        "memory_gib_per_node": 32,
        "node_selector": {"gpu": "l40s"},
    },
}


def read(folder: Path, launch: dict[str, Any], **sections: Any) -> tuple[ConfigMap, RayJob]:
    text = kuberay.render(job(folder, {**POD, **launch}, **sections))
    config_map, ray_job = yaml.safe_load_all(text)
    return ConfigMap.model_validate(config_map), RayJob.model_validate(ray_job)


def test_the_pods_are_as_many_and_as_large_as_the_section_says(tmp_path: Path) -> None:
    _, ray_job = read(tmp_path, FULL)
    cluster = ray_job.spec.rayClusterSpec
    assert [(group.groupName, group.replicas) for group in cluster.workerGroupSpecs] == [
        ("nodes", 1),
        ("generators", 3),
    ]
    pods = [cluster.headGroupSpec.template.spec, *(group.template.spec for group in cluster.workerGroupSpecs)]
    limits = [pod.containers[0].resources.limits for pod in pods]
    assert limits[0] == limits[1] == {"cpu": "32", "memory": "64Gi", "nvidia.com/gpu": "8"}
    assert limits[2] == {"cpu": "16", "memory": "32Gi", "nvidia.com/gpu": "4"}
    assert [pod.nodeSelector["gpu"] for pod in pods] == ["a100", "a100", "l40s"]
    assert all(pod.tolerations and pod.serviceAccountName == "trainer" for pod in pods)
    assert (ray_job.spec.backoffLimit, ray_job.spec.shutdownAfterJobFinishes) == (5, True)
    assert cluster.authOptions.mode == "token"


def test_a_role_reaches_ray_start_through_the_shell_as_json(tmp_path: Path) -> None:
    cluster = read(tmp_path, FULL)[1].spec.rayClusterSpec
    generators = cluster.workerGroupSpecs[1].rayStartParams
    (word,) = shlex.split(generators["resources"])
    assert json.loads(word) == {"generator_node": 1_000_000}
    (word,) = shlex.split(cluster.headGroupSpec.rayStartParams["resources"])
    assert json.loads(word) == {"learner_node": 1_000_000}
    assert "resources" not in read(tmp_path, {})[1].spec.rayClusterSpec.headGroupSpec.rayStartParams


def test_secrets_are_references_and_settings_are_values(tmp_path: Path) -> None:
    _, ray_job = read(tmp_path, FULL)
    cluster = ray_job.spec.rayClusterSpec
    for group in (cluster.headGroupSpec, *cluster.workerGroupSpecs):
        variables = {one.name: one for one in group.template.spec.containers[0].env}
        assert variables["NCCL_SOCKET_IFNAME"].value == "eth0" and variables["NCCL_DEBUG"].value == "INFO"
        reference = variables["WANDB_API_KEY"].valueFrom
        assert reference is not None and (reference.secretKeyRef.name, reference.secretKeyRef.key) == (
            "wandb",
            "api-key",
        )


@pytest.mark.parametrize("full", [False, True])
def test_pods_have_no_more_rights_than_a_run_needs(tmp_path: Path, full: bool) -> None:
    section = {**FULL, "kuberay": {**FULL["kuberay"], "full_sandbox": full, "user": 1234}}
    cluster = read(tmp_path, section)[1].spec.rayClusterSpec
    for group in (cluster.headGroupSpec, *cluster.workerGroupSpecs):
        pod = group.template.spec
        (container,) = pod.containers
        assert pod.securityContext.runAsNonRoot and pod.securityContext.runAsUser == 1234
        assert not pod.automountServiceAccountToken
        assert not container.securityContext.allowPrivilegeEscalation
        assert container.securityContext.capabilities.drop == ["ALL"]
        # What Kubernetes calls `restricted`, unless the sandbox shall make namespaces of its own.
        assert pod.securityContext.seccompProfile.type == ("Unconfined" if full else "RuntimeDefault")
        assert pod.hostUsers is not full and container.securityContext.procMount == ("Unmasked" if full else "Default")


def test_pods_are_never_root(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        kuberay.render(job(tmp_path, {**POD, "kuberay": {"storage_claim": "shared", "user": 0}}))


def test_the_job_reads_its_configuration_from_the_config_map(tmp_path: Path) -> None:
    config_map, ray_job = read(tmp_path, {}, train={"steps": 17})
    settings = TrainConfig.model_validate(yaml.safe_load(config_map.data["config.yaml"]))
    assert (settings.train.steps, settings.cluster.address, settings.run.resume) == (17, "auto", "auto")
    pod = ray_job.spec.rayClusterSpec.headGroupSpec.template.spec
    mounts = {mount.name: mount.mountPath for mount in pod.containers[0].volumeMounts}
    assert ray_job.spec.entrypoint == f"python -P -m launch.attempt train {mounts['config']}/config.yaml"
    honest = read(tmp_path, {"max_restarts": 0})[1].spec
    assert (honest.entrypoint, honest.backoffLimit) == (f"grpo train {mounts['config']}/config.yaml", 0)
    assert mounts["storage"] == str(tmp_path) and mounts["shared-memory"] == "/dev/shm"
    (volume,) = [volume for volume in pod.volumes if volume.configMap]
    assert volume.configMap is not None and volume.configMap.name == config_map.metadata.name


def test_the_configuration_can_be_read_in_the_manifest(tmp_path: Path) -> None:
    text = kuberay.render(job(tmp_path, POD, data={"path": f"{tmp_path}/Fragen_für_alle.jsonl"}))
    assert "  config.yaml: |\n    run:\n" in text and f"      path: {tmp_path}/Fragen_für_alle.jsonl\n" in text


EXTRA = {
    "storage_claim": "shared",
    "labels": {"kueue.x-k8s.io/queue-name": "lab"},
    "annotations": {"k8s.v1.cni.cncf.io/networks": "rdma"},
    "pod": {"priorityClassName": "high", "tolerations": [{"key": "lab", "operator": "Exists", "effect": "NoSchedule"}]},
    "container_fields": {
        "imagePullPolicy": "Always",
        "resources": {"limits": {"rdma/hca": "1"}, "requests": {"rdma/hca": "1"}},
        "securityContext": {"capabilities": {"add": ["IPC_LOCK"]}},
    },
}


def test_further_fields_reach_every_pod(tmp_path: Path) -> None:
    _, ray_job = read(tmp_path, {**FULL, "kuberay": EXTRA})
    assert ray_job.metadata.labels == {"app.kubernetes.io/name": "verigrpo", "kueue.x-k8s.io/queue-name": "lab"}
    assert ray_job.metadata.annotations == EXTRA["annotations"]
    cluster = ray_job.spec.rayClusterSpec
    for group in (cluster.headGroupSpec, *cluster.workerGroupSpecs):
        template = group.template
        assert template.metadata is not None and template.metadata.annotations == EXTRA["annotations"]
        assert template.spec.priorityClassName == "high"
        assert [one.key for one in template.spec.tolerations] == ["nvidia.com/gpu", "lab"]
        (container,) = template.spec.containers
        assert container.imagePullPolicy == "Always" and container.resources.limits["rdma/hca"] == "1"
        assert container.resources.limits["cpu"] in ("32", "16")
        assert container.securityContext.capabilities.drop == ["ALL"]
        assert container.securityContext.capabilities.add == ["IPC_LOCK"]


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        ({"pod": {"securityContext": {"runAsUser": 0}}}, "launch.kuberay.pod.securityContext.runAsUser: the launcher"),
        ({"pod": {"automountServiceAccountToken": True}}, "launch.kuberay.pod.automountServiceAccountToken"),
        ({"container_fields": {"image": "other"}}, "launch.kuberay.container_fields.image"),
    ],
)
def test_further_fields_do_not_replace_the_launcher_s(tmp_path: Path, extra: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError) as caught:
        kuberay.render(job(tmp_path, {**POD, "kuberay": {"storage_claim": "shared", **extra}}))
    assert told in str(caught.value)


KUBECTL = """#!/bin/bash
echo "$*" >> "$FOLDER/calls"
case "$1" in
  get) cat "$FOLDER/present" ;;
  apply) cat > "$FOLDER/applied"; echo applied ;;
esac
"""


@pytest.mark.parametrize(("state", "calls"), [(None, ["get", "apply"]), ("Complete", ["get", "delete", "apply"])])
def test_a_job_that_has_ended_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str | None, calls: list[str]
) -> None:
    stand_in(tmp_path, monkeypatch, state)
    assert kuberay.submit(job(tmp_path, POD)) == "applied"
    assert [line.split()[0] for line in (tmp_path / "calls").read_text().splitlines()] == calls
    assert "kind: RayJob" in (tmp_path / "applied").read_text()


def test_a_job_that_runs_is_not_started_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, "Running")
    with pytest.raises(RuntimeError, match=r"its state is Running.*kubectl delete rayjob grpo-run --namespace default"):
        kuberay.submit(job(tmp_path, POD))
    assert not (tmp_path / "applied").exists()


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, state: str | None) -> None:
    """Put a kubectl on the PATH that knows one RayJob in this state, or none."""
    (folder / "bin").mkdir()
    (folder / "bin" / "kubectl").write_text(KUBECTL)
    (folder / "bin" / "kubectl").chmod(0o755)
    (folder / "present").write_text(json.dumps({"status": {"jobDeploymentStatus": state}}) if state else "")
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("FOLDER", str(folder))


def test_names_are_such_as_kubernetes_takes(tmp_path: Path) -> None:
    folder = f"{tmp_path}/Über_long.Name-" + "x" * 80
    config_map, ray_job = read(tmp_path, {}, run={"folder": folder})
    assert config_map.metadata.name == ray_job.metadata.name and ray_job.metadata.name.startswith("grpo-")


@pytest.mark.parametrize(
    ("launch", "told"),
    [
        ({"image": None}, "launch.image"),
        ({"kuberay": {}}, "launch.kuberay.storage_claim"),
        ({"memory_gib_per_node": None}, "launch.memory_gib_per_node"),
        ({"secrets": [{"name": "A", "file": "/a"}]}, "A names no Kubernetes secret"),
        ({"storage": "/elsewhere"}, "launch.storage=/elsewhere"),
    ],
)
def test_what_kubernetes_needs_is_asked_for(tmp_path: Path, launch: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        kuberay.render(job(tmp_path, {**POD, **launch}))


def test_the_model_is_strict(tmp_path: Path) -> None:
    _, ray_job = kuberay.manifests(job(tmp_path, POD))
    RayJob.model_validate(ray_job)
    for change in ({"backofLimit": 3}, {"backoffLimit": "3"}, {"ttlSecondsAfterFinished": -1}):
        with pytest.raises(ValidationError):
            RayJob.model_validate({**ray_job, "spec": {**ray_job["spec"], **change}})
