"""Speed of a learner's optimizer step, and its use of the devices."""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from grpo.algorithm.packing import Microbatch
from grpo.policy.flops import PolicyFlops, peak_flops

GIB = 1 << 30


class SpeedMeter:
    """Measures one rank's optimizer steps. The caller combines the ranks' results by a sum and a maximum."""

    def __init__(
        self, policy: PreTrainedConfig, device: torch.device, peak_tflops: float | None, *, frozen: bool
    ) -> None:
        """Read the policy's shape and the device's peak speed.

        Args:
            policy: the policy's config.
            device: device of the step.
            peak_tflops: peak speed of the device, in TFLOP/s; if None, the GPU's name selects a known value.
            frozen: whether only adapters are trained.
        """
        self._frozen = frozen
        self._flops = PolicyFlops.of_known(policy)
        self._device = device
        self._peak = peak_tflops * 1e12 if peak_tflops else None
        if self._peak is None and device.type == "cuda":
            self._peak = peak_flops(torch.cuda.get_device_name(device))

    def start(self) -> None:
        """Begin a step."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        self._started = time.perf_counter()

    def stop(self, microbatches: Sequence[Microbatch]) -> tuple[Tensor, Tensor]:
        """End a step.

        Returns:
            float64 [computed tokens, FLOPs], to be summed over ranks.
            float64 [seconds, bytes of memory at the peak], of which the maximum over ranks is taken.
        """
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            peak_bytes = torch.cuda.max_memory_allocated(self._device)
        else:
            # A CPU has no peak counter that can be reset, so this value is the peak of the process since its start.
            peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        seconds = time.perf_counter() - self._started
        tokens = sum(len(batch.input_ids_N) for batch in microbatches)
        flops = sum(self._flops.training(batch, frozen=self._frozen) for batch in microbatches) if self._flops else 0.0
        return (
            torch.tensor([tokens, flops], dtype=torch.float64),
            torch.tensor([seconds, peak_bytes], dtype=torch.float64),
        )

    def metrics(self, summed: Tensor, largest: Tensor, ranks: int) -> dict[str, float]:
        """Return a step's metrics from the combined results of `stop` on all ranks. Unknown values have no key."""
        tokens, flops = summed.tolist()
        seconds, peak_bytes = largest.tolist()
        metrics = {"compute_s": seconds, "tokens_per_s": tokens / seconds, "peak_memory_gib": peak_bytes / GIB}
        if flops:
            metrics["tflops_per_s"] = flops / seconds / ranks / 1e12
            if self._peak:
                metrics["mfu"] = flops / seconds / ranks / self._peak
        return metrics
