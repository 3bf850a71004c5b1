"""The engine's norms on a CPU: vLLM's kernel computes what vLLM's own layer would, and models are built with it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.platforms import current_platform

from grpo.generator.cpu_norm import KernelRMSNorm

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not current_platform.is_cpu(), reason="vLLM is built for another device here"),
]

WIDTH = 48


@pytest.fixture(autouse=True)
def layers_can_be_made() -> Iterator[None]:
    with set_current_vllm_config(VllmConfig()):
        yield


def norm_of(dtype: torch.dtype = torch.float32, **options: Any) -> KernelRMSNorm:
    norm = KernelRMSNorm(WIDTH, eps=1e-5, dtype=dtype, **options)
    torch.nn.init.uniform_(norm.weight.data, 0.5, 2.0, generator=torch.Generator().manual_seed(1))
    return norm


def random(*shape: int, seed: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    return (3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def by_vllm(norm: KernelRMSNorm, *tensors: Tensor) -> Any:
    """What vLLM's own layer makes of them."""
    return RMSNorm.forward_native(norm, *(one.clone() for one in tensors))


class Operators(TorchDispatchMode):
    """Notes the operators that are called inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


@torch.inference_mode()
@pytest.mark.parametrize("shape", [(7, WIDTH), (7, 3, WIDTH), (1, WIDTH)])
def test_a_norm_is_one_operator_and_vllm_s_result(shape: tuple[int, ...]) -> None:
    norm, x = norm_of(), random(*shape)
    before = x.clone()
    with Operators() as called:
        found = norm.forward_native(x)
    torch.testing.assert_close(found, by_vllm(norm, before))
    assert torch.equal(x, before)
    assert [name for name in called.names if not name.startswith("aten::empty")] == ["_C::rms_norm"]


@torch.inference_mode()
def test_queries_that_lie_apart_are_normed_as_they_are() -> None:
    # Queries, keys and values come from one product; a head's queries are a view with gaps.
    norm, joined = norm_of(), random(5, 4 * WIDTH)
    queries = joined[:, : 2 * WIDTH].view(5, 2, WIDTH)
    assert not queries.is_contiguous()
    torch.testing.assert_close(norm.forward_native(queries), by_vllm(norm, queries))


@torch.inference_mode()
def test_a_residual_is_added_and_handed_on() -> None:
    norm, x, residual = norm_of(), random(6, WIDTH), random(6, WIDTH, seed=3)
    expected = by_vllm(norm, x, residual)
    with Operators() as called:
        found = norm.forward_native(x, residual)
    torch.testing.assert_close(found, expected)
    assert called.names == ["_C::fused_add_rms_norm"]


@torch.inference_mode()
@pytest.mark.parametrize("apart", ["x", "residual"])
def test_with_gaps_and_a_residual_it_is_vllm_s_own(apart: str) -> None:
    norm = norm_of()
    tensors = {name: random(6, 2 * WIDTH if name == apart else WIDTH, seed=4)[:, :WIDTH] for name in ("x", "residual")}
    expected = by_vllm(norm, *tensors.values())
    torch.testing.assert_close(norm.forward_native(*tensors.values()), expected, rtol=0, atol=0)


@torch.inference_mode()
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize(
    ("dtype", "options"),
    [(torch.bfloat16, {}), (torch.float32, {"var_hidden_size": 16}), (torch.float32, {"has_weight": False})],
    ids=["bfloat16", "part of the width", "no weight"],
)
def test_what_the_kernel_would_compute_otherwise_is_vllm_s_own(
    dtype: torch.dtype, options: dict[str, Any], with_residual: bool
) -> None:
    norm = norm_of(dtype, **options)
    tensors = [random(6, WIDTH, seed=seed, dtype=dtype) for seed in range(1 + with_residual)]
    expected = by_vllm(norm, *tensors)
    torch.testing.assert_close(norm.forward_native(*tensors), expected, rtol=0, atol=0)


def test_every_process_of_an_engine_builds_models_with_it() -> None:
    program = """
from vllm.plugins import load_general_plugins
load_general_plugins()
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.layernorm import RMSNorm
with set_current_vllm_config(VllmConfig()):
    norm = RMSNorm(8, eps=1e-3)
print(type(norm).__name__, norm.variance_epsilon, norm._forward_method.__qualname__)
"""
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert told.splitlines()[-1] == "KernelRMSNorm 0.001 KernelRMSNorm.forward_native"
