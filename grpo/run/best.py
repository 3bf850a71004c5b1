"""The policy of the step with the best value of a metric (`train.keep_best`).

`best/step_000010/` in the run's folder holds `policy/` and `best.json`. A run that dies repeats the steps after its
last checkpoint. So until the next checkpoint, the best policy of the checkpointed steps stays beside a better and later
one.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from grpo import files
from grpo.config.schedule import ScheduleConfig
from grpo.report import run_files

_VALUE = "best.json"


@dataclass(frozen=True, slots=True)
class BestPolicy:
    """A kept policy.

    Attributes:
        step: number of training steps that made the policy.
        metric: name of the metric.
        value: value of the metric for this policy.
        best_is: whether the highest or the lowest value is the best.
    """

    step: int
    metric: str
    value: float
    best_is: Literal["highest", "lowest"]

    def is_better_than(self, other: BestPolicy) -> bool:
        """Whether this policy's value is better. Of equal values the earlier is the best."""
        return self.value > other.value if self.best_is == "highest" else self.value < other.value


class BestPolicies:
    """Keeps the policy with the best value of a metric; does nothing without a metric."""

    def __init__(self, run_folder: Path, schedule: ScheduleConfig, step: int) -> None:
        """Open the folder. Delete the policies of steps after `step`, which the run repeats, and of other metrics.

        Args:
            run_folder: the run's folder.
            schedule: the metric, and whether its highest value is the best.
            step: step of the checkpoint that the run starts from; -1 for a new run.
        """
        self._folder, self._metric, self._best_is = run_folder, schedule.keep_best, schedule.best_is
        self._checkpointed = step
        for kept in kept_policies(run_folder):
            if self._metric is not None and (
                kept.step > step or (kept.metric, kept.best_is) != (self._metric, self._best_is)
            ):
                shutil.rmtree(place_of(run_folder, kept.step))

    def offer(self, step: int, metrics: Mapping[str, float], export: Callable[[str], object]) -> bool:
        """Keep the policy of `step` if its value is better than all values before. Return whether it is kept.

        Args:
            step: number of training steps that made the policy.
            metrics: metrics of the step.
            export: function that writes the policy into a folder.
        """
        if self._metric is None or not math.isfinite(value := metrics.get(self._metric, math.nan)):
            return False
        offered, best = BestPolicy(step, self._metric, value, self._best_is), best_of(kept_policies(self._folder))
        if best is not None and not offered.is_better_than(best):
            return False
        place = place_of(self._folder, step)
        with files.whole_folder(place, durable=True) as partial:
            export(str((partial / run_files.POLICY).absolute()))
            files.write_text(partial / _VALUE, json.dumps(asdict(offered)) + "\n")
        self._drop_others()
        return True

    def checkpointed(self, step: int) -> None:
        """Note that the run has a checkpoint of `step`; delete what no resume can need any more."""
        self._checkpointed = step
        self._drop_others()

    def _drop_others(self) -> None:
        kept = kept_policies(self._folder)
        needed = best_of(kept), best_of([each for each in kept if each.step <= self._checkpointed])
        for each in kept:
            if self._metric is not None and each not in needed:
                shutil.rmtree(place_of(self._folder, each.step))


def best_of(kept: Sequence[BestPolicy]) -> BestPolicy | None:
    """Return the best of some policies, which are in the order of steps; None if there are none."""
    best: BestPolicy | None = None
    for each in kept:
        if best is None or each.is_better_than(best):
            best = each
    return best


def kept_policies(run_folder: Path) -> list[BestPolicy]:
    """Return the kept policies of a run in the order of steps."""
    folder = run_folder / run_files.BEST
    records = [folder / run_files.step_name(step) / _VALUE for step in run_files.steps_in(folder)]
    return [BestPolicy(**json.loads(path.read_text(encoding="utf-8"))) for path in records if path.is_file()]


def place_of(run_folder: Path, step: int) -> Path:
    """Return the folder of a kept policy."""
    return run_folder / run_files.BEST / run_files.step_name(step)
