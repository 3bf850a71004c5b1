"""A run, read from its folder: config, metrics, sampled completions and policy."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo.config import FINE_TUNING
from grpo.config.file import read
from grpo.report import run_files
from grpo.report.closing_table import ClosingTable, closing_table
from grpo.report.metrics_log import History, read_history
from grpo.report.rollout_store import StoredGroup, read_groups, stored_steps
from grpo.run import checkpoint
from grpo.run.best import best_of, kept_policies, place_of


@dataclass(frozen=True, slots=True)
class StoredRun:
    """A run's folder, with the metrics at the time of reading. To see newer steps, read the folder again.

    >>> run = grpo.read_run("runs/sums")
    >>> run.metrics.last_step()
    20
    >>> accuracy = run.metrics.curve("eval/accuracy")
    >>> accuracy.steps
    (0, 5, 10, 15, 20)
    >>> run.rollout_steps
    (1, 10, 20)
    >>> group = run.rollouts(20)[0]
    >>> group.prompt
    '5+2+5+3=?'
    >>> group.rollouts[0].completion, group.rollouts[0].reward
    ('<think>5+2=7; 7+5=12; 12+3=15</think><answer>15</answer>', 1.0)

    Attributes:
        folder: the run's folder (`run.folder`).
        metrics: every metric of every step; the names are in docs/metrics.md.
    """

    folder: Path
    metrics: History

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration as plain data; `load_config(run.folder / "config.yaml")` also checks it.

        Raises:
            ValueError: the folder has no configuration, or the configuration cannot be read.
        """
        return read(self.folder / run_files.CONFIG)

    @property
    def rollout_steps(self) -> tuple[int, ...]:
        """The steps whose completions are stored, in ascending order."""
        return stored_steps(self.folder)

    def rollouts(self, step: int) -> tuple[StoredGroup, ...]:
        """The groups of completions that a step learned from, with their verdicts, rewards and advantages.

        Raises:
            ValueError: the completions of this step are not stored.
        """
        if step not in self.rollout_steps:
            known = ", ".join(map(str, self.rollout_steps)) or "none"
            raise ValueError(f"{self.folder} has no rollouts of step {step}; the stored steps are: {known}")
        return read_groups(self.folder, step)

    @property
    def policy(self) -> str:
        """Absolute path of the newest policy that the run wrote, in Hugging Face format.

        Raises:
            ValueError: the run has written no policy yet.
        """
        newest = policy_of(self.folder)
        if newest is None:
            raise ValueError(f"{self.folder} has no policy yet; a run writes one with its first checkpoint")
        return str(newest)

    @property
    def summary(self) -> ClosingTable:
        """The run's closing table: results, speed, time of each phase, files, and the commands that come next."""
        shown = {"report": self.folder / run_files.REPORT, "figures": self.folder / run_files.FIGURES}
        last_rows = {label: str(path) for label, path in shown.items() if path.exists()}
        job, total_steps = self._job()
        if policy := policy_of(self.folder):
            last_rows["policy"] = _shown(policy)
            if best := best_of(kept_policies(self.folder)):
                of = f"{best.metric} {best.value:.3f} at step {best.step}"
                last_rows["best policy"] = f"{place_of(self.folder, best.step) / run_files.POLICY} ({of})"
            last_rows["look at it"] = f"grpo view {shlex.quote(str(self.folder))}"
            last_rows |= self._next_commands(job, total_steps, _shown(policy))
        return closing_table(self.folder.resolve().name, self.metrics, last_rows, total_steps)

    def _job(self) -> tuple[str, int | None]:
        """The command of the job, such as `train`, and the number of steps that its config demands, if it is known."""
        config = self.config if (self.folder / run_files.CONFIG).is_file() else {}
        job = next((job for job in FINE_TUNING if job in config), "train")
        return job, (config.get(job) or {}).get("steps")

    def _next_commands(self, job: str, total_steps: int | None, policy: str) -> dict[str, str]:
        """The commands that come next, by label. The reader puts the path of a config or of a task in their place."""
        last = self.metrics.last_step()
        if last is not None and total_steps is not None and last < total_steps:
            return {"continue it": f"grpo {job} CONFIG resume=auto"}
        if job == "sft":
            path = shlex.quote(f"policy.path={policy}")
            return {"train it": f"grpo train CONFIG {path}   (CONFIG: a file for GRPO, as configs/quickstart.yaml)"}
        if job == "reward":
            verifier = f"{{use: reward_model, options: {{path: {policy}}}}}"
            return {"use it": f"in the config of grpo train, verifiers: [{verifier}]   (docs/reward_models.md)"}
        folder = shlex.quote(str(self.folder))
        task = "TASK: a file about your questions (docs/evaluation.md), or a name from grpo eval tasks"
        return {"evaluate it": f"grpo eval {folder} --task TASK   ({task})"}


def _shown(path: Path) -> str:
    """Return a path as the user types it: relative to the working folder, if it lies in it."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def read_run(folder: str | Path) -> StoredRun:
    """Read the folder of a run. The run may have ended or may still be running.

    >>> grpo.read_run("runs/sums").config["run"]["seed"]
    1

    Raises:
        ValueError: the folder holds no run, or a line of its metrics cannot be read.
    """
    path = Path(folder)
    if not (path / run_files.METRICS).is_file():
        raise ValueError(
            f"{path} holds no run: it has no {run_files.METRICS} (looked from {Path.cwd()}); give the folder that "
            "run.folder named"
        )
    return StoredRun(path, read_history(path))


def policy_of(folder: Path) -> Path | None:
    """Return the folder of the final policy, otherwise of the newest checkpoint's policy; None if neither exists."""
    newest = checkpoint.latest(folder)
    candidates = [folder / run_files.POLICY, *([newest.policy] if newest else [])]
    return next((path.absolute() for path in candidates if (path / "config.json").is_file()), None)
