"""The loop of the jobs that learn from rows: `grpo sft`, `grpo dpo` and `grpo reward`. Nothing is sampled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from grpo import files
from grpo.cluster.claim import plan_of
from grpo.cluster.cluster import Cluster
from grpo.cluster.learner_group import LearnerGroup
from grpo.config import DpoConfig, FineTuningConfig, RewardConfig
from grpo.learner.setup import LearnerSetup
from grpo.policy.adapters import require_peft
from grpo.policy.stored import check_positions
from grpo.report import run_files
from grpo.report.closing_table import ClosingTable
from grpo.report.progress import Progress
from grpo.report.recorder import RunRecorder
from grpo.report.timeline import DRIVER
from grpo.report.trackers import open_trackers, require_trackers
from grpo.run import checkpoint
from grpo.run.folder import open_folder, skipped_folder
from grpo.run.interrupt import Interrupt
from grpo.run.stopwatch import Stopwatch
from grpo.types import Phase
from grpo.view.page import write_report


class Lessons(Protocol):
    """The rows of a job, and what an optimizer step makes of them."""

    def begin(self, learner: LearnerGroup) -> None:
        """Prepare for the first step of a run, before the policy changes."""

    def resume(self, state: Mapping[str, Any]) -> None:
        """Continue from the driver's state in a checkpoint.

        Raises:
            ValueError: the data have changed.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return the driver's state for a checkpoint."""

    def step(self, learner: LearnerGroup, step: int, watch: Stopwatch) -> tuple[dict[str, float], int]:
        """Do the optimizer step of the number `step`, counted from 1; return its metrics and its number of tokens."""

    def finish(self, learner: LearnerGroup, folder: Path) -> None:
        """Add to `folder`, which holds the trained policy, what belongs to it."""


def fine_tune(
    settings: FineTuningConfig,
    progress: Progress,
    starting_policy: Callable[[checkpoint.Checkpoint | None], str],
    read_lessons: Callable[[str], Lessons],
) -> ClosingTable:
    """Run a job, or continue it. The run writes the policy in Hugging Face format to `policy/` in the run's folder.

    Args:
        settings: configuration of the job.
        progress: display.
        starting_policy: function that returns the folder or hub name of the policy to start from. Its argument is the
            checkpoint to continue from, if there is a checkpoint.
        read_lessons: function that reads the data for this policy.

    Raises:
        ValueError: the config does not fit the data, the policy, the folder or the cluster.
        TimeoutError: a deadline passed; the message names the operation.
    """
    require_peft(settings.learner)
    require_trackers(settings.report.trackers)
    check_positions(settings)
    folder, schedule = Path(settings.run.folder), settings.schedule
    saved = open_folder(settings.run, settings, progress)
    start = starting_policy(saved)
    with progress.phase(Phase.DATA, "reading the data"):
        lessons = read_lessons(start)
    trackers = open_trackers(
        settings.report.trackers, folder, config=settings.model_dump(mode="json"), project=settings.report.project
    )
    with (
        RunRecorder(folder, trackers=trackers, progress=progress, total_steps=schedule.steps) as report,
        Interrupt() as interrupt,
    ):
        with progress.phase(Phase.START, "starting Ray"):
            cluster = Cluster(settings.cluster, plan_of(settings))
        with cluster:
            with progress.phase(Phase.START, f"starting {settings.learner.ranks} learner rank(s)"):
                learner = cluster.start_learner(_setups(settings, start, cluster))()
            report.truncate_after(saved.step if saved else -1)
            step = _begin(saved, learner, lessons)
            while step < schedule.steps and not interrupt.requested:
                watch = Stopwatch()
                metrics, tokens = lessons.step(learner, step + 1, watch)
                step += 1
                report.busy(step, watch.begun_at, {DRIVER: watch.busy.take()} | learner.take_busy())
                times = watch.metrics()
                report.step(step, {**metrics, **times, "throughput/tokens_per_s": tokens / times["time/step_s"]})
                if step == schedule.steps:
                    # Export before the last checkpoint, because that checkpoint marks the job as complete.
                    with files.whole_folder(folder / run_files.POLICY) as partial:
                        learner.export(str(partial.absolute()))
                        lessons.finish(learner, partial)
                if step % schedule.checkpoint_every == 0 or step == schedule.steps or interrupt.requested:
                    with progress.phase(Phase.CHECKPOINT, f"writing the checkpoint of step {step}"):
                        checkpoint.write(folder, step, learner.save, lessons.state_dict(), keep=1)
        return report.finish(write_report)


def _begin(saved: checkpoint.Checkpoint | None, learner: LearnerGroup, lessons: Lessons) -> int:
    """Return the number of steps that are done."""
    if saved is None:
        lessons.begin(learner)
        return 0
    learner.load(str(saved.folder.absolute()))
    lessons.resume(saved.driver_state())
    return saved.step


def _setups(settings: FineTuningConfig, start: str, cluster: Cluster) -> list[LearnerSetup]:
    return [
        LearnerSetup(
            policy_path=start,
            reference_path=start,
            dtype=settings.policy.dtype,
            algorithm=None,
            learner=settings.learner,
            temperature=1.0,
            total_steps=settings.schedule.steps,
            seed=settings.run.seed,
            rank=rank,
            world_size=settings.learner.ranks,
            device=cluster.device,
            collective_deadline_s=settings.cluster.longest_wait_s(),
            skipped_folder=skipped_folder(settings.run),
            preference=settings.schedule if isinstance(settings, DpoConfig | RewardConfig) else None,
        )
        for rank in range(settings.learner.ranks)
    ]


def under_learner(update: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics of an optimizer step by their names in a run: `loss` becomes `learner/loss`."""
    return {name if "/" in name else f"learner/{name}": value for name, value in update.items()}
