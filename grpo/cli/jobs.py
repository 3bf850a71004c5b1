"""The commands that train: train, sft, launch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from grpo import jobs
from grpo.cli.guarded import guarded
from grpo.cli.options import ConfigPath, Debug, LogLevelOption, Overrides, with_log_level
from grpo.config import DpoConfig, RewardConfig, SftConfig, TrainConfig
from grpo.config.file import load
from grpo.terminal import Terminal, literal


def train(
    config: ConfigPath, overrides: Overrides = None, log_level: LogLevelOption = None, debug: Debug = False
) -> None:
    """Train a policy with GRPO, or continue a run (`resume=auto`).

    The run's folder gets the resolved config, metrics, rollouts, figures, an HTML report, and checkpoints.
    `transformers` and vLLM can load a checkpoint's `policy/` folder. Ctrl-C finishes the step, writes a checkpoint and
    ends. If a process or node dies, the run continues from its newest checkpoint (`cluster.max_restarts`).
    """

    def job() -> None:
        settings = load(TrainConfig, config, with_log_level(overrides, log_level))
        Terminal().print(jobs.train(settings, show=True).summary)

    guarded(job, debug)


def sft(
    config: ConfigPath, overrides: Overrides = None, log_level: LogLevelOption = None, debug: Debug = False
) -> None:
    """Fine-tune a policy on prompt and response rows: the cold start before `grpo train`.

    The run folder's `policy/` gets the policy, in Hugging Face format. If a process or node dies, the run continues
    from its newest checkpoint (`cluster.max_restarts`, `sft.checkpoint_every`).
    """

    def job() -> None:
        settings = load(SftConfig, config, with_log_level(overrides, log_level))
        Terminal().print(jobs.sft(settings, show=True).summary)

    guarded(job, debug)


def dpo(
    config: ConfigPath, overrides: Overrides = None, log_level: LogLevelOption = None, debug: Debug = False
) -> None:
    """Train a policy on preferences: pairs or rankings of answers (DPO, IPO, conservative DPO).

    The run folder's `policy/` gets the policy, in Hugging Face format. If a process or node dies, the run continues
    from its newest checkpoint (`cluster.max_restarts`, `dpo.checkpoint_every`). docs/preferences.md has the rows, the
    losses and the metrics.
    """

    def job() -> None:
        settings = load(DpoConfig, config, with_log_level(overrides, log_level))
        Terminal().print(jobs.dpo(settings, show=True).summary)

    guarded(job, debug)


def reward(
    config: ConfigPath,
    overrides: Overrides = None,
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="train nothing: score all rows of data with the model policy.path")
    ] = False,
    by: Annotated[str | None, typer.Option(help="with --evaluate: column that divides the rows into subsets")] = None,
    log_level: LogLevelOption = None,
    debug: Debug = False,
) -> None:
    """Train a reward model on preferences: pairs or rankings of answers (Bradley-Terry, Plackett-Luce).

    The run folder's `policy/` gets the model. `AutoModelForSequenceClassification` of `transformers` loads it, and the
    verifier `reward_model` of `grpo train` scores completions with it. If a process or node dies, the run continues
    from its newest checkpoint. `--evaluate` shows the accuracy of a trained model on other rows.
    docs/reward_models.md has the losses, the metrics and the use in `grpo train`.
    """

    def job() -> None:
        settings = load(RewardConfig, config, with_log_level(overrides, log_level))
        if evaluate:
            from grpo.reward_evaluation import evaluate_reward_model, show_accuracies

            found, left_out = evaluate_reward_model(settings, by)
            show_accuracies(found, left_out, Terminal())
            return
        Terminal().print(jobs.reward(settings, show=True).summary)

    guarded(job, debug)


def launch(
    target: Annotated[Literal["local", "slurm", "kuberay", "ray"], typer.Argument(help="where the job runs")],
    config: ConfigPath,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the job, and start nothing")] = False,
    debug: Debug = False,
) -> None:
    """Run a config on this machine, through Slurm, on Kubernetes (KubeRay), or on a running Ray cluster.

    The nodes come from the config's section `launch` (docs/cluster.md). The config's keys decide whether `grpo train`,
    `grpo sft`, `grpo dpo` or `grpo reward` runs. Each continues from the newest checkpoint, if there is a checkpoint.
    """
    status = 0

    def job() -> None:
        from grpo.cluster.claim import idle_gpus
        from launch.job import LaunchJob
        from launch.start import render, start

        nonlocal status
        described = LaunchJob(jobs.load_config(config, *overrides or ()), Path.cwd())
        for warning in idle_gpus(described.settings):
            Terminal(stderr=True).print(literal(f"warning: {warning}", "yellow"), soft_wrap=True)
        if dry_run:
            print(render(target, described), end="")
        else:
            status = start(target, described)

    guarded(job, debug)
    raise typer.Exit(status)
