"""The seconds of each part of a step, for stacked charts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from grpo.report.metrics_log import History

# The parts of a step that the training loop measures, in this order. The remainder of `time/step_s` is "rest".
TIMED_PARTS = ("generate", "verify", "learn", "sync")
PARTS = (*TIMED_PARTS, "rest")
# A step that is longer than the usual step by this factor is cut in a chart. Otherwise all other steps would look flat.
# An example is a first step that compiles.
_OUTLIER = 3.0


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of each timed step, by part.

    Attributes:
        steps: step numbers in ascending order; never empty.
        parts: seconds at each step, by the part's name, in the order of `PARTS`; never negative. A part that no step
            timed is missing, for example `generate` in supervised fine-tuning.
    """

    steps: tuple[int, ...]
    parts: Mapping[str, tuple[float, ...]]

    def totals(self) -> tuple[float, ...]:
        """Seconds of each step."""
        return tuple(sum(seconds) for seconds in zip(*self.parts.values(), strict=True))

    def means(self) -> dict[str, float]:
        """Mean seconds of each part."""
        return {part: sum(seconds) / len(seconds) for part, seconds in self.parts.items()}

    def shares(self) -> dict[str, float]:
        """Each part's share of the whole time; if no time passed, all shares are 0."""
        total = sum(self.totals())
        return {part: sum(seconds) / total if total else 0.0 for part, seconds in self.parts.items()}

    def thinned(self, most: int) -> StepTime:
        """Average neighbouring steps until at most `most` remain, for a chart that is too small to show every step."""
        if len(self.steps) <= most:
            return self
        size = len(self.steps) / most
        buckets = [range(round(at * size), round((at + 1) * size)) for at in range(most)]
        parts = {
            part: tuple(sum(seconds[at] for at in bucket) / len(bucket) for bucket in buckets)
            for part, seconds in self.parts.items()
        }
        return StepTime(tuple(self.steps[bucket[len(bucket) // 2]] for bucket in buckets), parts)

    def edges(self) -> tuple[float, ...]:
        """The begin of each step's bar, and the end of the last bar. They are half way between neighbouring steps."""
        between = [(left + right) / 2 for left, right in itertools.pairwise(self.steps)]
        first = self.steps[0] - (between[0] - self.steps[0] if between else 0.5)
        last = self.steps[-1] + (self.steps[-1] - between[-1] if between else 0.5)
        return (first, *between, last)

    def top(self) -> tuple[float, bool]:
        """The height of a chart, in seconds, and whether this height cuts an exceptionally long step."""
        ordered = sorted(self.totals())
        usual = ordered[int(0.9 * (len(ordered) - 1))]
        if ordered[-1] > _OUTLIER * usual > 0:
            return 1.2 * usual, True
        return ordered[-1] or 1.0, False


def step_time(history: History) -> StepTime | None:
    """The timed steps of a run; None if no step was timed.

    If only some steps timed a part, the part counts as 0 s in the other steps.
    """
    timed = [line for line in history.lines if math.isfinite(line.metrics.get("time/step_s", math.nan))]
    if not timed:
        return None
    parts = {
        part: tuple(_seconds(line.metrics.get(f"time/{part}_s", 0.0)) for line in timed)
        for part in TIMED_PARTS
        if any(f"time/{part}_s" in line.metrics for line in timed)
    }
    known = [sum(seconds[at] for seconds in parts.values()) for at in range(len(timed))]
    # Parts may overlap, so their sum may be larger than the step's time. The rest is then 0.
    rest = (max(0.0, line.metrics["time/step_s"] - seconds) for line, seconds in zip(timed, known, strict=True))
    return StepTime(tuple(line.step for line in timed), {**parts, "rest": tuple(rest)})


def mean_step_time(runs: Sequence[StepTime]) -> StepTime | None:
    """The mean over runs for each step that all runs timed; None if there are no such steps.

    If only some runs timed a part, the part counts as 0 s in the other runs.
    """
    shared = tuple(sorted(set.intersection(*(set(run.steps) for run in runs)))) if runs else ()
    if not shared:
        return None
    places = [{step: at for at, step in enumerate(run.steps)} for run in runs]
    parts = {
        part: tuple(
            sum(run.parts[part][at[step]] for run, at in zip(runs, places, strict=True) if part in run.parts)
            / len(runs)
            for step in shared
        )
        for part in PARTS
        if any(part in run.parts for run in runs)
    }
    return StepTime(shared, parts)


def _seconds(value: float) -> float:
    return max(0.0, value) if math.isfinite(value) else 0.0
