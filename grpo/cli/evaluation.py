"""`grpo eval MODEL`, `grpo eval compare A B`, `grpo eval tasks`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from grpo import jobs
from grpo.cli.guarded import guarded
from grpo.cli.options import Debug, LogLevelOption
from grpo.terminal import LiteralTable, Terminal, literal


class _RunsByDefault(TyperGroup):
    """The command `run` is the default of this group: `grpo eval MODEL` is `grpo eval run MODEL`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


eval_app = typer.Typer(
    cls=_RunsByDefault,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="""Benchmark a model on reasoning tasks, with the generators, verifiers and sandbox of training.

`grpo eval MODEL --task gsm8k --task math500 --k 4`

is short for `grpo eval run MODEL ...`; see `grpo eval run --help`.""",
)


@eval_app.command()
def run(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="policy folder, hub name, run, checkpoint, or http://")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="for example generator.replicas=8 or task.data.prompt=question"),
    ] = None,
    task: Annotated[list[str] | None, typer.Option(help="name of a task, or path of its file; repeatable")] = None,
    data: Annotated[Path | None, typer.Option(help="local copy of the task's data (.jsonl, .json, .parquet)")] = None,
    like: Annotated[
        str | None,
        typer.Option(help="published sampling settings by name, such as deepseek-r1; see grpo eval tasks"),
    ] = None,
    k: Annotated[int | None, typer.Option(help="completions for each problem and seed; default: the task's")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy; default: the task's")] = None,
    top_p: Annotated[float | None, typer.Option(help="default: the task's")] = None,
    top_k: Annotated[
        int | None, typer.Option(help="likeliest tokens to sample from; 0: all; default: the task's")
    ] = None,
    min_p: Annotated[float | None, typer.Option(help="default: the task's")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="longest completion; default: the task's")] = None,
    seeds: Annotated[str | None, typer.Option(help="seeds such as 0,1,2; each makes k completions")] = None,
    limit: Annotated[int | None, typer.Option(help="number of problems of each task, from the first")] = None,
    out: Annotated[
        Path | None, typer.Option(help="folder for the results; default: evals/ and the model's name")
    ] = None,
    log_level: LogLevelOption = None,
    debug: Debug = False,
) -> None:
    """Sample, verify, and print accuracy, pass@k, maj@k, lengths and statuses with 95 % intervals over problems.

    If an evaluation is stopped, the same command continues it. MODEL is a folder in Hugging Face format, a hub name, a
    run's folder (its newest checkpoint), a checkpoint, or the URL of an OpenAI-compatible endpoint,
    `http://host:port/v1`. The results come with a card of everything that determines them, and with a copy in the
    format of lm-evaluation-harness.
    """

    def job() -> None:
        options: dict[str, Any] = {"k": k, "temperature": temperature, "max_tokens": max_tokens}
        options |= {"top_p": top_p, "top_k": top_k, "min_p": min_p}
        options |= {
            "like": like,
            "limit": limit,
            "log_level": log_level,
            "seeds": None if seeds is None else f"[{seeds}]",
        }
        settings = [f"{name}={value}" for name, value in options.items() if value is not None]
        if data is not None:
            if len(task or ()) != 1:
                raise ValueError(f"--data is the data of a single task, got {len(task or ())}; give one --task with it")
            settings.append(f"task.data.path={data}")
        jobs.evaluate(model, task or (), *settings, *overrides or (), folder=out, show=True)

    guarded(job, debug)


@eval_app.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="folder of an evaluation")],
    second: Annotated[Path, typer.Argument(metavar="B", help="folder of another evaluation, on the same tasks")],
    show: Annotated[int, typer.Option(min=0, help="flipped problems to print for each task and direction")] = 5,
    out: Annotated[Path | None, typer.Option(help="also write the comparison as JSON to this file")] = None,
    debug: Debug = False,
) -> None:
    """Test whether B is better than A on the problems that both answered, and show the problems that flipped.

    Both must be finished. A problem has flipped if exactly one of A and B has more than half of its completions right.
    """

    def job() -> None:
        from grpo.evaluation.compare import compare_folders

        compare_folders(first, second, Terminal(), show=show, out=out)

    guarded(job, debug)


@eval_app.command()
def tasks(
    long: Annotated[
        bool,
        typer.Option("--long", help="also say where the problems come from, and which numbers are comparable"),
    ] = False,
) -> None:
    """List the tasks that come with the package, and the published conditions for `--like`."""
    from grpo.config.conditions import PUBLISHED
    from grpo.evaluation.problems import load_task, task_names

    terminal, table = Terminal(), LiteralTable()
    for column in ("task", "problems", "verifier", "k", "temperature", "top_p", "top_k", "max_tokens"):
        table.add_column(column, no_wrap=column == "task")
    loaded = [load_task(name) for name in task_names()]
    for task in loaded:
        sampling = task.sampling
        settings = [str(sampling.k), f"{sampling.temperature:g}", f"{sampling.top_p:g}"]
        settings += [str(sampling.top_k or "all"), f"{sampling.max_tokens:,}"]
        table.add_row(task.name, f"{task.size:,}" if task.size else "?", task.verifier.use, *settings)
    terminal.print(table)
    if long:
        for task in loaded:
            data = f"{task.data.hub} ({', '.join(filter(None, (task.data.subset, task.data.split)))})"
            line = f"{task.name}: {task.source} Data: {data}. Comparable with: {task.comparable}"
            terminal.print(literal(line), soft_wrap=True)
    for name, conditions in PUBLISHED.items():
        terminal.print(literal(f"--like {name}: {conditions.source}"), soft_wrap=True)
