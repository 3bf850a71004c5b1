"""Which kernels a rank takes on a GPU, and their trial. There is no GPU: it is faked where the rank asks for it."""

from __future__ import annotations

import dataclasses
import logging
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from setups_for_tests import learner_setups
from tiny_policy import add_product_on_a_cpu, make_tiny_policy
from torch import Tensor

from grpo import config
from grpo.config.cluster import Device
from grpo.learner import kernel_trial, kernels
from grpo.learner.kernels import HEAD, Sizes, choose_kernels
from grpo.learner.setup import LearnerSetup
from grpo.policy import flash
from grpo.policy.attention import PackedLayout, VarlenLayout
from grpo.policy.flash import FLASH_KERNELS, Flash3Layout, Flash4Layout
from grpo.policy.fused_head import FusedHead, compiled_head, replace_by_gradient, statistics

SIZES = Sizes(heads=4, key_value_heads=2, head_size=8, hidden=16, vocabulary=40)
CPU = torch.device("cpu")
AUTO, HOPPER = {"attention": "auto", "kernels": "auto"}, 9


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_policy(tmp_path_factory.mktemp("policy"))


def setup_of(policy: Path, dtype: config.Dtype = "bfloat16", device: Device = "cuda", **learner: str) -> LearnerSetup:
    (setup,) = learner_setups(str(policy), dtype=dtype)
    return dataclasses.replace(setup, learner=setup.learner.model_copy(update=learner), device=device)


