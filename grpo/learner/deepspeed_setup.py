"""The inputs of DeepSpeed: its settings, the model, and the parameters with and without weight decay."""

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
from grpo.policy.attention import PACKED
from grpo.policy.kernels import chosen_kernels, patch_kernels
from grpo.policy.logprobs import load_model
from grpo.policy.recompute import recompute
from grpo.policy.scores import load_scorer
from grpo.policy.sequence_parallel import ULYSSES

# If this variable is set, torch loads only tensors and plain data, even if a caller allows other objects.
_ONLY_WEIGHTS = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def deepspeed_settings(setup: LearnerSetup) -> dict[str, Any]:
    """Return DeepSpeed's configuration for a rank.

    `LearnerRank.step` counts microbatches and sets the accumulation boundary. DeepSpeed's own setting is one
    microbatch per step, so that DeepSpeed does not divide the loss a second time.
    """
    bfloat16 = setup.dtype == "bfloat16"
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": setup.learner.gradient_clip,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": _zero_settings(setup.learner, setup.device),
        # Offload also uses torch's optimizer, because its step gives the same bits on every device.
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": bfloat16},
        # Gradients of many microbatches are summed in float32 even if they are computed in bfloat16.
        "data_types": {"grad_accum_dtype": "fp32"},
        # A single reduction per step uses float32. Many reductions use bfloat16, because bfloat16 halves the traffic.
        # With many reductions, the traffic matters more than rounding.
        "communication_data_type": "bf16" if bfloat16 and not setup.learner.reduces_once(setup.dtype) else "fp32",
        "wall_clock_breakdown": False,
        "steps_per_print": 1 << 30,
    }


def load_policy(setup: LearnerSetup, path: str, settings: dict[str, Any] | None) -> PreTrainedModel:
    """Load a model; if ZeRO-3 is used, load only this rank's shard. If `settings` is None, load the whole model."""
    load = load_scorer if setup.scores else load_model
    attention = ULYSSES if setup.learner.sequence_parallel > 1 else PACKED
    if settings and setup.learner.zero_stage == 3:
        from transformers.integrations.deepspeed import HfDeepSpeedConfig

        # While this object exists, from_pretrained keeps only this rank's shard of every tensor.
        partitioned = HfDeepSpeedConfig(settings)
        model = load(path, setup.dtype, attention)
        del partitioned
    else:
        model = load(path, setup.dtype, attention)
    if chosen_kernels(setup.learner.kernels, setup.device, model.config.model_type) == "liger":
        patch_kernels(model)
    recompute(model, setup.learner.gradient_checkpointing)
    return model


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the parameters in two groups: matrices get weight decay; norms and biases get no weight decay."""
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    # With ZeRO-3 a parameter is empty here, and ds_shape is its full shape.
    dimensions = {name: len(getattr(p, "ds_shape", p.shape)) for name, p in named}
    return [
        {"params": [p for name, p in named if dimensions[name] >= 2], "weight_decay": weight_decay},
        {"params": [p for name, p in named if dimensions[name] < 2], "weight_decay": 0.0},
    ]


def _zero_settings(learner: LearnerConfig, device: Device) -> dict[str, Any]:
    """Return ZeRO's stage, its offload to host memory, and whether ZeRO communicates during the backward pass.

    Offloaded parameters imply offloaded optimizer states (ZeRO-Infinity, Rajbhandari et al. 2021, arXiv:2104.07857).
    """
    settings: dict[str, Any] = {"stage": learner.zero_stage}
    if learner.overlap_comm is not None:
        settings["overlap_comm"] = learner.overlap_comm
    # Only pinned memory can be copied to and from a GPU while the GPU computes.
    host = {"device": "cpu", "pin_memory": device == "cuda"}
    if learner.offload != "none":
        settings["offload_optimizer"] = host
    if learner.offload == "parameters":
        settings["offload_param"] = host
    return settings


@contextlib.contextmanager
def plain_data_only(folder: str, classes: Sequence[type]) -> Iterator[None]:
    """Inside the block, torch reads a checkpoint as tensors and plain data only, even if DeepSpeed allows more.

    DeepSpeed reads its files as pickles. A pickle can run any function that it names.

    Args:
        folder: the checkpoint's folder, for the error message.
        classes: classes that are also allowed in the checkpoint.

    Raises:
        ValueError: the checkpoint holds a class or function that is not allowed.
    """
    before = os.environ.get(_ONLY_WEIGHTS)
    os.environ[_ONLY_WEIGHTS] = "1"
    try:
        with torch.serialization.safe_globals(list(classes)):
            yield
    except pickle.UnpicklingError as failure:
        name = re.search(r"GLOBAL ([\w.]+)", str(failure))
        raise ValueError(
            f"{folder} holds {name[1] if name else 'an object'}, which may run code when it is read and is not part of "
            "a checkpoint; resume only from checkpoints of your runs"
        ) from failure
    finally:
        if before is None:
            del os.environ[_ONLY_WEIGHTS]
        else:
            os.environ[_ONLY_WEIGHTS] = before
