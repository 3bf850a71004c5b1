"""The short way to a token's cache slot gives the blocks of vLLM's own way."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from vllm.sampling_params import SamplingParams
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.request import Request, RequestStatus

from grpo.generator import cpu_slots

pytestmark = pytest.mark.slow

BLOCK, BLOCKS, LONGEST = 4, 12, 40


def manager() -> KVCacheManager:
    spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=8, dtype=torch.float32)
    settings = KVCacheConfig(BLOCKS, [], [KVCacheGroupSpec(["layer"], spec)])
    return KVCacheManager(settings, LONGEST, BLOCK, BLOCK, enable_caching=False)


def request(name: int, prompt: int) -> Request:
    return Request(str(name), list(range(prompt)), SamplingParams(max_tokens=30), None)


def blocks_of(allocate: Any, seed: int) -> list[Any]:
    """Block ids and free blocks while requests come, grow, are refused for want of blocks, and end."""
    drawn, kept, running, told = random.Random(seed), manager(), [], []
    for step in range(60):
        if len(running) < 4 and drawn.random() < 0.5:
            one = request(step, drawn.randint(1, 9))
            if allocate(kept, one, one.num_tokens, has_scheduled_reqs=bool(running)) is not None:
                one.status, one.num_computed_tokens = RequestStatus.RUNNING, one.num_tokens
                one.append_output_token_ids(7)
                running.append(one)
        for one in list(running):
            new = allocate(kept, one, 1, num_lookahead_tokens=0)
            told.append((one.request_id, new and new.get_block_ids(), kept.get_block_ids(one.request_id)))
            if new is None or drawn.random() < 0.1 or one.num_tokens >= LONGEST - 1:
                kept.free(one)
                running.remove(one)
                continue
            one.num_computed_tokens += 1
            one.append_output_token_ids(7)
        told.append(kept.block_pool.get_num_free_blocks())
    return told


def test_blocks_are_those_of_vllm() -> None:
    for seed in range(20):
        expected = blocks_of(cpu_slots._vllm_allocate, seed)
        assert blocks_of(cpu_slots._allocate_slots, seed) == expected
        assert len(expected) > 80


def test_most_tokens_take_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def vllm(kept: KVCacheManager, one: Request, *more: Any, **named: Any) -> Any:
        asked.append(one.num_computed_tokens)
        return original(kept, one, *more, **named)

    original = cpu_slots._vllm_allocate
    monkeypatch.setattr(cpu_slots, "_vllm_allocate", vllm)
    kept, one = manager(), request(0, 5)
    cpu_slots._allocate_slots(kept, one, 5)
    one.status, one.num_computed_tokens = RequestStatus.RUNNING, 5
    for _ in range(10):
        cpu_slots._allocate_slots(kept, one, 1)
        one.num_computed_tokens += 1
    # The prompt, the tokens that fill a block, and those that need a new one.
    assert asked == [0, 7, 8, 11, 12]
    # With a prefix cache, and for a request that does not run, vLLM decides.
    asked.clear()
    one.status = RequestStatus.PREEMPTED
    cpu_slots._allocate_slots(kept, one, 1)
    monkeypatch.setattr(cpu_slots, "_vllm_allocate", lambda kept, one, *more, **named: asked.append(-1))
    one.status, kept.enable_caching = RequestStatus.RUNNING, True
    cpu_slots._allocate_slots(kept, one, 1)
    assert asked == [15, -1]


def test_vllm_takes_the_short_way_on_a_cpu() -> None:
    before = KVCacheManager.allocate_slots
    try:
        cpu_slots.register()
        cpu_slots.register()
        assert KVCacheManager.allocate_slots is cpu_slots._allocate_slots
    finally:
        KVCacheManager.allocate_slots = before
