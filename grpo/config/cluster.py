"""Sections of the configuration for Ray, devices, and the watchdog."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from grpo.config.section import Positive, Seconds, Section


class ClusterConfig(Section):
    """Ray and devices."""

    device: Literal["auto", "cpu", "gpu"] = "auto"
    """Device of learner and generators; `auto` takes GPUs if there are some and this environment has the GPU builds of
    torch and vLLM (`make install-gpu`)."""
    share_gpus: bool = False
    """Learner rank i and generator i share one GPU. Lower generator.gpu_memory_share to what the learner does not
    need."""
    sleep: bool = False
    """With share_gpus, learner and generators take turns in the GPU's memory. Optimizer states are in the host's memory
    while completions are sampled; the generator's weights and cache are there while the policy is updated."""
    address: str | None = None
    """Address of a running Ray cluster; `auto` finds a local cluster. None starts a cluster for this run, on
    loopback."""
    check_memory: Literal["refuse", "warn"] = "refuse"
    """Fate of a job that needs more memory than this machine has, by the plan that `grpo check` prints. `refuse`: it
    does not start. `warn`: `grpo check` warns, and the job starts. Of a running cluster (`address`) nothing is known
    before."""
    start_deadline_s: Seconds = 900.0
    """Longest wait until all actors are up, in seconds."""
    step_deadline_s: Seconds = 1800.0
    """Longest wait for one learner step or checkpoint, in seconds."""
    max_restarts: Annotated[int, Field(ge=0)] = 20
    """Number of times that a run continues by itself from its newest checkpoint after a process or a node died. With 0
    it stops."""
    max_fruitless_restarts: Positive = 3
    """Number of restarts in a row without a newer checkpoint, after which the run stops."""

    def longest_wait_s(self, *others: float) -> float:
        """Return a limit for torch's collectives that is a minute above all deadlines of this section and `others`.

        NCCL's own limit is 10 minutes, after which it ends the process. So it would end ranks that wait for a slow
        rank, before the deadline that the user set.
        """
        return max(self.start_deadline_s, self.step_deadline_s, *others) + 60.0


class WatchdogConfig(Section):
    """The watchdog notices that nothing moves: no finished group, no learner step, no part of a weight push."""

    stall_s: Seconds = 900.0
    """Seconds without progress, after which the Python stacks of driver and actors are written to `stalls/`. Choose a
    value above the longest single wait of a healthy run: a learner step, a checkpoint, the start of the engines."""
    action: Literal["warn", "stop", "restart"] = "warn"
    """Action after that: `warn` prints a line, `stop` ends the run, `restart` continues from the newest checkpoint."""


Device = Literal["cpu", "cuda"]
