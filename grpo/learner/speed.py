"""How fast a learner's optimizer step was, and how much of its devices it used."""

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
    """Measures one rank's optimizer steps; ranks put their measurements together by a sum and a maximum."""

    def __init__(
        self, policy: PreTrainedConfig, device: torch.device, peak_tflops: float | None, *, frozen: bool
    ) -> None:
        """Know the policy's shape and the device's peak.

        Args:
            policy: the policy's config.
            device: where the step runs.
            peak_tflops: what the device can do at most, TFLOP/s; None looks a GPU up by its name.
            frozen: only adapters are trained.
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
            float64 [seconds, bytes at the peak], of which ranks take the maximum.
        """
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            peak_bytes = torch.cuda.max_memory_allocated(self._device)
        else:
            # The process's own, from its start on, as nothing on a CPU counts from a given moment.
            peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        seconds = time.perf_counter() - self._started
        tokens = sum(len(one.input_ids_N) for one in microbatches)
        flops = sum(self._flops.training(one, frozen=self._frozen) for one in microbatches) if self._flops else 0.0
        return (
            torch.tensor([tokens, flops], dtype=torch.float64),
            torch.tensor([seconds, peak_bytes], dtype=torch.float64),
        )

    def metrics(self, summed: Tensor, largest: Tensor, ranks: int) -> dict[str, float]:
        """Metrics of a step from what `stop` gave, put together over all ranks; no key for what is not known."""
        tokens, flops = summed.tolist()
        seconds, peak_bytes = largest.tolist()
        metrics = {"compute_s": seconds, "tokens_per_s": tokens / seconds, "peak_memory_gib": peak_bytes / GIB}
        if flops:
            metrics["tflops_per_s"] = flops / seconds / ranks / 1e12
            if self._peak:
                metrics["mfu"] = flops / seconds / ranks / self._peak
        return metrics
