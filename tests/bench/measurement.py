"""What one side of the comparison measured: plain numbers, the same for both, kept as JSON."""

from __future__ import annotations

import dataclasses
import itertools
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Step:
    """One whole step, from one batch of completions to the next.

    Attributes:
        ended: when it ended, seconds since the epoch.
        seconds: wall-clock time from the end of the step before to the end of this one, whatever happened in it.
        generate_s: of these, seconds in which nothing but sampling was waited for.
        verify_s: of these, seconds in which verdicts were waited for.
        learn_s: of these, seconds in the optimizer steps.
        completions: how many were sampled.
        tokens: completion tokens sampled, end tokens included.
        longest: tokens of the longest completion.
        reward: mean over the completions.
        optimizer_steps: made in this step.
    """

    ended: float
    seconds: float
    generate_s: float
    verify_s: float
    learn_s: float
    completions: int
    tokens: int
    longest: int
    reward: float
    optimizer_steps: int


@dataclass(frozen=True, slots=True)
class Measurement:
    """One run of one side.

    Attributes:
        side: whose run it is.
        settings: what was chosen for speed, in words.
        load: load average of the machine over one minute when the run began.
        steps: whole steps, in order; the first ones are warm-up.
        lengths: step (from 1) -> tokens of each of its completions, for the steps whose completions were kept.
        processor: processor time that all processes of the run had used, at several times: (seconds since the epoch,
            processor seconds), both rising.
    """

    side: str
    settings: str
    load: float
    steps: tuple[Step, ...]
    lengths: dict[int, tuple[int, ...]]
    processor: tuple[tuple[float, float], ...] = ()

    def after(self, warm_up: int) -> tuple[Step, ...]:
        """The steps that count.

        Raises:
            ValueError: none is left.
        """
        if len(self.steps) <= warm_up:
            raise ValueError(f"{self.side} made {len(self.steps)} steps, of which {warm_up} are warm-up: none is left")
        return self.steps[warm_up:]

    def processor_s(self, warm_up: int) -> float:
        """Processor time of all processes over the steps that count: what a busy machine changes least."""
        begin, end = self.after(warm_up)[0], self.after(warm_up)[-1]
        return self._processor_at(end.ended) - self._processor_at(begin.ended - begin.seconds)

    def _processor_at(self, moment: float) -> float:
        """Linear between the two samples around `moment`."""
        for (time, used), (later, used_later) in itertools.pairwise(self.processor):
            if time <= moment <= later:
                return used + (used_later - used) * (moment - time) / max(later - time, 1e-9)
        raise ValueError(f"{self.side}: no sample of the processor time lies around {moment}")

    def write(self, path: Path) -> None:
        """Keep it as JSON."""
        path.write_text(json.dumps(dataclasses.asdict(self)) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Measurement:
        """Read what `write` wrote."""
        record = json.loads(path.read_text(encoding="utf-8"))
        record["steps"] = tuple(Step(**step) for step in record["steps"])
        record["lengths"] = {int(step): tuple(lengths) for step, lengths in record["lengths"].items()}
        record["processor"] = tuple((time, used) for time, used in record["processor"])
        return cls(**record)


def per_second(steps: Sequence[Step]) -> float:
    """Completions per second over the steps as a whole: all completions over all the time."""
    return sum(step.completions for step in steps) / sum(step.seconds for step in steps)


def tokens_per_second(steps: Sequence[Step]) -> float:
    """Completion tokens per second over the steps as a whole."""
    return sum(step.tokens for step in steps) / sum(step.seconds for step in steps)


def step_rates(steps: Sequence[Step]) -> list[float]:
    """Completions per second of each step, lowest first."""
    return sorted(step.completions / step.seconds for step in steps)


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    lower, middle, upper = statistics.quantiles(values, n=4, method="inclusive")
    return lower, middle, upper


def mean_of(steps: Sequence[Step], part: Callable[[Step], float]) -> float:
    """Mean of one number over steps."""
    return statistics.fmean(part(step) for step in steps)
