"""Which operators an actor's time goes to: PyTorch's profiler around some steps, inside the actor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from grpo.types import ActorId


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator, over the whole profile.

    Attributes:
        name: PyTorch's, or the kernel's.
        self_s: seconds in it, without those in operators that it calls; on a GPU of the device, else of the processor.
        calls: how often.
    """

    name: str
    self_s: float
    calls: int


@dataclass(frozen=True, slots=True)
class ActorProfile:
    """What an actor did between `start` and `stop`.

    Attributes:
        actor: who it is.
        operators: those with the most time of their own, most first.
        operators_s: the seconds of all operators; what else there was is Python, waiting, and other processes.
        on_gpu: whether seconds are of the device.
        trace: a file for chrome://tracing or ui.perfetto.dev.
    """

    actor: ActorId
    operators: tuple[Operator, ...]
    operators_s: float
    on_gpu: bool
    trace: Path


class OperatorProfiler:
    """PyTorch's profiler, started and stopped in the thread that computes."""

    def __init__(self, actor: ActorId) -> None:
        """Start.

        Args:
            actor: whose work this is.
        """
        self._actor = actor
        self._on_gpu = torch.cuda.is_available()
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if self._on_gpu else [])
        self._profile = profile(activities=activities)
        self._profile.start()

    def stop(self, trace: Path, most: int = 8) -> ActorProfile:
        """End it and write the trace.

        Args:
            trace: a new file; one that ends in `.gz` is compressed.
            most: operators to name.
        """
        self._profile.stop()
        trace.parent.mkdir(parents=True, exist_ok=True)
        self._profile.export_chrome_trace(str(trace))
        counted = "self_device_time_total" if self._on_gpu else "self_cpu_time_total"
        averages = self._profile.key_averages()
        operators = [Operator(operator.key, getattr(operator, counted) / 1e6, operator.count) for operator in averages]
        operators.sort(key=lambda operator: -operator.self_s)
        total = sum(operator.self_s for operator in operators)
        return ActorProfile(self._actor, tuple(operators[:most]), total, self._on_gpu, trace)
