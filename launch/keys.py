"""Which launcher uses which key of the section `launch`. A key that a launcher cannot use is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping

from launch.job import LaunchJob, Target

_HERE = "a local run takes this machine as it is"
_UP = "the Ray cluster runs already, and a job cannot choose its nodes"
_VARIABLES = "For NCCL and Gloo alone, set NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME in launch.environment"

# Key, launcher that cannot use it, reason and remedy. A launcher uses every key that is not here. The sections `slurm`,
# `kuberay` and `ray` say by their names which launcher reads them.
REFUSED: Mapping[str, Mapping[Target, str]] = {
    "gpu_type": {"local": _HERE, "kuberay": "choose nodes with such GPUs by launch.node_selector", "ray": _UP},
    "memory_gib_per_node": {"local": _HERE, "ray": _UP},
    "partition": {"local": _HERE, "kuberay": "Kubernetes has no partitions; use launch.node_selector", "ray": _UP},
    "node_selector": {
        "local": _HERE,
        "slurm": "Slurm knows no labels of Kubernetes; use launch.partition or launch.slurm.constraint",
        "ray": _UP,
    },
    "image": {
        "local": "a local run takes the environment in which you call grpo launch",
        "ray": "the nodes of the Ray cluster run already; install this project there, and name it in launch.venv",
    },
    "venv": {
        "local": "a local run takes the environment in which you call grpo launch; call the grpo of this environment",
        "kuberay": "the pods use the software of launch.image; install this project in the image",
    },
    "interface": {
        "local": "Ray uses the loopback interface on a single machine",
        "kuberay": f"Ray uses the addresses of the pods. {_VARIABLES}",
        "ray": f"the Ray cluster runs already and has chosen its interface. {_VARIABLES}",
    },
    "max_restarts": {
        "local": "nobody starts a local run again; call grpo launch again, and the run continues",
        "ray": "Ray does not start a job again; call grpo launch again, and the run continues",
    },
    "nodes_deadline_s": {
        "local": "a local run waits for no other nodes",
        "kuberay": "KubeRay starts the run as soon as all pods are up, and has no deadline for it",
        "ray": "the nodes of the Ray cluster are up already",
    },
}


def key_problems(job: LaunchJob, target: Target) -> list[str]:
    """Return the keys with a value that this launcher cannot use, and how to leave them out for one launch."""
    problems, without = [], []
    for name, section in zip(("launch", "launch.generators"), job.launch.groups, strict=False):
        for key, field in type(section).model_fields.items():
            reason = REFUSED.get(key, {}).get(target)
            value, default = getattr(section, key), field.get_default(call_default_factory=True)
            if reason is None or value == default or _has_no_effect(key, value, target):
                continue
            shown = value if isinstance(value, str) else json.dumps(value)
            problems.append(f"{name}.{key}={shown}: {reason}")
            without.append(f"{name}.{key}={json.dumps(default)}")
    if without:
        words = " ".join(without)
        problems.append(f"to leave {'these keys' if len(without) > 1 else 'this key'} out of this launch, add: {words}")
    return problems


def _has_no_effect(key: str, value: object, target: Target) -> bool:
    """Whether a launcher that cannot use the key does what this value asks for."""
    return (key, value) == ("max_restarts", 0) or (key, value, target) == ("venv", sys.prefix, "local")
