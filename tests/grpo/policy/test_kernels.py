"""Which kernels the learner takes, and what Liger is asked for. Its kernels run on a GPU only."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from setups_for_tests import learner_setups
from tiny_policy import make_tiny_policy
from transformers import AutoModelForCausalLM, PreTrainedModel

from grpo.config.cluster import Device
from grpo.config.learner import Kernels
from grpo.learner.deepspeed_setup import load_policy
from grpo.policy.kernels import FAMILIES, chosen_kernels, patch_kernels
from grpo.policy.logprobs import LogprobHead, PolicyLogprobs, load_model


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(make_tiny_policy(tmp_path))


def installed(monkeypatch: pytest.MonkeyPatch, *, liger: bool) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if liger and name == "liger_kernel" else None)


@pytest.mark.parametrize(
    ("kernels", "device", "family", "liger", "chosen"),
    [
        ("auto", "cuda", "qwen3", True, "liger"),
        ("auto", "cuda", "llama", True, "liger"),
        ("auto", "cuda", "qwen2", False, "eager"),
        ("auto", "cuda", "phi", True, "eager"),
        ("auto", "cpu", "qwen3", True, "eager"),
        ("eager", "cuda", "qwen3", True, "eager"),
        ("eager", "cpu", "phi", False, "eager"),
        ("liger", "cuda", "qwen2", True, "liger"),
    ],
)
def test_fused_kernels_are_taken_where_they_run(
    kernels: Kernels, device: Device, family: str, liger: bool, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, liger=liger)
    assert chosen_kernels(kernels, device, family) == chosen


@pytest.mark.parametrize(
    ("device", "family", "liger", "said"),
    [
        ("cpu", "qwen3", True, r"kernels=liger needs a GPU and the learner is on a CPU; use auto or eager"),
        ("cuda", "phi", True, r"kernels=liger knows .*qwen3, and the policy's family is phi; use auto or eager"),
        ("cuda", "qwen3", False, r"kernels=liger needs the package liger-kernel, .*install-gpu.*; use auto or eager"),
    ],
)
def test_fused_kernels_that_cannot_run_are_refused(
    device: Device, family: str, liger: bool, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, liger=liger)
    with pytest.raises(ValueError, match=said):
        chosen_kernels("liger", device, family)


def keywords_for(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The keywords that Liger's function of the model's family gets."""
    asked: list[dict[str, Any]] = []
    module = ModuleType("liger_kernel.transformers")
    setattr(module, f"apply_liger_kernel_to_{model.config.model_type}", lambda **named: asked.append(named))
    monkeypatch.setitem(sys.modules, "liger_kernel", ModuleType("liger_kernel"))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", module)
    patch_kernels(model)
    (keywords,) = asked
    return keywords


def test_liger_replaces_all_but_the_head_and_the_loss(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(folder, "float32")
    keywords = keywords_for(model, monkeypatch)
    assert keywords.pop("model") is model
    assert keywords == {
        "rope": True, "rms_norm": True, "swiglu": True, "cross_entropy": False, "fused_linear_cross_entropy": False
    }  # fmt: skip


def test_an_mlp_that_liger_would_compute_otherwise_stays(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(folder, "float32")
    model.config.hidden_act = "gelu"
    assert keywords_for(model, monkeypatch)["swiglu"] is False


def test_the_learner_patches_its_policy_on_a_gpu_and_not_on_a_cpu(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    patched: list[PreTrainedModel] = []
    monkeypatch.setattr("grpo.learner.deepspeed_setup.patch_kernels", patched.append)
    installed(monkeypatch, liger=True)
    (setup,) = learner_setups(folder)
    load_policy(setup, folder, None)
    assert not patched
    # Loading itself does not touch the device.
    model = load_policy(dataclasses.replace(setup, device="cuda"), folder, None)
    assert patched == [model]


@pytest.mark.parametrize("family", FAMILIES)
def test_liger_knows_the_family_and_the_keywords(family: str, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the installed package, which the CPU environment lacks."""
    real = pytest.importorskip("liger_kernel.transformers")
    function = getattr(real, f"apply_liger_kernel_to_{family}")
    importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    model = load_model(folder, "float32")
    model.config.model_type = family
    inspect.signature(function).bind(**keywords_for(model, monkeypatch))


def test_liger_changes_norms_and_mlps_and_leaves_forward_pass_and_head(folder: str) -> None:
    """The real patch of a model, which needs no GPU before its first call."""
    pytest.importorskip("liger_kernel.transformers")
    from transformers.models.qwen3 import modeling_qwen3

    names = ("apply_rotary_pos_emb", "Qwen3RMSNorm", "Qwen3MLP")
    before = {name: getattr(modeling_qwen3, name) for name in names}
    policy = PolicyLogprobs(load_model(folder, "float32"))
    try:
        patch_kernels(policy.model)
        assert modeling_qwen3.apply_rotary_pos_emb.__module__.startswith("liger_kernel")
    finally:
        for name, value in before.items():
            setattr(modeling_qwen3, name, value)
    changed = {name for name, module in policy.model.named_modules() if "forward" in vars(module)}
    norms = {name for name, _ in policy.model.named_modules() if name.endswith("norm")}
    assert changed == norms | {f"model.layers.{layer}.mlp" for layer in range(2)}
    assert isinstance(policy.model.get_output_embeddings(), LogprobHead)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_fused_kernels_give_the_same_on_a_gpu(folder: str) -> None:
    pytest.importorskip("liger_kernel.transformers")
    eager, fused = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).cuda() for _ in range(2))
    ids = torch.arange(3, 19, device="cuda")[None]
    expected = eager(input_ids=ids, use_cache=False).logits
    patch_kernels(fused)
    found = fused(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    for logits in (expected, found):
        (logits * torch.linspace(-1, 1, logits.numel(), device="cuda").view_as(logits)).sum().backward()
    for one, other in zip(eager.parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-3, atol=1e-4)
