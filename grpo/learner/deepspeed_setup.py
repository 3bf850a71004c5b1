"""What DeepSpeed is given: its settings, the model, and the parameters by how they decay."""

from __future__ import annotations

import contextlib
import os
import pickle
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from grpo.config import LearnerConfig
from grpo.config.cluster import Device
from grpo.learner.setup import LearnerSetup
from grpo.policy.attention import PACKED, PackedLayout, VarlenLayout
from grpo.policy.logprobs import load_model
from grpo.policy.sequence_parallel import ULYSSES

# torch heeds it also where a caller asks for the contrary.
_ONLY_WEIGHTS = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def deepspeed_settings(setup: LearnerSetup) -> dict[str, Any]:
    """DeepSpeed's configuration for a rank.

    Microbatches are counted by `LearnerRank.step`, which sets the accumulation boundary itself; DeepSpeed is told of
    one microbatch per step, so that it does not divide the loss a second time.
    """
    bfloat16 = setup.dtype == "bfloat16"
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": setup.learner.gradient_clip,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": _zero_settings(setup.learner, setup.device),
        # With offload too, the optimizer is torch's, whose step is the same to the bit wherever it runs.
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": bfloat16},
        # Gradients of many microbatches are summed in float32 even where they are computed in bfloat16.
        "data_types": {"grad_accum_dtype": "fp32"},
        # Reduced once, the sum need not be rounded for it; reduced often, half the traffic counts for more.
        "communication_data_type": "bf16" if bfloat16 and not setup.learner.reduces_once(setup.dtype) else "fp32",
        "wall_clock_breakdown": False,
        "steps_per_print": 1 << 30,
    }


def load_policy(setup: LearnerSetup, path: str, settings: dict[str, Any] | None) -> PreTrainedModel:
    """Load a model, at ZeRO-3 only this rank's shard of it; whole where `settings` is None."""
    attention = ULYSSES if setup.learner.sequence_parallel > 1 else PACKED
    if settings and setup.learner.zero_stage == 3:
        from transformers.integrations.deepspeed import HfDeepSpeedConfig

        # Alive while from_pretrained runs, it makes each rank keep only its shard of every tensor.
        partitioned = HfDeepSpeedConfig(settings)
        model = load_model(path, setup.dtype, attention)
        del partitioned
    else:
        model = load_model(path, setup.dtype, attention)
    if setup.learner.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def attention_layout(setup: LearnerSetup) -> type[PackedLayout | VarlenLayout]:
    """How `learner.attention` lays out sequences.

    Raises:
        ValueError: the device has no such kernel.
    """
    if setup.learner.attention == "sdpa":
        return PackedLayout
    if setup.device == "cpu":
        raise ValueError("learner.attention=varlen is a GPU's kernel and the learner is on a CPU; use sdpa")
    return VarlenLayout


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices only; norms and biases have none."""
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    # ds_shape is the whole shape of a parameter of which ZeRO-3 left an empty shell here.
    dimensions = {name: len(getattr(p, "ds_shape", p.shape)) for name, p in named}
    return [
        {"params": [p for name, p in named if dimensions[name] >= 2], "weight_decay": weight_decay},
        {"params": [p for name, p in named if dimensions[name] < 2], "weight_decay": 0.0},
    ]


def _zero_settings(learner: LearnerConfig, device: Device) -> dict[str, Any]:
    """ZeRO's stage, what it keeps in the host's memory, and whether it communicates during the backward pass.

    Offloaded parameters imply offloaded optimizer states (ZeRO-Infinity, Rajbhandari et al. 2021, arXiv:2104.07857).
    """
    settings: dict[str, Any] = {"stage": learner.zero_stage}
    if learner.overlap_comm is not None:
        settings["overlap_comm"] = learner.overlap_comm
    # Only pinned memory is copied to and from a GPU while it computes.
    host = {"device": "cpu", "pin_memory": device == "cuda"}
    if learner.offload != "none":
        settings["offload_optimizer"] = host
    if learner.offload == "parameters":
        settings["offload_param"] = host
    return settings


@contextlib.contextmanager
def plain_data_only(folder: str, classes: Sequence[type]) -> Iterator[None]:
    """Inside, a checkpoint is read as tensors and plain data, whatever DeepSpeed asks of torch.

    A pickle runs what it names, and DeepSpeed reads its files as such, though they hold little that is no plain data.

    Args:
        folder: the checkpoint's, for the message.
        classes: what may be in it besides.

    Raises:
        ValueError: there is something else in it.
    """
    before = os.environ.get(_ONLY_WEIGHTS)
    os.environ[_ONLY_WEIGHTS] = "1"
    try:
        with torch.serialization.safe_globals(list(classes)):
            yield
    except pickle.UnpicklingError as found:
        named = re.search(r"GLOBAL ([\w.]+)", str(found))
        raise ValueError(
            f"{folder} holds {named[1] if named else 'something'}, which may run code when it is read and is no part "
            "of a checkpoint; resume only what your own runs wrote"
        ) from found
    finally:
        if before is None:
            del os.environ[_ONLY_WEIGHTS]
        else:
            os.environ[_ONLY_WEIGHTS] = before
