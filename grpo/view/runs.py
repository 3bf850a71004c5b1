"""The runs that `grpo view` shows. A file is read when a request needs it, and again after it has changed."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tokenizers import Tokenizer

from grpo.report import run_files
from grpo.report.json_lines import complete_lines
from grpo.report.metrics_log import History, read_history, run_names
from grpo.report.rollout_store import stored_steps
from grpo.view.ending import driver_log_path, read_ending
from grpo.view.flags import FlaggedRollout, hacking_flags
from grpo.view.index import RolloutIndex, spread_over
from grpo.view.recipe import policy_path_of, read_config
from grpo.view.tokens import find_tokenizer
from grpo.visible import visible

SOURCES = {"training": run_files.ROLLOUTS, "held-out": run_files.EVALUATIONS}
# Numbers of steps, and of completions per step, that the flags read in less than a second. Shares of a few percent are
# still measurable.
FLAG_STEPS, _FLAG_COMPLETIONS = 24, 128
_Value = TypeVar("_Value")


class RunData:
    """A run folder. A file is read when a request needs it, and again after it has changed."""

    def __init__(self, run_dir: Path, name: str, most_steps: int | None = None) -> None:
        """Check that the folder holds a run.

        Args:
            run_dir: the run folder.
            name: the name that the page shows.
            most_steps: largest number of stored steps to read, spread over the run; None reads all steps.

        Raises:
            ValueError: the folder holds neither metrics nor stored completions.
        """
        if not (run_dir / run_files.METRICS).is_file() and not stored_steps(run_dir):
            ending = read_ending(run_dir)
            raise ValueError(
                f"{run_dir} has no metrics and no completions to show. {ending}"
                if ending
                else f"{run_dir} holds no run: neither {run_files.METRICS} nor {run_files.ROLLOUTS}/; "
                "give the folder of a run, its run.folder"
            )
        self.run_dir, self.name = run_dir, name
        self.indexes = {source: RolloutIndex(run_dir, folder, most_steps) for source, folder in SOURCES.items()}
        self._kept: dict[str, tuple[object, Any]] = {}

    @property
    def history(self) -> History:
        """The current metrics of the run.

        Raises:
            ValueError: a line of the file has a different format.
        """
        return self._cached("history", _stamp(self.run_dir / run_files.METRICS), lambda: read_history(self.run_dir))

    @property
    def config(self) -> str:
        """The text of the resolved config; empty if the run has no config."""
        path = self.run_dir / run_files.CONFIG
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    @property
    def settings(self) -> Any:
        """The resolved config as plain data; None if the config is missing or is not YAML."""
        return self._cached("settings", _stamp(self.run_dir / run_files.CONFIG), lambda: read_config(self.config))

    @property
    def ending(self) -> str | None:
        """A sentence that says that the run failed or was interrupted (`read_ending`); otherwise None."""
        return self._cached("ending", _stamp(driver_log_path(self.run_dir)), lambda: read_ending(self.run_dir))

    @property
    def time_lines(self) -> Sequence[str]:
        """The lines of `timeline.jsonl`; empty if the run has no such file."""
        path = self.run_dir / run_files.TIMELINE
        return self._cached("time line", _stamp(path), lambda: complete_lines(path))

    @property
    def stamp(self) -> tuple[object, ...]:
        """A value that changes whenever the run has new data to show."""
        versions = tuple(index.snapshot.version for index in self.indexes.values())
        files = (_stamp(self.run_dir / name) for name in (run_files.METRICS, run_files.AUDIT))
        return (*files, self.ending, *versions)

    def audit_rows(self) -> tuple[Mapping[str, Any], ...]:
        """The rows that `grpo audit` wrote; empty if `grpo audit` did not run."""
        path = self.run_dir / run_files.AUDIT
        if not path.is_file():
            return ()
        lines = path.read_text(encoding="utf-8").splitlines()
        return self._cached("audit", _stamp(path), lambda: tuple(json.loads(line) for line in lines))

    def tokenizer(self) -> Tokenizer | None:
        """The run's tokenizer (`find_tokenizer`); None if there is no tokenizer."""
        path = find_tokenizer(self.run_dir, policy_path_of(self.settings))
        if path is None:
            return None
        return self._cached("tokenizer", (path, _stamp(path)), lambda: Tokenizer.from_file(str(path)))

    def flags(self) -> list[dict[str, Any]]:
        """Signs of reward hacking, as `hacking_flags` finds them."""

        def make() -> list[dict[str, Any]]:
            signs = hacking_flags(self.history, self._sampled(), self.audit_rows())
            return [shown(dataclasses.asdict(flag)) for flag in signs]

        return self._cached("flags", self.stamp, make)

    def _sampled(self) -> list[FlaggedRollout]:
        snapshot = self.indexes["training"].snapshot
        sampled = []
        for step in spread_over(sorted(set(snapshot.step_N.tolist())), FLAG_STEPS):
            rows = [int(row) for row in (snapshot.step_R == step).nonzero()[0]]
            for row in rows[:: max(1, len(rows) // _FLAG_COMPLETIONS)]:
                group, reward = int(snapshot.group_R[row]), float(snapshot.reward_R[row])
                sampled.append(
                    FlaggedRollout(
                        step,
                        int(snapshot.groups_N[group]),
                        snapshot.prompt_id_N[group].as_py(),
                        None if math.isnan(reward) else reward,
                        snapshot.text_R[row].as_py(),
                    )
                )
        return sampled

    def _cached(self, name: str, stamp: object, make: Callable[[], _Value]) -> _Value:
        kept = self._kept.get(name)
        if kept is None or kept[0] != stamp:
            kept = self._kept[name] = (stamp, make())
        value: _Value = kept[1]
        return value


def open_runs(folders: Sequence[Path], most_steps: int | None = None) -> tuple[RunData, ...]:
    """Open run folders. Each run gets a name that no other run has. `RunData` describes the arguments."""
    names = run_names(folders)
    return tuple(RunData(Path(folder), name, most_steps) for folder, name in zip(folders, names, strict=True))


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return (stat.st_mtime_ns, stat.st_size)


def shown(value: _Value) -> _Value:
    """Return the same plain data, with visible names of hidden characters, and None instead of NaN and infinity."""
    plain: _Value = _shown(value)
    return plain


def _shown(value: Any) -> Any:
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {visible(name): _shown(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_shown(item) for item in value]
    return value
