"""Skip vLLM's search for cache blocks where a running request already has room, on a CPU.

On a CPU, a block holds 128 tokens, so nearly every token finds room in a block that its request has. vLLM's scheduler
goes through all of its rules to find that out, for each request in each step. For a small policy, this takes about as
long as the attention of a step.
"""

from __future__ import annotations

from typing import Any

from vllm.platforms import current_platform
from vllm.v1.core.kv_cache_manager import KVCacheBlocks, KVCacheManager
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.request import Request, RequestStatus

_vllm_allocate = KVCacheManager.allocate_slots


def _allocate_slots(
    self: KVCacheManager, request: Request, num_new_tokens: int, *more: Any, **named: Any
) -> KVCacheBlocks | None:
    """Return no new blocks if the last block of a running request has room for more than the new tokens.

    Only for full attention without a prefix cache, where a block is neither shared nor freed before the request ends.
    A block that becomes full is left to vLLM, which counts full blocks.
    """
    managers = self.coordinator.single_type_managers
    # vLLM names its number of tokens to look ahead, which is 0 without speculative decoding.
    plain = not more and not any(named.values()) and not self.enable_caching
    if plain and num_new_tokens > 0 and request.status is RequestStatus.RUNNING and len(managers) == 1:
        manager = managers[0]
        blocks = manager.req_to_blocks.get(request.request_id, ())
        if (
            type(manager) is FullAttentionManager
            and request.num_computed_tokens + num_new_tokens < len(blocks) * manager.block_size
        ):
            return self.empty_kv_cache_blocks
    return _vllm_allocate(self, request, num_new_tokens, *more, **named)


def register() -> None:
    """Make vLLM's scheduler use the short way, in this process, on a CPU. Safe to call twice."""
    if current_platform.is_cpu():
        KVCacheManager.allocate_slots = _allocate_slots  # type: ignore[method-assign]
