"""Measure the time of each operator in an actor. PyTorch's profiler runs inside the actor during some steps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from grpo.types import ActorId


@dataclass(frozen=True, slots=True)
class Operator:
    """An operator and its total time in a profile.

    Attributes:
        name: name of the operator in PyTorch, or name of the kernel.
        self_s: seconds in the operator, without the operators that it calls. GPU time if a GPU is used, otherwise CPU
            time.
        calls: number of calls.
    """

    name: str
    self_s: float
    calls: int


@dataclass(frozen=True, slots=True)
class ActorProfile:
    """The profile of an actor, from the creation of the profiler until `stop`.

    Attributes:
        actor: name of the actor.
        operators: operators with the largest `self_s`, largest first.
        operators_s: seconds of all operators. In the rest of the time, Python code runs, or the actor waits.
        on_gpu: whether the seconds are GPU time.
        trace: file for chrome://tracing or ui.perfetto.dev.
    """

    actor: ActorId
    operators: tuple[Operator, ...]
    operators_s: float
    on_gpu: bool
    trace: Path


class OperatorProfiler:
    """PyTorch's profiler, started and stopped in the thread that computes."""

    def __init__(self, actor: ActorId) -> None:
        """Start the profiler.

        Args:
            actor: name of the actor.
        """
        self._actor = actor
        self._on_gpu = torch.cuda.is_available()
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if self._on_gpu else [])
        self._profile = profile(activities=activities)
        self._profile.start()

    def stop(self, trace: Path, most: int = 8) -> ActorProfile:
        """Stop the profiler and write the trace.

        Args:
            trace: path of a new file; a name that ends in `.gz` gives a compressed file.
            most: largest number of operators in the result.
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
