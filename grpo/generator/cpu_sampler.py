"""Draw the seeds of the sampler's noise in blocks, on a CPU.

vLLM's sampler for CPUs takes one seed from the generator of each request in each step, with three calls of torch. For
a small policy, these calls take as long as a matrix product. Here a generator is asked for a block of seeds at once.
The seeds, and so the samples, stay the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from weakref import WeakKeyDictionary

import torch
from torch import Generator, Tensor
from vllm import _custom_ops  # noqa: F401 (loads the compiled operators)
from vllm.platforms import current_platform
from vllm.v1.sample.ops import topk_topp_sampler
from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler

# vLLM draws each seed from [0, SEEDS).
SEEDS = 2**31
# Seeds of a block. A short completion leaves most of its last block unused.
BLOCK = 32

_vllm_forward = TopKTopPSampler.forward_cpu


class SeedBlocks:
    """The seeds of the requests' generators. A generator that vLLM has dropped is forgotten."""

    def __init__(self) -> None:
        """Begin without generators."""
        self._streams: WeakKeyDictionary[Generator, Iterator[int]] = WeakKeyDictionary()

    def next_seeds(self, rows: int, generators: Mapping[int, Generator]) -> Tensor:
        """Return the next seed of each row, int64 [rows]. A row without a generator gets a seed of torch's generator.

        Args:
            rows: number of rows.
            generators: generator of a row, by the row's number.
        """
        streams = self._streams
        seeds = [0] * rows if len(generators) == rows else torch.randint(0, SEEDS, (rows,)).tolist()
        for row, generator in generators.items():
            stream = streams.get(generator)
            if stream is None:
                stream = streams[generator] = iter(())
            seed = next(stream, None)
            if seed is None:
                stream = streams[generator] = iter(torch.randint(0, SEEDS, (BLOCK,), generator=generator).tolist())
                seed = next(stream)
            seeds[row] = seed
        return torch.tensor(seeds, dtype=torch.long)


_BLOCKS = SeedBlocks()


def _forward_cpu(
    self: TopKTopPSampler, logits: Tensor, generators: dict[int, Generator], k: Tensor | None, p: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Sample as vLLM's `forward_cpu` does, with seeds from blocks. `logits` may be overwritten."""
    if self.use_fp64_gumbel:
        return _vllm_forward(self, logits, generators, k, p)
    logits = topk_topp_sampler.apply_top_k_top_p(logits, k, p)
    returned = None
    if self.logprobs_mode == "processed_logits":
        returned = logits
    elif self.logprobs_mode == "processed_logprobs":
        returned = logits.log_softmax(dim=-1, dtype=torch.float32)
    seeds = _BLOCKS.next_seeds(len(logits), generators)
    return torch.ops._C.fused_gumbel_argmax(logits.to(torch.float32), seeds), returned


def register() -> None:
    """Make vLLM's sampler draw seeds in blocks, in this process, on a CPU. Safe to call twice."""
    # A build of vLLM for another processor has another sampler.
    if current_platform.is_cpu() and hasattr(torch.ops._C, "fused_gumbel_argmax"):
        TopKTopPSampler.forward_cpu = _forward_cpu  # type: ignore[method-assign]
