"""The metrics of a run. Each step appends one JSON line to a file, and `read_history` reads the file.

A line is one flat object, `{"step": 10, "time": 1760000000.0, "reward/mean": 0.5, ...}`. `docs/metrics.md` lists the
names. JSON has neither NaN nor infinity, so a number that is not finite is written as null.
Several lines may have the same step, because an evaluation may arrive late. A reader merges these lines.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from grpo.report import run_files
from grpo.report.json_lines import JsonLines, complete_lines

RESERVED_NAMES = ("step", "time")
_NOISY_FROM = 60


@dataclass(frozen=True, slots=True)
class MetricsLine:
    """The metrics of one step.

    Attributes:
        step: number of rollout batches that the policy has learned from; 0 before any training.
        time: seconds since the epoch.
        metrics: values by name; NaN if a value was not finite.
    """

    step: int
    time: float
    metrics: Mapping[str, float]

    def to_json(self) -> str:
        """Return one line of strict JSON, with a newline at its end."""
        finite = {name: value if math.isfinite(value) else None for name, value in self.metrics.items()}
        return json.dumps({"step": self.step, "time": self.time, **finite}, allow_nan=False) + "\n"


@dataclass(frozen=True, slots=True)
class Curve:
    """One metric over steps. `steps` is in ascending order; `values` has the same length and may contain NaN."""

    steps: tuple[int, ...]
    values: tuple[float, ...]

    def __bool__(self) -> bool:
        return bool(self.steps)

    def finite(self) -> Curve:
        """The same curve without the points that are not finite numbers."""
        kept = [(step, value) for step, value in zip(self.steps, self.values, strict=True) if math.isfinite(value)]
        return Curve(tuple(step for step, _ in kept), tuple(value for _, value in kept))

    def is_noisy(self) -> bool:
        """Whether there are so many steps that a line through every point shows mostly noise."""
        return len(self.steps) >= _NOISY_FROM

    def smooth(self) -> Curve:
        """Each point becomes the mean of its neighbours: about 4 % of the run, half before and half after the point."""
        half = max(5, len(self.steps) // 25) // 2
        # Use running sums, because a new sum for each point would take seconds on a run of 10,000 steps.
        sums = [0.0, *itertools.accumulate(self.values)]
        smooth = []
        for at in range(len(self.values)):
            begin, end = max(0, at - half), min(len(self.values), at + half + 1)
            smooth.append((sums[end] - sums[begin]) / (end - begin))
        return Curve(self.steps, tuple(smooth))


@dataclass(frozen=True, slots=True)
class History:
    """All metrics of a run, one line per step, in the order of steps."""

    lines: tuple[MetricsLine, ...]

    def names(self) -> tuple[str, ...]:
        """Every metric name that occurs, in order of first appearance."""
        return tuple(dict.fromkeys(name for line in self.lines for name in line.metrics))

    def curve(self, name: str) -> Curve:
        """The steps at which `name` was measured, and its values. Empty if the run never measured it."""
        points = [(line.step, line.metrics[name]) for line in self.lines if name in line.metrics]
        return Curve(tuple(step for step, _ in points), tuple(value for _, value in points))

    def last_step(self) -> int | None:
        """The highest step in the history; None if the history is empty."""
        return self.lines[-1].step if self.lines else None


def read_history(run_dir: Path) -> History:
    """Read the metrics of a run folder.

    A killed process may leave a last line without its newline. Such a line is skipped.

    Raises:
        ValueError: a complete line has a different format. The message names the file and the line.
    """
    path = run_dir / run_files.METRICS
    if not path.exists():
        return History(())
    merged: dict[int, MetricsLine] = {}
    for number, text in enumerate(complete_lines(path), start=1):
        line = _parse(text, path, number)
        earlier = merged.get(line.step)
        if earlier is not None:
            line = MetricsLine(line.step, earlier.time, {**earlier.metrics, **line.metrics})
        merged[line.step] = line
    return History(tuple(merged[step] for step in sorted(merged)))


def run_names(runs: Sequence[Path]) -> list[str]:
    """A name for each run folder: the folder's name, with as many parent folders as distinguish the runs."""
    parts = [Path(run).resolve().parts[1:] for run in runs]
    for length in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{'/'.join(part[-1:])} ({number})" for number, part in enumerate(parts, start=1)]


class MetricsLog(JsonLines):
    """Appends lines to a run's metrics file. Each line is a single write, and is on disk when `append` returns."""

    def __init__(self, run_dir: Path) -> None:
        self._last_step = read_history(run_dir).last_step()
        super().__init__(run_dir / run_files.METRICS)

    @property
    def last_step(self) -> int | None:
        """The highest step in the file; None if the file is empty."""
        return self._last_step

    def append(self, line: MetricsLine, *, late: bool = False) -> None:
        """Write a line to the disk.

        Args:
            line: the metrics of a step.
            late: whether `line.step` may be a step that the file already has. Readers merge the lines of a step.

        Raises:
            ValueError: the step is not above the last step in the file and `late` is not set, or a name is reserved.
        """
        for name in RESERVED_NAMES:
            if name in line.metrics:
                raise ValueError(f"the metric name {name!r} is reserved for the line itself; rename the metric")
        if not late and self._last_step is not None and line.step <= self._last_step:
            raise ValueError(
                f"step {line.step} comes after step {self._last_step} in {self.path}: steps must rise. "
                f"To continue from a checkpoint, first call truncate_after with the checkpoint's step; "
                f"to start from the beginning, use an empty run folder"
            )
        self.write(line.to_json())
        self._last_step = line.step if self._last_step is None else max(line.step, self._last_step)

    def truncate_after(self, step: int) -> None:
        """Remove every line of a step after `step`, so that a resumed run does not count steps twice."""
        self.keep(lambda number, text: _parse(text, self.path, number).step <= step)
        self._last_step = read_history(self.path.parent).last_step()


def _parse(text: str, path: Path, number: int) -> MetricsLine:
    try:
        record = json.loads(text)
        step, time = int(record.pop("step")), float(record.pop("time"))
        metrics = {name: math.nan if value is None else float(value) for name, value in record.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        raise ValueError(
            f"{path}, line {number}: expected one flat JSON object with 'step' and 'time', got {text[:80]!r}; "
            f"remove the line, or move the file away"
        ) from problem
    return MetricsLine(step, time, metrics)
