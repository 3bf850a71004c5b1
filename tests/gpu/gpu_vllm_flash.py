"""FlashAttention 4 from vLLM's GPU build, with the results that torch expects of it.

torch imports this module by its name (`torch.nn.attention._fa4.register_flash_attention_fa4`). It takes two results of
the forward pass, outputs and log-sum-exp; the functions in vLLM's build return two more.
"""

from __future__ import annotations

import importlib
from typing import Any

from torch import Tensor

SOURCE = "vllm.vllm_flash_attn.cute.interface"


def _flash_attn_fwd(*arguments: Any, **named: Any) -> tuple[Tensor, Tensor]:
    output, log_sum, *_ = importlib.import_module(SOURCE)._flash_attn_fwd(*arguments, **named)
    return output, log_sum


def _flash_attn_bwd(*arguments: Any, **named: Any) -> tuple[Tensor, Tensor, Tensor]:
    of_query, of_key, of_value, *_ = importlib.import_module(SOURCE)._flash_attn_bwd(*arguments, **named)
    return of_query, of_key, of_value
