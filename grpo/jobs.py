"""The jobs that a user starts. The command line and `import grpo` share these functions.

The import of the engines is slow. So a job imports them only when it starts, after a wrong configuration was refused.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from grpo.config import FINE_TUNING, DpoConfig, FineTuningConfig, JobConfig, RewardConfig, SftConfig, TrainConfig
from grpo.config.file import load, read
from grpo.start_up import without_collector
from grpo.terminal import Terminal, literal

if TYPE_CHECKING:
    from grpo.evaluation.metrics import TaskMetrics
    from grpo.report.closing_table import ClosingTable
    from grpo.report.progress import Progress
    from grpo.run.stored_run import StoredRun

FineTuned = TypeVar("FineTuned", SftConfig, DpoConfig, RewardConfig)


def load_config(path: str | Path, *overrides: str) -> JobConfig:
    """Read and check a configuration file. A section `sft`, `dpo` or `reward` names its job; else it is `train`.

    >>> config = grpo.load_config("configs/quickstart.yaml", "train.steps=80", "rollout.group_size=16")
    >>> config.train.steps, config.rollout.group_size, config.rollout.prompts_per_step
    (80, 16, 32)
    >>> grpo.load_config("configs/quickstart.yaml", "train.stpes=80")
    Traceback (most recent call last):
        ...
    ValueError: 1 problem in configs/quickstart.yaml and its overrides (KEY=VALUE):
      - train.stpes is not a known key; did you mean train.steps?

    Args:
        path: path of a YAML file.
        overrides: dotted keys with YAML values; `resume=auto` is short for `run.resume=auto`.

    Raises:
        ValueError: the file cannot be read, or has problems; the message lists all problems with their remedies.
    """
    data = read(Path(path))
    for job, schema in FINE_TUNING.items():
        if job in data:
            return load(schema, path, overrides)
    return load(TrainConfig, path, overrides)


def train(config: TrainConfig, *, show: bool = False) -> StoredRun:
    """Train a policy with GRPO, or resume a run (`resume=auto`). If a process dies, the run resumes automatically.

    Call this function in the main thread. Ctrl-C then finishes the step and writes a checkpoint.

    >>> config = grpo.load_config("configs/quickstart.yaml", "train.steps=2", "evaluation.every=2")
    >>> run = grpo.train(config)
    >>> run.metrics.last_step()
    2
    >>> run.metrics.curve("eval/accuracy").steps
    (0, 2)

    Args:
        config: configuration from `load_config`.
        show: True to show the phases and the metrics of each step on the terminal.

    Returns:
        The run, read from its folder.

    Raises:
        ValueError: the config does not fit the data, the policy, the folder, the memory or the cluster.
        RuntimeError: the run cannot continue, for example because verifiers fail too often or a weight push failed.
        TimeoutError: a deadline passed; the message names the operation.
    """
    _require(config, TrainConfig, "train", "sft")
    steps, title, console = config.train.steps, f"GRPO {Path(config.run.folder).name}", _terminal(show)
    _say_loading(console, title, "reads the data and starts Ray", config.run.folder)
    with without_collector():
        from grpo.planning.memory_fit import refuse_what_does_not_fit
        from grpo.report.progress import open_progress
        from grpo.run.background_evaluation import owes_evaluations
        from grpo.run.folder import is_finished
        from grpo.run.recovery import with_recovery
        from grpo.run.stored_run import read_run
        from grpo.train_loop import train as loop

    if owes_evaluations(config) or not is_finished(config.run, steps):
        refuse_what_does_not_fit(config)
        with_recovery(config, lambda: open_progress(title, total_steps=steps, console=console), loop)
    else:
        _say_complete(config, console)
    return read_run(config.run.folder)


def sft(config: SftConfig, *, show: bool = False) -> StoredRun:
    """Fine-tune a policy on pairs of prompt and response, as a cold start before `train`.

    >>> config = grpo.load_config("configs/quickstart_sft.yaml", "sft.steps=3")
    >>> run = grpo.sft(config)
    >>> run.metrics.last_step()
    3
    >>> first = grpo.load_config("configs/quickstart.yaml", f"policy.path={run.policy}")

    Args:
        config: configuration from `load_config`.
        show: True to show the phases and the metrics of each step on the terminal.

    Returns:
        The run, read from its folder; its `policy` is the fine-tuned policy.

    Raises:
        ValueError: the config does not fit the data, the policy, the folder, the memory or the cluster.
        RuntimeError: the run cannot continue.
        TimeoutError: a deadline passed; the message names the operation.
    """
    _require(config, SftConfig, "sft", "train")
    console = _begin_fine_tuning(config, show)
    with without_collector():
        from grpo.sft_loop import sft as loop

    return _fine_tune(config, console, loop)


def dpo(config: DpoConfig, *, show: bool = False) -> StoredRun:
    """Train a policy on preferences: pairs or rankings of answers (docs/preferences.md).

    >>> config = grpo.load_config("configs/dpo_quickstart.yaml", "dpo.steps=2", "data.validation=50")
    >>> run = grpo.dpo(config)
    >>> run.metrics.last_step()
    2

    Args:
        config: configuration from `load_config`.
        show: True to show the phases and the metrics of each step on the terminal.

    Returns:
        The run, read from its folder; its `policy` is the trained policy.

    Raises:
        ValueError: the config does not fit the data, the policy, the folder, the memory or the cluster.
        RuntimeError: the run cannot continue.
        TimeoutError: a deadline passed; the message names the operation.
    """
    _require(config, DpoConfig, "dpo", "train")
    console = _begin_fine_tuning(config, show)
    with without_collector():
        from grpo.dpo_loop import dpo as loop

    return _fine_tune(config, console, loop)


def reward(config: RewardConfig, *, show: bool = False) -> StoredRun:
    """Train a reward model on preferences: a score for each answer (docs/reward_models.md).

    >>> config = grpo.load_config("configs/rlhf_quickstart_reward.yaml", "reward.steps=2", "data.validation=50")
    >>> run = grpo.reward(config)
    >>> run.metrics.last_step()
    2

    Args:
        config: configuration from `load_config`.
        show: True to show the phases and the metrics of each step on the terminal.

    Returns:
        The run, read from its folder; its `policy` is the folder of the reward model.

    Raises:
        ValueError: the config does not fit the data, the policy, the folder, the memory or the cluster.
        RuntimeError: the run cannot continue.
        TimeoutError: a deadline passed; the message names the operation.
    """
    _require(config, RewardConfig, "reward", "train")
    console = _begin_fine_tuning(config, show)
    with without_collector():
        from grpo.reward_loop import reward as loop

    return _fine_tune(config, console, loop)


def _begin_fine_tuning(config: FineTuningConfig, show: bool) -> Terminal:
    """Print the first line of a fine-tuning, before large libraries are imported; return its console."""
    console = _terminal(show)
    _say_loading(console, _title(config), "reads the data and starts Ray", config.run.folder)
    return console


def _title(config: FineTuningConfig) -> str:
    return f"{config.job.upper()} {Path(config.run.folder).name}"


def _fine_tune(config: FineTuned, console: Terminal, loop: Callable[[FineTuned, Progress], ClosingTable]) -> StoredRun:
    """Run a fine-tuning, or continue it; only read it if it is complete."""
    with without_collector():
        from grpo.planning.memory_fit import refuse_what_does_not_fit
        from grpo.report.display import FINE_TUNING_FIELDS
        from grpo.report.progress import open_progress
        from grpo.run.folder import is_finished
        from grpo.run.recovery import with_recovery
        from grpo.run.stored_run import read_run

    steps, fields = config.schedule.steps, FINE_TUNING_FIELDS[config.job]
    if is_finished(config.run, steps):
        _say_complete(config, console)
    else:
        refuse_what_does_not_fit(config)
        with_recovery(
            config, lambda: open_progress(_title(config), total_steps=steps, fields=fields, console=console), loop
        )
    return read_run(config.run.folder)


def _say_complete(config: JobConfig, console: Terminal) -> None:
    """Say that a run is complete, and which changes of the configuration have no effect."""
    from grpo.run.folder import changes_since_last_start

    console.print(literal(f"{config.run.folder} is complete: nothing was trained"), soft_wrap=True)
    for change in changes_since_last_start(config):
        console.print(literal(f"  without effect: {change}", "yellow"), soft_wrap=True)


def evaluate(
    model: str | Path,
    tasks: str | Sequence[str],
    *overrides: str,
    folder: str | Path | None = None,
    show: bool = False,
) -> dict[str, TaskMetrics]:
    """Benchmark a model on tasks, or continue an interrupted evaluation.

    >>> sums = "task.data.path=sums.jsonl"
    >>> metrics = grpo.evaluate("runs/quickstart_sft", "math500", sums, "k=4", "temperature=1", "max_tokens=64")
    >>> metrics["math500"].problems, metrics["math500"].completions
    (2, 8)
    >>> accuracy = metrics["math500"].estimates["accuracy"]
    >>> 0 <= accuracy.low <= accuracy.value <= accuracy.high <= 1
    True

    Args:
        model: a folder in Hugging Face format, a hub name, the folder of a run or a checkpoint, or the URL of an
            OpenAI-compatible endpoint.
        tasks: name or names of tasks in the package (`grpo eval tasks` lists them), or paths of task files.
        overrides: `key=value` settings of the evaluation, such as `k=4` or `generator.replicas=8`, and settings of all
            tasks, such as `task.data.path=gsm8k.jsonl`.
        folder: folder for completions and results; by default `evals/` and the model's name. If the folder already
            holds a part of this evaluation, the evaluation continues.
        show: True to print the progress and the table of results.

    Returns:
        The metrics of each task, by the task's name.

    Raises:
        ValueError: the model, a task or data do not exist, or the settings do not fit the model, a task or data.
        RuntimeError: an endpoint refuses a request, or verifiers fail so often that the metrics cannot be trusted.
        TimeoutError: a completion or a verdict did not come within its deadline.
    """
    from grpo.addresses import without_secrets
    from grpo.config.evaluation import EvalConfig
    from grpo.config.file import resolve

    task_overrides = [override.removeprefix("task.") for override in overrides if override.startswith("task.")]
    names = [tasks] if isinstance(tasks, str) else tasks
    with without_collector():
        from grpo.evaluation.problems import load_task

        # The import of the rest takes seconds. An unknown task or model is refused without it.
        chosen = [load_task(name, task_overrides) for name in names]
        from grpo.evaluation.model import default_folder, find_policy

        settings = resolve(
            EvalConfig,
            {"model": str(model), "folder": str(folder or default_folder(without_secrets(str(model))))},
            [override for override in overrides if not override.startswith("task.")],
            "the settings of the evaluation",
        )
        if not settings.is_endpoint:
            find_policy(settings.model)
        console = _terminal(show)
        _say_loading(console, f"eval {' '.join(task.name for task in chosen)}", "reads the problems", settings.folder)
        from grpo.evaluation.evaluate import evaluate as run

    return run(settings, chosen, console)


def _require(config: object, schema: type, job: str, other: str) -> None:
    if not isinstance(config, schema):
        raise ValueError(
            f"{job} takes a {schema.__name__}, got {type(config).__name__}; load a file for this job with "
            f"load_config, or call {other}"
        )


def _say_loading(console: Terminal, title: str, then: str, folder: str) -> None:
    """Print the first line of a job, before the imports that take seconds."""
    line = f"{title}: loads its libraries (some seconds), then {then}; folder {folder}"
    console.print(literal(line), soft_wrap=True)
    console.file.flush()


def _terminal(show: bool) -> Terminal:
    return Terminal() if show else Terminal(file=io.StringIO(), quiet=True)
