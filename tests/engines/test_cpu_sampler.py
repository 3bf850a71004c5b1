"""Seeds in blocks give the samples of vLLM's own sampler."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor

from grpo.generator import cpu_sampler
from grpo.generator.cpu_sampler import BLOCK, SeedBlocks

pytestmark = pytest.mark.slow

ROWS, VOCABULARY = 5, 40


def generators(*rows: int) -> dict[int, torch.Generator]:
    return {row: torch.Generator().manual_seed(100 + row) for row in rows}


@pytest.mark.parametrize("mode", ["raw_logprobs", "processed_logprobs", "processed_logits"])
@pytest.mark.parametrize("limits", ["none", "top-k and top-p"])
def test_samples_are_those_of_vllm(mode: str, limits: str) -> None:
    """Over more steps than a block has seeds, with rows that move and a row without a seed."""
    k = torch.full((ROWS,), 7) if limits != "none" else None
    p = torch.linspace(0.4, 1.0, ROWS) if limits != "none" else None
    found: list[list[Tensor]] = []
    for forward in (cpu_sampler._vllm_forward, cpu_sampler._forward_cpu):
        sampler = cpu_sampler.TopKTopPSampler(mode)
        seeded, noise, outputs = generators(*range(ROWS)), torch.Generator().manual_seed(0), []
        for step in range(2 * BLOCK + 3):
            # A request whose neighbour ends moves to another row, with its generator.
            rows = {(row + step) % ROWS: one for row, one in seeded.items()}
            logits = 3 * torch.randn(ROWS, VOCABULARY, generator=noise)
            sampled, returned = forward(sampler, logits, rows, k, p)
            outputs += [sampled] if returned is None else [sampled, returned]
        found.append(outputs)
    assert all(map(torch.equal, *found)) and len(found[0]) == len(found[1])
    assert len(set(torch.cat(found[0][:: 1 if mode == "raw_logprobs" else 2]).tolist())) > 10


def test_rows_without_a_seed_differ_from_step_to_step() -> None:
    blocks, seeded = SeedBlocks(), generators(1)
    first, second = (blocks.next_seeds(3, seeded).tolist() for _ in range(2))
    assert len({*first, *second}) == 6
    expected = torch.randint(0, 2**31, (2,), generator=generators(1)[1]).tolist()
    assert [first[1], second[1]] == expected


def test_a_dropped_generator_is_forgotten() -> None:
    blocks, seeded = SeedBlocks(), generators(0, 1)
    blocks.next_seeds(2, seeded)
    assert len(blocks._streams) == 2
    del seeded[0]
    gc.collect()
    assert len(blocks._streams) == 1


def test_vllm_takes_the_sampler_on_a_cpu() -> None:
    before = cpu_sampler.TopKTopPSampler.forward_cpu
    try:
        cpu_sampler.register()
        cpu_sampler.register()
        assert cpu_sampler.TopKTopPSampler("raw_logprobs").forward.__func__ is cpu_sampler._forward_cpu
    finally:
        cpu_sampler.TopKTopPSampler.forward_cpu = before
