"""The command line: `grpo train`, `grpo sft`, `grpo check`, `grpo launch`, `grpo audit`."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape

from grpo.config import SftConfig, TrainConfig
from grpo.config_file import load

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="""Teach a language model to reason by reinforcement learning from verifiable rewards.

Every job takes a YAML file and any number of dotted overrides, for example

`grpo train configs/quickstart.yaml rollout.group_size=16 resume=auto`

Start with `grpo check CONFIG`: it finds every problem at once and claims nothing.""",
)

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, for example configs/quickstart.yaml")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="dotted overrides, for example train.steps=100")
]
Debug = Annotated[bool, typer.Option("--debug", help="show the whole traceback of an error")]

# Gold answers that `grpo check` looks at: all of most data sets, a minute or so of the math verifier on one core.
GOLD_LIMIT = 20_000
# Longest wait for one probe: that of vLLM's start, on a file system that has not read it yet.
PREFLIGHT_S = 180.0
# A user's mistake, and a run that could not go on: distinct for scripts that retry.
EXIT_MISTAKE, EXIT_FAILED, EXIT_INTERRUPTED = 2, 1, 130


@app.command()
def train(config: ConfigPath, overrides: Overrides = None, debug: Debug = False) -> None:
    """Train a policy with GRPO, or go on with a run (`resume=auto`).

    The run's folder gets the resolved config, metrics, rollouts, figures, an HTML report, and checkpoints whose
    `policy/` folder `transformers` and vLLM load as it is. Ctrl-C finishes the step, writes a checkpoint and ends.
    After the death of a process or node the run goes on from its newest checkpoint by itself (`cluster.max_restarts`).
    """

    def job() -> None:
        settings = load(TrainConfig, config, overrides or [])
        from grpo.progress import open_progress
        from grpo.recovery import train_with_recovery
        from grpo.run_folder import finished_table

        table = finished_table(settings.run, settings.train.steps)
        if table is None:
            table = train_with_recovery(settings, lambda: open_progress("GRPO", total_steps=settings.train.steps))
        Console().print(table)

    _guarded(job, debug)


@app.command()
def sft(config: ConfigPath, overrides: Overrides = None, debug: Debug = False) -> None:
    """Fine-tune a policy on prompt and response rows: the cold start before `grpo train`.

    The policy is written to the run folder's `policy/`, in Hugging Face format.
    """

    def job() -> None:
        settings = load(SftConfig, config, overrides or [])
        from grpo.progress import SFT_FIELDS, open_progress
        from grpo.run_folder import finished_table
        from grpo.sft import sft as run

        table = finished_table(settings.run, settings.sft.steps)
        if table is None:
            table = run(settings, open_progress("SFT", total_steps=settings.sft.steps, fields=SFT_FIELDS))
        Console().print(table)

    _guarded(job, debug)


@app.command()
def check(
    config: ConfigPath,
    overrides: Overrides = None,
    gold_limit: Annotated[
        int, typer.Option(min=0, help="gold answers to check at most, drawn by chance where there are more; 0: none")
    ] = GOLD_LIMIT,
    strict: Annotated[bool, typer.Option("--strict", help="exit with 1 where gold answers do not behave")] = False,
    cluster: Annotated[bool, typer.Option("--cluster", help="also try every node of the cluster; see below")] = False,
    debug: Debug = False,
) -> None:
    """Validate a config, print it resolved, and the plan: actors, devices, batch arithmetic, memory, gold answers.

    Every gold answer of the data must be `correct` to its verifier, and another row's must not: what does not behave
    is told as a warning, or fails the check with `--strict`. Nothing is claimed and nothing is written, unless
    `--cluster` is given: then each node of the cluster (of this machine, where `cluster.address` names none) takes part
    in an all-reduce, samples a completion, receives new weights and runs a program in the sandbox. Whether the file is
    for `train` or `sft` is seen from its keys.
    """

    def job() -> None:
        from grpo.plan import show_plan

        settings = _load_either(config, overrides)
        gold_behaves = show_plan(settings, Console(), gold_limit=gold_limit)
        if cluster:
            from grpo.cluster import preflight
            from grpo.preflight import table_of

            found = preflight(settings.cluster, PREFLIGHT_S)
            Console().print(table_of(found))
            if not all(outcome.passed for outcomes in found.values() for outcome in outcomes.values()):
                raise RuntimeError("a node cannot do what a run needs of it; the table says which, and why")
        if strict and not gold_behaves:
            raise typer.Exit(EXIT_FAILED)

    _guarded(job, debug)


@app.command()
def audit(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="a run's folder, for example runs/quickstart")],
    verifier: Annotated[
        list[str] | None, typer.Option(help="verifier to audit, by its name in the run; default: `math` and `numeric`")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="verdicts to look at most, drawn by chance")] = 20_000,
    show: Annotated[int, typer.Option(min=0, help="disagreements of each kind to print")] = 3,
    deadline_s: Annotated[float, typer.Option(min=0.1, help="seconds after which Math-Verify is killed")] = 5.0,
    debug: Debug = False,
) -> None:
    """Grade a run's stored rollouts again with Math-Verify (extra `audit`), and tell where the two disagree.

    The rates of false positives and false negatives are estimates with 95 % intervals: Math-Verify errs too, so read
    the texts. All disagreements are written to `audit.jsonl` in the run's folder.
    """

    def job() -> None:
        from grpo.audit import audit_run

        audit_run(run, Console(), verifiers=verifier or (), limit=limit, show=show, deadline_s=deadline_s)

    _guarded(job, debug)


@app.command()
def launch(
    target: Annotated[Literal["local", "slurm", "kuberay", "ray"], typer.Argument(help="where to")],
    config: ConfigPath,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print it and start nothing")] = False,
    debug: Debug = False,
) -> None:
    """Run a config on this machine, through Slurm, on Kubernetes (KubeRay), or on a Ray cluster that is up.

    The nodes come from the config's section `launch` (docs/cluster.md). Whether it is `grpo train` or `grpo sft` is
    seen from the config's keys; either goes on from its newest checkpoint where there is one.
    """
    status = 0

    def job() -> None:
        from launch.job import Job
        from launch.start import render, start

        nonlocal status
        described = Job(_load_either(config, overrides), Path.cwd())
        if dry_run:
            print(render(target, described), end="")
        else:
            status = start(target, described)

    _guarded(job, debug)
    raise typer.Exit(status)


@app.callback()
def _start() -> None:
    # A generator or verifier named by its module may lie in the folder that the command is run from.
    sys.path.append(os.getcwd())
    # torchdata calls what torch has deprecated; nobody who reads a run's output can do anything about it.
    warnings.filterwarnings("ignore", message="'set_vital' is deprecated")


def _load_either(path: Path, overrides: list[str] | None) -> TrainConfig | SftConfig:
    """A config of either job, which is seen from its keys."""
    from grpo.plan import schema_of

    if schema_of(path) is SftConfig:
        return load(SftConfig, path, overrides or [])
    return load(TrainConfig, path, overrides or [])


def _guarded(job: Callable[[], None], debug: bool) -> None:
    """Run a command; an expected failure is one message and an exit code, not a traceback."""
    try:
        job()
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except (ValueError, RuntimeError, TimeoutError, OSError) as failure:
        if debug:
            raise
        told = f"[bold red]{type(failure).__name__}[/]: {escape(str(failure))}"
        Console(stderr=True, highlight=False).print(told, soft_wrap=True)
        raise typer.Exit(EXIT_MISTAKE if isinstance(failure, ValueError) else EXIT_FAILED) from failure
