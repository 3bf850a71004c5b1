"""A policy small enough to be made and run in a test."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from grpo.attention import PACKED
from grpo.config import NewPolicy
from grpo.policy import make_policy

TINY = NewPolicy(hidden_size=16, layers=2, heads=4, key_value_heads=2, intermediate_size=24, max_position=128)


def make_tiny_policy(folder: Path, new: NewPolicy = TINY, seed: int = 0) -> Path:
    """Make one in `folder`, for a test that reads it from there."""
    make_policy(new, [], folder, seed)
    return folder


def load_tiny_model(folder: Path, attention: str = PACKED) -> PreTrainedModel:
    """Its model, in float64 so that equal means equal, with weights large enough to matter."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation=attention)
    with torch.no_grad():
        for parameter in model.parameters():
            # Fresh weights are so small that attention barely looks at anything.
            parameter.mul_(8.0 if parameter.dim() > 1 else 1.0)
    return model
