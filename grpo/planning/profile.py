"""`grpo profile`: measure which parts of a training step take the time, on a few steps of a real run."""

from __future__ import annotations

import itertools
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from grpo.cluster.waiting import write_timeline
from grpo.config import TrainConfig
from grpo.planning.advice import Advice, advice
from grpo.planning.memory_fit import refuse_what_does_not_fit
from grpo.report.logs import driver_log
from grpo.report.metrics_log import read_history
from grpo.report.profiling import ActorProfile
from grpo.report.progress import Progress
from grpo.report.step_time import TIMED_PARTS
from grpo.run.training import TrainingRun
from grpo.terminal import LiteralTable, literal
from grpo.train_loop import train
from grpo.types import ActorKind, Phase

# The first steps compile, allocate and fill caches.
WARM_UP = 2


class StepProfiler:
    """Profiles learner and generators during some steps of a run, after the warm-up."""

    def __init__(self, folder: Path, steps: int) -> None:
        """Store the arguments; profile nothing yet.

        Args:
            folder: folder for the traces.
            steps: number of steps to profile.
        """
        self._folder = folder.absolute()
        self._steps = steps
        self.profiles: list[ActorProfile] = []

    def after_step(self, run: TrainingRun) -> None:
        """Start the profilers after the warm-up. Stop them after the last step."""
        if run.step == WARM_UP:
            run.learner.start_profile()
            run.generators.start_profile()
        elif run.step == WARM_UP + self._steps:
            self.profiles += run.learner.stop_profile(str(self._folder))
            self.profiles += run.generators.stop_profile(str(self._folder))
            write_timeline(self._folder / "ray_timeline.json")


def profile(settings: TrainConfig, progress: Progress, console: Console, steps: int) -> None:
    """Train for some steps in a new folder, and print the time of each part.

    Args:
        settings: settings of the run. Its checkpoints, evaluation and trackers are turned off.
        progress: display of the steps.
        console: console for the tables.
        steps: number of steps to profile, after `WARM_UP` steps.

    Raises:
        ValueError: as `grpo.jobs.train`.
    """
    refuse_what_does_not_fit(settings)
    brief = brief_run(settings, steps)
    folder = Path(brief.run.folder)
    watcher = StepProfiler(folder / "traces", steps)
    with driver_log(folder, brief.report.log_level):
        train(brief, progress, watcher.after_step)
    lines = [line.metrics for line in read_history(folder).lines if line.step > WARM_UP]
    names = sorted({name for line in lines for name in line})
    metrics = {name: statistics.fmean(line[name] for line in lines if name in line) for name in names}
    console.print(phases_table(metrics, steps))
    computing = {}
    for phase, kind in ((Phase.GENERATE, ActorKind.GENERATOR), (Phase.LEARN, ActorKind.LEARNER)):
        actors = [profile for profile in watcher.profiles if profile.actor.kind is kind]
        busiest = max(actors, key=lambda profile: profile.operators_s)
        phase_s = metrics[f"time/{phase}_s"] * steps
        computing[phase.value] = busiest.operators_s / phase_s
        console.print(operators_table(busiest, f"the busiest of {len(actors)}", phase, phase_s))
    on_gpu = any(profile.on_gpu for profile in watcher.profiles)
    show_advice(advice(brief, metrics, computing, os.cpu_count() or 1, on_gpu), console)
    console.print(literal(f"Traces for ui.perfetto.dev: {folder / 'traces'}"))


def brief_run(settings: TrainConfig, steps: int) -> TrainConfig:
    """Return settings for the same run with few steps, in a new folder beside the run's folder."""
    last = WARM_UP + steps
    folder = next(path for n in itertools.count(1) if not (path := Path(f"{settings.run.folder}_profile_{n}")).exists())
    run = settings.run.model_copy(update={"folder": str(folder), "resume": "never"})
    schedule = settings.train.model_copy(update={"steps": last, "checkpoint_every": last + 1})
    report = settings.report.model_copy(update={"trackers": ()})
    update = {"run": run, "train": schedule, "report": report, "evaluation": None}
    return settings.model_copy(update=update)


def phases_table(metrics: Mapping[str, float], steps: int) -> Table:
    """Return a table of each phase's seconds and share of a mean step."""
    whole = metrics["time/step_s"]
    table = LiteralTable("phase", "s", "share", title=f"A step, mean of {steps}")
    known = {phase: metrics.get(f"time/{phase}_s", 0.0) for phase in TIMED_PARTS}
    for phase, seconds in {**known, "rest": max(0.0, whole - sum(known.values()))}.items():
        table.add_row(phase, f"{seconds:.3f}", f"{seconds / whole:.0%}")
    table.add_section()
    table.add_row("whole", f"{whole:.3f}", f"{metrics['throughput/completions_per_s']:.0f} completions/s")
    return table


def operators_table(actor_profile: ActorProfile, which: str, phase: str, phase_s: float) -> Table:
    """Return a table of the operators that took most of an actor's time, as shares of the phase."""
    title = (
        f"{actor_profile.actor} ({which}): operators took {actor_profile.operators_s:.2f} of {phase_s:.2f} s of {phase}"
    )
    table = LiteralTable("operator", "s", "share", "calls", title=title)
    for operator in actor_profile.operators:
        table.add_row(
            operator.name[:60], f"{operator.self_s:.3f}", f"{operator.self_s / phase_s:.0%}", str(operator.calls)
        )
    return table


def show_advice(changes: Sequence[Advice], console: Console) -> None:
    """Print the changes to try, the most useful first."""
    if not changes:
        console.print("Nothing stands out: the figures suggest no change.")
        return
    table = LiteralTable("where", "seen", "try next", title="What to try next")
    for change in changes:
        table.add_row(f"{change.phase} ({change.share:.0%})", change.seen, change.try_next)
    console.print(table)