class Machine:
    """A GPU, the kernels that are installed, and the verdicts of their trials."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, capability: int, installed: str, verdicts: dict[str, str]
    ) -> None:
        self.trials: list[tuple[str, ...]] = []
        self._verdicts = verdicts
        modules = {FLASH_KERNELS[name].source for name in installed.split()}
        monkeypatch.setattr(kernels, "gpu_capability", lambda: capability)
        monkeypatch.setattr(flash, "_is_installed", lambda module: module in modules)
        monkeypatch.setattr(kernels, "tried", self._tried)

    def _tried(self, names: tuple[str, ...], sizes: Sizes) -> dict[str, str]:
        assert (sizes.heads, sizes.key_value_heads, sizes.head_size) == (4, 2, 4)
        self.trials.append(names)
        return {name: self._verdicts.get(name, "") for name in names}


@pytest.mark.parametrize(
    ("learner", "dtype", "capability", "installed", "failed", "layout", "fused", "trials"),
    [
        # Hopper: FlashAttention 3 if somebody has built it, else 4, which `make install-gpu` brings.
        (AUTO, "bfloat16", 9, "fa3 fa4", {}, Flash3Layout, True, [("fa3", "fa4", HEAD)]),
        (AUTO, "bfloat16", 9, "fa4", {}, Flash4Layout, True, [("fa4", HEAD)]),
        (AUTO, "bfloat16", 10, "fa3 fa4", {}, Flash4Layout, True, [("fa4", HEAD)]),
        (AUTO, "bfloat16", 9, "fa3 fa4", {"fa3": "wrong"}, Flash4Layout, True, [("fa3", "fa4", HEAD)]),
        # What cannot run, or failed its trial, leaves torch's own.
        (AUTO, "bfloat16", 9, "", {}, VarlenLayout, True, [(HEAD,)]),
        (AUTO, "bfloat16", 8, "fa3 fa4", {}, VarlenLayout, True, [(HEAD,)]),
        (AUTO, "bfloat16", 9, "fa4", {"fa4": "no", HEAD: "no"}, VarlenLayout, False, [("fa4", HEAD)]),
        (AUTO, "float32", 9, "fa4", {}, PackedLayout, True, [(HEAD,)]),
        # Named settings are obeyed, and not tried.
        ({"attention": "fa4", "kernels": "liger"}, "bfloat16", 9, "fa3 fa4", {}, Flash4Layout, True, []),
        ({"attention": "varlen", "kernels": "eager"}, "bfloat16", 9, "fa3 fa4", {}, VarlenLayout, False, []),
        ({"attention": "sdpa", "kernels": "eager"}, "bfloat16", 9, "fa4", {}, PackedLayout, False, []),
    ],
)
def test_a_rank_takes_the_fastest_kernels_that_pass_their_trial(
    policy: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    learner: dict[str, str],
    dtype: config.Dtype,
    capability: int,
    installed: str,
    failed: dict[str, str],
    layout: type,
    fused: bool,
    trials: list[tuple[str, ...]],
) -> None:
    machine = Machine(monkeypatch, capability, installed, failed)
    with caplog.at_level(logging.INFO, logger="grpo.learner.kernels"):
        chosen = choose_kernels(setup_of(policy, dtype, **learner))
    assert chosen.layout is layout
    assert chosen.head is (compiled_head() if fused else None)
    assert machine.trials == trials
    said = [record.getMessage() for record in caplog.records]
    assert set(chosen.reasons) <= set(said)
    assert sum(line.startswith("output head: ") for line in chosen.reasons) == 1
    for name, verdict in failed.items():
        assert any(verdict in line and "not used" in line for line in said), name


def test_the_log_names_the_kernel_and_why_no_other(policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(monkeypatch, HOPPER, "fa4", {})
    first, second, third = choose_kernels(setup_of(policy, **AUTO)).reasons
    assert first.startswith("attention: FlashAttention 3 is not installed (")
    assert second == "attention: FlashAttention 4; its outputs and gradients were tried on this GPU"
    assert third == "output head: kernels fused by torch.compile"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("attention", ["varlen", "fa3", "fa4"])
def test_attention_that_the_device_lacks_is_refused(
    policy: Path, monkeypatch: pytest.MonkeyPatch, attention: str, device: Device
) -> None:
    Machine(monkeypatch, 8, "fa3 fa4", {})
    setup = setup_of(policy, device=device, attention=attention, kernels="eager")
    if (attention, device) == ("varlen", "cuda"):
        assert choose_kernels(setup).layout is VarlenLayout
        return
    with pytest.raises(ValueError, match=rf"learner\.attention={attention}.* needs a GPU.*use "):
        choose_kernels(setup)


def test_on_a_cpu_nothing_is_tried(policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, HOPPER, "fa4", {})
    chosen = choose_kernels(setup_of(policy, device="cpu", **AUTO))
    assert (chosen.layout, chosen.head, machine.trials) == (PackedLayout, None, [])


@pytest.mark.parametrize(
    ("program", "verdict"),
    [
        ("print('compiling'); print('right')", ""),
        ("print('its dQ differ')", "its dQ differ"),
        ("print('right'); raise RuntimeError('no such arch')", "status 1: RuntimeError: no such arch"),
        ("import os; print('right', flush=True); os.abort()", "status -6"),
        ("import time; time.sleep(60)", "took more than 1 s"),
    ],
)
def test_a_trial_that_crashes_or_hangs_is_a_verdict(
    monkeypatch: pytest.MonkeyPatch, program: str, verdict: str
) -> None:
    class Popen(kernels.subprocess.Popen):  # type: ignore[name-defined,misc]
        def __init__(self, command: list[str], **named: Any) -> None:
            assert command[1:3] == ["-m", "grpo.learner.kernel_trial"] and command[-1] == "fa4"
            super().__init__([sys.executable, "-S", "-c", program], **named)

    monkeypatch.setattr(kernels.subprocess, "Popen", Popen)
    monkeypatch.setattr(kernels, "TRIAL_S", 1.0 if "sleep" in program else 60.0)
    kernels.tried.cache_clear()
    found = kernels.tried(("fa4",), SIZES)["fa4"]
    kernels.tried.cache_clear()
    assert verdict in found if verdict else found == ""


class Acausal(PackedLayout):
    """A kernel that attends to later keys too."""

    def attend(self, query_NHD: Tensor, key_NHD: Tensor, value_NHD: Tensor, scaling: float | None) -> Tensor:
        return super().attend(query_NHD, key_NHD.flip(0), value_NHD.flip(0), scaling)


class NoGradient(PackedLayout):
    """A kernel whose backward pass leaves out the gradient of the values."""

    def attend(self, query_NHD: Tensor, key_NHD: Tensor, value_NHD: Tensor, scaling: float | None) -> Tensor:
        return super().attend(query_NHD, key_NHD, value_NHD.detach() + 0.9 * (value_NHD - value_NHD.detach()), scaling)


def test_a_trial_of_attention_passes_rounding_and_finds_a_wrong_gradient() -> None:
    assert kernel_trial.try_attention(PackedLayout, SIZES, CPU) == ""  # type: ignore[arg-type]
    assert "its output differ" in kernel_trial.try_attention(Acausal, SIZES, CPU)  # type: ignore[arg-type]
    assert "its dV differ" in kernel_trial.try_attention(NoGradient, SIZES, CPU)  # type: ignore[arg-type]


def test_a_trial_of_the_head_passes_rounding_and_finds_a_wrong_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grpo.policy.head.add_product", add_product_on_a_cpu)

    def without_target(logits_CV: Tensor, targets_C: Tensor, *more: Any) -> None:
        replace_by_gradient(logits_CV, torch.zeros_like(targets_C), *more)

    assert kernel_trial.try_head(FusedHead(statistics, replace_by_gradient), SIZES, CPU) == ""
    assert "gradient of states differ" in kernel_trial.try_head(FusedHead(statistics, without_target), SIZES, CPU)


@pytest.mark.parametrize(("layout", "several"), [(Flash3Layout, False), (Flash4Layout, True)])
def test_layouts_call_the_function_of_their_package(
    monkeypatch: pytest.MonkeyPatch, layout: type[VarlenLayout], several: bool
) -> None:
    """The arguments are those of the packages' signatures (flash-attn-4 4.0.0b36). Its results may be two."""

    def flash_attn_varlen_func(
        q: Tensor, k: Tensor, v: Tensor, *, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor,
        max_seqlen_q: int, max_seqlen_k: int, softmax_scale: float | None, causal: bool,
    ) -> object:  # fmt: skip
        assert causal and cu_seqlens_q.tolist() == [0, 1, 701, 796, 989, 1055] == cu_seqlens_k.tolist()
        assert max_seqlen_q == max_seqlen_k == 700 and softmax_scale == 0.3
        return (q, None) if several else q

    module = types.ModuleType("kernel")
    module.flash_attn_varlen_func = flash_attn_varlen_func  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, layout._module, module)  # type: ignore[attr-defined]
    flash._function.cache_clear()
    tensors = [torch.randn(925, heads, 8) for heads in (4, 2, 2)]
    attended = layout(kernel_trial.PLACES, CPU).attend(*tensors, 0.3)
    flash._function.cache_clear()
    torch.testing.assert_close(attended, tensors[0])


def test_what_is_installed_is_found_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "flash_attn" / "cute").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    fa4 = FLASH_KERNELS["fa4"]
    assert fa4.problem(HOPPER).startswith("is not installed")
    (tmp_path / "flash_attn" / "cute" / "interface.py").write_text("raise RuntimeError('imported')")
    assert fa4.problem(HOPPER) == ""
    assert fa4.problem(8) == "needs a GPU of compute capability 9 or 10, and this GPU has 8"
