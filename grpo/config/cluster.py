"""Sections of the configuration on Ray, its devices, and a run that does not move."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from grpo.config.section import Positive, Seconds, Section


class ClusterConfig(Section):
    """Ray and devices."""

    device: Literal["auto", "cpu", "gpu"] = "auto"
    share_gpus: bool = False
    """Learner rank i and generator i share one GPU; lower generator.gpu_memory_share to what the learner leaves."""
    sleep: bool = False
    """With share_gpus, take turns in the GPU's memory: optimizer states are in the host's memory while completions are
    sampled, the generator's weights and cache while the policy is updated."""
    address: str | None = None
    """Address of a running Ray cluster (`auto` finds a local one); None starts one for this run, on loopback."""
    start_deadline_s: Seconds = 900.0
    """Longest wait for all actors to be up."""
    step_deadline_s: Seconds = 1800.0
    """Longest wait for one learner step or checkpoint."""
    max_restarts: Annotated[int, Field(ge=0)] = 20
    """How often a run goes on from its newest checkpoint by itself after a process or a node died; 0: it stops."""
    max_fruitless_restarts: Positive = 3
    """It stops after so many restarts in a row between which no newer checkpoint was written."""


class WatchdogConfig(Section):
    """Notices that nothing moves: no finished group, no learner step, no part of a weight push."""

    stall_s: Seconds = 900.0
    """Seconds without progress after which the Python stacks of driver and actors are written to `stalls/`. Longer than
    the longest single wait of a healthy run: a learner step, a checkpoint, the start of the engines."""
    action: Literal["warn", "stop", "restart"] = "warn"
    """What follows: a line only, the end of the run, or a restart from the newest checkpoint."""


Device = Literal["cpu", "cuda"]
