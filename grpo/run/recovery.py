"""Automatic recovery: a run restarts from its newest checkpoint after a process died or hung."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from grpo.cluster import cluster
from grpo.cluster.activity import driving
from grpo.cluster.claim import plan_of
from grpo.cluster.failures import ProcessDied, Stalled
from grpo.cluster.session import on_one_device
from grpo.config import DpoConfig, JobConfig, RewardConfig, SftConfig, TrainConfig
from grpo.report.closing_table import ClosingTable
from grpo.report.logs import driver_log
from grpo.report.progress import Progress
from grpo.run import checkpoint
from grpo.run.folder import note_fault, refuse_other_run
from grpo.run.watchdog import Watchdog, WatchedProgress
from grpo.types import Phase

Settings = TypeVar("Settings", TrainConfig, SftConfig, DpoConfig, RewardConfig)


@on_one_device()
def with_recovery(
    settings: Settings, open_display: Callable[[], Progress], job: Callable[[Settings, Progress], ClosingTable]
) -> ClosingTable:
    """Train; after the death of a process or a node, continue from the newest checkpoint.

    A group of ranks cannot continue after the loss of a rank, so a restart closes everything and opens it again. Only
    `ProcessDied` and, if `watchdog.action=restart` is set, `Stalled` cause a restart. An error of the run
    itself (config, weights, verifiers, disk) stops the run, because the error would happen again after a restart.

    Args:
        settings: the run's settings; a new run that dies before its first checkpoint starts from the beginning.
        open_display: function that opens a display; each start calls it.
        job: function that trains.

    Raises:
        ProcessDied: processes died more often than `cluster.max_restarts` or `cluster.max_fruitless_restarts` allow.
        Stalled: the run stalled more often than these limits allow, or `watchdog.action=stop` is set.
        TimeoutError: the nodes that the run needs did not come back within `cluster.start_deadline_s`.
        Exception: any other error that stops a run.
    """
    refuse_other_run(settings.run)
    # The driver writes one log for all starts. Each actor writes a separate log.
    with driver_log(Path(settings.run.folder), settings.report.log_level):
        return _start_again_and_again(settings, open_display, job)


def _start_again_and_again(
    settings: Settings, open_display: Callable[[], Progress], job: Callable[[Settings, Progress], ClosingTable]
) -> ClosingTable:
    folder, bounds = Path(settings.run.folder), _Bounds()
    message: str | None = None
    while True:
        before = _newest_step(folder)
        display = open_display()
        if message:
            display.show(message)
        try:
            with (
                driving() as activity,
                Watchdog(settings.watchdog, folder, activity, display.show, settings.cluster.start_deadline_s),
            ):
                if message:
                    _wait_for_nodes(settings, display)
                return job(settings, WatchedProgress(display, activity))
        except (ProcessDied, Stalled) as failure:
            display.close()
            after = _newest_step(folder)
            bounds.count(progressed=after != before)
            refusal = bounds.refusal(settings, after, failure)
            message = f"{failure}; {refusal or _outlook(after, bounds, settings)}"
            note_fault(folder, message)
            if refusal:
                raise type(failure)(message) from failure
            # The folder now holds this run's output, so the next start may resume from it.
            settings = settings.model_copy(update={"run": settings.run.model_copy(update={"resume": "auto"})})


@dataclass
class _Bounds:
    """Count the restarts of a run."""

    restarts: int = 0
    fruitless: int = 0

    def count(self, *, progressed: bool) -> None:
        self.restarts += 1
        self.fruitless = 0 if progressed else self.fruitless + 1

    def refusal(self, settings: JobConfig, newest: int | None, failure: Exception) -> str | None:
        """Return the cause and advice if no further restart is allowed; None if a restart is allowed."""
        limits, schedule = settings.cluster, "train" if isinstance(settings, TrainConfig) else settings.job
        go_on = "look at what died, then continue with resume=auto"
        if isinstance(failure, Stalled) and settings.watchdog.action == "stop":
            return f"stopped because of watchdog.action=stop; {go_on}"
        if self.restarts > limits.max_restarts:
            return f"not started again: cluster.max_restarts={limits.max_restarts} is used up; {go_on}"
        if self.fruitless > limits.max_fruitless_restarts:
            return (
                f"not started again: no checkpoint newer than {_named(newest)} was written between the last "
                f"{self.fruitless} deaths (cluster.max_fruitless_restarts); {go_on}, and lower "
                f"{schedule}.checkpoint_every if the run died between two checkpoints"
            )
        return None


def _outlook(newest: int | None, bounds: _Bounds, settings: JobConfig) -> str:
    return f"going on from {_named(newest)} (restart {bounds.restarts} of {settings.cluster.max_restarts} at most)"


def _named(newest: int | None) -> str:
    return "the start, as there is no checkpoint yet" if newest is None else f"the checkpoint of step {newest}"


def _newest_step(folder: Path) -> int | None:
    newest = checkpoint.latest(folder)
    return newest.step if newest else None


def _wait_for_nodes(settings: JobConfig, display: Progress) -> None:
    """Wait for the nodes of an existing cluster, because lost nodes may need time to come back."""
    if settings.cluster.address:
        with display.phase(Phase.START, "waiting for the nodes that the run needs"):
            cluster.wait_for_nodes(settings.cluster, plan_of(settings))
