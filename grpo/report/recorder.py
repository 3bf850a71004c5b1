"""Record and report a run. The training loop calls a `RunRecorder` once per step.

    progress = open_progress("GRPO", total_steps=200)            # grpo.report.progress; first, to show the start-up
    with progress.phase(Phase.START, "starting 2 generators"):
        ...
    trackers = open_trackers(config.trackers, run_dir, config=resolved)               # grpo.report.trackers
    with RunRecorder(run_dir, trackers=trackers, progress=progress, rollouts_every=1, total_steps=200) as report:
        report.truncate_after(resumed_step)                      # only when resuming
        report.step(0, {"eval/accuracy": 0.45})                  # before any training
        for step in ...:
            report.step(step, metrics, groups, advantages)       # advantages[g][i]: a float or None
        closing = report.finish(write_report)                    # writes figures and HTML, closes everything
    Console().print(closing)                                     # or print(closing), as plain text

If an exception or Ctrl-C ends the `with` block, the terminal is restored, the last rollouts are stored and the
trackers are closed; `finish` may be called in this case too. The run folder then holds:

    metrics.jsonl  ledger.jsonl  timeline.jsonl  rollouts/step_000010.parquet  evaluations/step_000010.parquet
    figures/*.png  report.html  tensorboard/

The job writes the run's `config.yaml`; this module only reads it. `docs/metrics.md` documents the metrics, the Parquet
columns and their units. Figures and the HTML report need only the run folder, so `grpo.view.page.write_report(run)` and
`grpo.report.figures.overview([run, ...], folder)` can also be called later.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from grpo.report import rollout_store, run_files
from grpo.report.closing_table import ClosingTable, closing_table
from grpo.report.ledger import Ledger
from grpo.report.metrics_log import MetricsLine, MetricsLog, read_history
from grpo.report.progress import Progress, open_progress
from grpo.report.rollout_store import Advantages
from grpo.report.timeline import TimeLine
from grpo.report.trackers import Tracker
from grpo.types import ActorId, Group, Phase
from rewards.pool.busy_clock import Busy

MISMATCH = "learner/mismatch_kl_first"
# Metrics of a step in the driver's log: its results, and the seconds of its phases.
_LOGGED = ("reward/mean", "rollout/accuracy", "eval/accuracy", "learner/loss", "learner/gradient_norm")
_LOGGED_S = tuple(f"time/{part}_s" for part in ("generate", "verify", "learn", "sync", "eval", "checkpoint", "step"))

logger = logging.getLogger(__name__)


class RunRecorder:
    """Records the metrics and completions of a run. Only a single thread may use a recorder."""

    def __init__(
        self,
        run_dir: Path | str,
        *,
        trackers: Sequence[Tracker] = (),
        progress: Progress | None = None,
        rollouts_every: int = 1,
        total_steps: int | None = None,
        mismatch_alarm: float | None = None,
        rollouts_max_mib: int | None = None,
    ) -> None:
        """Open the run folder. If it is missing, it is created.

        Args:
            run_dir: the run folder.
            trackers: further places for the metrics besides `metrics.jsonl`; `close` closes these trackers.
            progress: terminal display, which `close` closes; if None, a new display is opened.
            rollouts_every: steps between stored rollouts; the first and the last step are stored too. If 0, no rollouts
                are stored.
            total_steps: number of the last planned step. The display shows it, and rollouts of this step are stored.
            mismatch_alarm: threshold of learner/mismatch_kl_first, in nats, above which the display warns once.
            rollouts_max_mib: largest size of all stored completions, in MiB. Above this size, the completions of some
                steps are removed, spread evenly over the run.

        Raises:
            ValueError: `rollouts_every` is negative, or `metrics.jsonl` has a line of a different format.
        """
        if rollouts_every < 0:
            raise ValueError(f"rollouts_every must be 0 (none) or more, got {rollouts_every}")
        self.run_dir = Path(run_dir)
        self._log = MetricsLog(self.run_dir)
        self._ledger = Ledger(self.run_dir)
        self._time_line = TimeLine(self.run_dir)
        self._trackers = tuple(trackers)
        self._progress = progress or open_progress("GRPO", total_steps=total_steps)
        self._rollouts_every = rollouts_every
        self._total_steps = total_steps
        self._mismatch_alarm = mismatch_alarm
        self._rollouts_max_mib = rollouts_max_mib
        self._is_thinned = False
        self._unstored: tuple[int, Sequence[Group], Advantages] | None = None
        self._opened = time.monotonic()
        self._seconds_before = self._seconds_logged()

    def truncate_after(self, step: int) -> None:
        """Remove all records after `step`. Call this before the first step of a resumed run."""
        self._log.truncate_after(step)
        self._ledger.truncate_after(step)
        self._time_line.truncate_after(step)
        rollout_store.truncate_after(self.run_dir, step)
        for tracker in self._trackers:
            tracker.truncate_after(step)
        self._unstored = None
        self._seconds_before = self._seconds_logged()

    def step(
        self,
        step: int,
        metrics: Mapping[str, float],
        groups: Sequence[Group] = (),
        advantages: Advantages = (),
    ) -> None:
        """Record and show a finished step.

        Args:
            step: number of rollout batches that the policy has learned from. It must be above the last reported step. 0
                means the evaluation before any training.
            metrics: numbers by name; see `docs/metrics.md`. `time/run_s` is added.
            groups: groups that the step learned from.
            advantages: `advantages[g][i]` belongs to `groups[g].rollouts[i]`; None or NaN if there is no gradient.

        Raises:
            ValueError: the step is not above the last step, a metric has a reserved name, or groups and advantages
                differ in shape.
        """
        now = time.time()
        numbers = {name: float(value) for name, value in metrics.items()}
        numbers["time/run_s"] = round(self._seconds_before + time.monotonic() - self._opened, 3)
        plain = tuple(tuple(None if advantage is None else float(advantage) for advantage in row) for row in advantages)
        rollout_store.check_shape(groups, plain)
        self._log.append(MetricsLine(step, now, numbers))
        if groups:
            self._ledger.append(step, groups)
        if groups and self._rollouts_every:
            self._unstored = (step, groups, plain)
            if self._is_stored_step(step):
                self._store_rollouts()
        for tracker in self._trackers:
            tracker.log(step, now, numbers)
        figures = [f"{name} {numbers[name]:.4g}" for name in (*_LOGGED, *_LOGGED_S) if name in numbers]
        logger.info("step %d: %s", step, ", ".join(figures))
        self._progress.step(step, numbers)
        self._warn_of_mismatch(step, numbers)

    def late(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record and show further metrics of an earlier step, such as a background evaluation that has just ended.

        Args:
            step: number of the earlier step.
            metrics: numbers by name. The step must not have these names yet.

        Raises:
            ValueError: a metric has a reserved name.
        """
        now, numbers = time.time(), {name: float(value) for name, value in metrics.items()}
        self._log.append(MetricsLine(step, now, numbers), late=True)
        for tracker in self._trackers:
            tracker.log(step, now, numbers)
        figures = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        self._progress.show(f"step {step}, evaluated in the background: {figures}")

    def busy(self, step: int, begin: float, lanes: Mapping[ActorId, Busy]) -> None:
        """Record the busy times of each actor since the last call. `TimeLine.append` describes the arguments."""
        self._time_line.append(step, begin, lanes)

    def evaluation(self, step: int, groups: Sequence[Group]) -> None:
        """Store the held-out answers of the policy after `step`, unless `rollouts_every` is 0."""
        if groups and self._rollouts_every:
            nothing = [[None] * len(group.rollouts) for group in groups]
            rollout_store.write_step(self.run_dir, step, groups, nothing, run_files.EVALUATIONS)
            self._keep_within_limit()

    def finish(self, write_report: Callable[[Path], Path]) -> ClosingTable:
        """Write the figures and the HTML report, close everything, and return the closing table.

        Args:
            write_report: function that writes the page of a run folder and returns its path:
                `grpo.view.page.write_report`. It is an argument because `grpo.report` may not import `grpo.view`.
        """
        # The import of matplotlib takes a second. So it happens only here, and does not slow down
        # `import grpo.report.recorder` or a failing run.
        from grpo.report.figures import overview

        self._store_rollouts()
        with self._progress.phase(Phase.REPORT, "writing the report"):
            figures = overview([self.run_dir], self.run_dir / run_files.FIGURES)
            page = write_report(self.run_dir)
        self.close()
        files = {"report": page, "figures": self.run_dir / run_files.FIGURES} if figures else {"report": page}
        return closing_table(self.run_dir.resolve().name, read_history(self.run_dir), files)

    def close(self) -> None:
        """Restore the terminal, store the last rollouts, and close the trackers. Safe to call twice."""
        self._progress.close()
        self._store_rollouts()
        self._log.close()
        self._ledger.close()
        self._time_line.close()
        for tracker in self._trackers:
            tracker.close()
        self._trackers = ()

    def __enter__(self) -> RunRecorder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _warn_of_mismatch(self, step: int, metrics: Mapping[str, float]) -> None:
        alarm, divergence = self._mismatch_alarm, metrics.get(MISMATCH, 0.0)
        # The comparison is written so that NaN counts as above the threshold.
        if alarm is None or divergence <= alarm:
            return
        self._mismatch_alarm = None
        self._progress.show(
            f"step {step}: learner and generators disagree about the policy: {MISMATCH} {divergence:.2g} nats is above "
            f"report.mismatch_alarm={alarm:g}. Compare policy.dtype and sync/probe_mean_difference, or correct for it "
            "by algorithm.importance_weight or algorithm.mismatch_mask (docs/metrics.md). This warning appears once"
        )

    def _is_stored_step(self, step: int) -> bool:
        return (
            step % self._rollouts_every == 0
            or step == self._total_steps
            or not rollout_store.stored_steps(self.run_dir)
        )

    def _store_rollouts(self) -> None:
        # The newest groups are kept until the next step, so that a stopped run still stores its last groups.
        if self._unstored is not None:
            rollout_store.write_step(self.run_dir, *self._unstored)
            self._unstored = None
            self._keep_within_limit()

    def _keep_within_limit(self) -> None:
        limit = self._rollouts_max_mib
        if limit is None or not rollout_store.thin(self.run_dir, limit << 20) or self._is_thinned:
            return
        self._is_thinned = True
        self._progress.show(
            f"stored completions have reached report.rollouts_max_mib={limit}: from now on steps in between are "
            "removed, and the kept steps stay spread over the run; raise the limit, or store fewer steps with "
            "report.rollouts_every. This warning appears once"
        )

    def _seconds_logged(self) -> float:
        logged = read_history(self.run_dir).curve("time/run_s").finite()
        return logged.values[-1] if logged else 0.0
