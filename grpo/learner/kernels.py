"""Choose the kernels of a rank: attention, and the output head.

Newer kernels are faster, and compile at their first call on this GPU. A kernel that fails would end the run, and a
wrong gradient would only show as a policy that learns badly. So `auto` takes such a kernel only after a trial, in a
process of its own, in which outputs and gradients equalled those of PyTorch's operators. Otherwise it takes PyTorch's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO

import torch
from transformers import AutoConfig

from grpo.learner.setup import LearnerSetup
from grpo.policy.attention import PackedLayout, VarlenLayout
from grpo.policy.flash import FLASH_KERNELS
from grpo.policy.fused_head import FusedHead, compiled_head
from grpo.policy.hub import at_revision, name_of
from grpo.visible import visible

logger = logging.getLogger(__name__)

Layout = type[PackedLayout | VarlenLayout]
# Longest time for the trial, in seconds. It imports torch, and compiles four kernels or so.
TRIAL_S = 300.0
# Name of the output head in a trial, and the last line of a trial whose kernel is right.
HEAD, RIGHT = "head", "right"


@dataclass(frozen=True, slots=True)
class RankKernels:
    """The kernels of a rank.

    Attributes:
        layout: layout of the sequences, which calls the kernel of attention.
        head: fused functions of the output head; None for the operators of PyTorch.
        reasons: what is used and why, in a sentence for each kernel.
    """

    layout: Layout
    head: FusedHead | None
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of a policy with which kernels are tried."""

    heads: int
    key_value_heads: int
    head_size: int
    hidden: int
    vocabulary: int


def choose_kernels(setup: LearnerSetup) -> RankKernels:
    """Choose the kernels of a rank, and log what was chosen.

    Raises:
        ValueError: the device does not have the kernel that `learner.attention` names.
    """
    attention, device = setup.learner.attention, setup.device
    if device == "cpu":
        if attention not in ("auto", "sdpa"):
            raise ValueError(f"learner.attention={attention} needs a GPU and the learner is on a CPU; use auto or sdpa")
        return RankKernels(PackedLayout, None, ())
    flash, left_out = _flash_candidates(setup) if attention != "sdpa" and setup.dtype == "bfloat16" else ([], [])
    on_trial = [*(flash if attention == "auto" else []), *([HEAD] if setup.learner.kernels == "auto" else [])]
    verdicts = tried(tuple(on_trial), _sizes(setup)) if on_trial else {}
    layout, of_attention = _layout(setup, flash, verdicts)
    head, of_head = _head(setup, verdicts)
    chosen = RankKernels(layout, head, (*left_out, of_attention, of_head))
    for sentence in chosen.reasons:
        logger.info("%s", sentence)
    return chosen


def _flash_candidates(setup: LearnerSetup) -> tuple[list[str], list[str]]:
    """Return the kernels of FlashAttention that may be used, and why the others may not.

    Raises:
        ValueError: `learner.attention` names a kernel that cannot run here.
    """
    attention = setup.learner.attention
    if attention == "varlen":
        return [], []
    capability = gpu_capability()
    candidates, left_out = [], []
    for name, kernel in FLASH_KERNELS.items():
        if attention not in ("auto", name):
            continue
        if problem := kernel.problem(capability):
            if attention == name:
                raise ValueError(f"learner.attention={name}: {kernel.title} {problem}; use learner.attention=auto")
            left_out.append(f"attention: {kernel.title} {problem}")
        else:
            candidates.append(name)
    return candidates, left_out


def gpu_capability() -> int:
    """Return the major compute capability of this rank's GPU."""
    return torch.cuda.get_device_capability()[0]


def _layout(setup: LearnerSetup, flash: list[str], verdicts: Mapping[str, str]) -> tuple[Layout, str]:
    if setup.learner.attention == "sdpa" or setup.dtype != "bfloat16":
        return PackedLayout, "attention: torch's scaled_dot_product_attention over sequences of similar length"
    failed = [name for name in flash if verdicts.get(name)]
    for name in failed:
        logger.warning("attention: %s is not used: %s", FLASH_KERNELS[name].title, verdicts[name])
    for name in flash:
        if name not in failed:
            trial = "; its outputs and gradients were tried on this GPU" if name in verdicts else ""
            return FLASH_KERNELS[name].layout, f"attention: {FLASH_KERNELS[name].title}{trial}"
    return VarlenLayout, "attention: torch's FlashAttention-2 for variable lengths"


def _head(setup: LearnerSetup, verdicts: Mapping[str, str]) -> tuple[FusedHead | None, str]:
    if setup.learner.kernels == "eager":
        return None, "output head: PyTorch's operators (learner.kernels=eager)"
    if verdicts.get(HEAD):
        logger.warning("output head: the fused kernels are not used: %s", verdicts[HEAD])
        return None, "output head: PyTorch's operators"
    return compiled_head(), "output head: kernels fused by torch.compile"


def _sizes(setup: LearnerSetup) -> Sizes:
    whole = AutoConfig.from_pretrained(name_of(setup.policy_path), **at_revision(setup.policy_path))
    policy = whole.get_text_config()
    heads: int = policy.num_attention_heads
    return Sizes(
        heads,
        getattr(policy, "num_key_value_heads", None) or heads,
        getattr(policy, "head_dim", None) or policy.hidden_size // heads,
        policy.hidden_size,
        policy.vocab_size,
    )


@functools.cache
def tried(names: tuple[str, ...], sizes: Sizes) -> Mapping[str, str]:
    """Try each kernel in a process of its own. A crash or an illegal access on the GPU then ends only the trial.

    Args:
        names: keys of `FLASH_KERNELS`, or `HEAD`.
        sizes: sizes of the policy.

    Returns:
        For each name why the kernel must not be used; empty if it is right.
    """
    command = [sys.executable, "-m", "grpo.learner.kernel_trial", json.dumps(dataclasses.asdict(sizes))]
    ends = time.monotonic() + TRIAL_S
    with contextlib.ExitStack() as open_files:
        trials = {}
        for name in names:
            said = open_files.enter_context(tempfile.TemporaryFile())
            # Kernels may print, too, so the verdict is the last line.
            trials[name] = subprocess.Popen([*command, name], stdout=said, stderr=subprocess.STDOUT), said
        return {name: _verdict(process, said, ends) for name, (process, said) in trials.items()}


def _verdict(process: subprocess.Popen[bytes], said: IO[bytes], ends: float) -> str:
    """Wait for a trial until the time `ends`; return why its kernel must not be used, or nothing."""
    try:
        status = process.wait(max(0.0, ends - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return f"its trial took more than {TRIAL_S:.0f} s"
    said.seek(0)
    lines = said.read().decode(errors="replace").strip().splitlines()
    last = lines[-1] if lines else "no message"
    if status:
        return f"its trial ended with status {status}: {visible(last)}"
    return "" if last == RIGHT else visible(last)
