"""The command line of `grpo`: one function for each command."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from grpo.config import SftConfig, TrainConfig
from grpo.config_file import load
from grpo.eval_cli import eval_app
from grpo.guarded import EXIT_FAILED
from grpo.guarded import guarded as _guarded
from grpo.start_up import without_collector
from grpo.terminal import Terminal, literal, show_traceback

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

app.add_typer(eval_app, name="eval")


@app.command()
def train(config: ConfigPath, overrides: Overrides = None, debug: Debug = False) -> None:
    """Train a policy with GRPO, or go on with a run (`resume=auto`).

    The run's folder gets the resolved config, metrics, rollouts, figures, an HTML report, and checkpoints whose
    `policy/` folder `transformers` and vLLM load as it is. Ctrl-C finishes the step, writes a checkpoint and ends.
    After the death of a process or node the run goes on from its newest checkpoint by itself (`cluster.max_restarts`).
    """

    def job() -> None:
        settings = load(TrainConfig, config, overrides or [])
        with without_collector():
            from grpo.background_evaluation import owes_evaluations
            from grpo.progress import open_progress
            from grpo.recovery import with_recovery
            from grpo.run_folder import finished_table
            from grpo.train import train as run

        table = None if owes_evaluations(settings) else finished_table(settings.run, settings.train.steps)
        if table is None:
            steps = settings.train.steps
            table = with_recovery(settings, lambda: open_progress("GRPO", total_steps=steps), run)
        Terminal().print(table)

    _guarded(job, debug)


@app.command()
def sft(config: ConfigPath, overrides: Overrides = None, debug: Debug = False) -> None:
    """Fine-tune a policy on prompt and response rows: the cold start before `grpo train`.

    The policy is written to the run folder's `policy/`, in Hugging Face format. After the death of a process or node
    the run goes on from its newest checkpoint by itself (`cluster.max_restarts`, `sft.checkpoint_every`).
    """

    def job() -> None:
        settings = load(SftConfig, config, overrides or [])
        with without_collector():
            from grpo.progress import SFT_FIELDS, open_progress
            from grpo.recovery import with_recovery
            from grpo.run_folder import finished_table
            from grpo.sft import sft as run

        table = finished_table(settings.run, settings.sft.steps)
        if table is None:
            steps = settings.sft.steps
            table = with_recovery(settings, lambda: open_progress("SFT", total_steps=steps, fields=SFT_FIELDS), run)
        Terminal().print(table)

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
    is told as a warning, or fails the check with `--strict`. Where none is `correct`, or too many references cannot be
    used, the check fails, and `grpo train` does not start. Nothing is claimed and nothing is written, unless
    `--cluster` is given: then each node of the cluster (of this machine, where `cluster.address` names none) takes part
    in an all-reduce, samples a completion, receives new weights and runs a program in the sandbox. Whether the file is
    for `train` or `sft` is seen from its keys.
    """

    def job() -> None:
        from grpo.plan import show_plan

        settings = _load_either(config, overrides)
        gold_behaves = show_plan(settings, Terminal(), gold_limit=gold_limit)
        if cluster:
            from grpo.preflight import preflight
            from grpo.probes import table_of

            found = preflight(settings.cluster, PREFLIGHT_S)
            Terminal().print(table_of(found))
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

        audit_run(run, Terminal(), verifiers=verifier or (), limit=limit, show=show, deadline_s=deadline_s)

    _guarded(job, debug)


@app.command()
def profile(
    config: ConfigPath,
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(min=1, help="steps to watch, after two that warm up")] = 3,
    debug: Debug = False,
) -> None:
    """Train for a few steps and tell where the time goes, and what to try next.

    Learner and generators run under PyTorch's profiler, in a folder beside the run's. The traces, and Ray's time line,
    are for ui.perfetto.dev. A step takes longer than without: compare phases and operators, not throughput.
    """

    def job() -> None:
        settings = load(TrainConfig, config, overrides or [])
        from grpo.profile import WARM_UP
        from grpo.profile import profile as run
        from grpo.progress import open_progress

        run(settings, open_progress("Profile", total_steps=WARM_UP + steps), Terminal(), steps)

    _guarded(job, debug)


@app.command()
def simulate(
    config: ConfigPath,
    overrides: Overrides = None,
    run: Annotated[
        Path | None, typer.Option("--from", metavar="RUN", help="lengths and speeds as recorded in this run's folder")
    ] = None,
    lengths: Annotated[
        str | None, typer.Option(metavar="LENGTHS", help="lengths from a distribution, written as above")
    ] = None,
    gpus: Annotated[str, typer.Option(help="sizes of the cluster")] = "8,32,128,512,1000",
    lag: Annotated[str, typer.Option(help="values of rollout.max_policy_lag")] = "0,1,4",
    generator_share: Annotated[
        str, typer.Option(help="shares of the GPUs that generate; the best of them is shown")
    ] = "0.25,0.5,0.625,0.75,0.875",
    all_splits: Annotated[bool, typer.Option("--all-splits", help="show every share, not only the best")] = False,
    scale_batch: Annotated[
        bool, typer.Option("--scale-batch", help="let rollout.prompts_per_step grow with the GPUs")
    ] = False,
    decode_base_s: Annotated[float | None, typer.Option(help="seconds of an engine step")] = None,
    decode_sequence_s: Annotated[float | None, typer.Option(help="seconds that each sequence in it adds")] = None,
    prefill_token_s: Annotated[
        float | None, typer.Option(help="seconds for a token of a prompt, or one computed again after a push")
    ] = None,
    learn_base_s: Annotated[float | None, typer.Option(help="seconds of a training step")] = None,
    learn_token_s: Annotated[float | None, typer.Option(help="GPU-seconds that each token in it adds")] = None,
    push_s: Annotated[float | None, typer.Option(help="seconds of a weight push")] = None,
    prompt_tokens: Annotated[
        int | None, typer.Option(help="length of a prompt; by default rollout.max_prompt_tokens")
    ] = None,
    steps: Annotated[int, typer.Option(help="training steps to measure in each simulated run")] = 40,
    seed: Annotated[int, typer.Option(help="of the lengths, which are the same for every lag and split")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="print assumptions and all rows as JSON")] = False,
    debug: Debug = False,
) -> None:
    """Predict step time, throughput and idle shares by policy lag and number of GPUs, without any GPU.

    Give `--from RUN`, for the lengths of a run's stored rollouts and speeds fitted to its metrics, or `--lengths`:
    `constant:tokens=500`, `lognormal:median=600,sigma=0.8` (or `mean=`), `pareto:minimum=200,alpha=1.5`, or a mixture,
    `0.95*lognormal:median=600,sigma=0.5+0.05*pareto:minimum=3000,alpha=1.2`, cut at rollout.max_completion_tokens.
    Without `--from`, speeds are estimates for a policy of 4 billion parameters on GPUs of 80 GB, to be replaced by the
    options. docs/simulator.md tells what is modelled and what is not. Nothing is claimed and nothing is written.
    """

    def job() -> None:
        from grpo.simulation import Request, show

        given = {
            "decode_base_s": decode_base_s,
            "decode_sequence_s": decode_sequence_s,
            "prefill_token_s": prefill_token_s,
            "learn_base_s": learn_base_s,
            "learn_token_s": learn_token_s,
            "push_s": push_s,
        }
        request = Request(
            settings=load(TrainConfig, config, overrides or []),
            run=run,
            lengths=lengths,
            speeds={name: seconds for name, seconds in given.items() if seconds is not None},
            prompt_tokens=prompt_tokens,
            steps=steps,
            seed=seed,
            scale_batch=scale_batch,
        )
        show(request, gpus, lag, generator_share, Terminal(), all_splits=all_splits, as_json=as_json)

    _guarded(job, debug)


@app.command()
def view(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="folders of runs, for example runs/quickstart")],
    host: Annotated[
        str, typer.Option(help="address to serve on; any but this one shows the runs to a network, and needs a token")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one")] = 8642,
    export: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="write the page as one file, and serve nothing")
    ] = None,
    png: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="write the curves as PNG, and serve nothing")
    ] = None,
    token: Annotated[
        bool, typer.Option("--token", help="ask for a token here too: other users of this machine reach 127.0.0.1")
    ] = False,
    debug: Debug = False,
) -> None:
    """Look at runs in a browser: curves, groups of completions, what was learned, signs of reward hacking.

    The page is served to this machine only, needs no network, and follows runs that still go on (docs/looking.md).
    """

    def job() -> None:
        from grpo.view_runs import open_runs

        console = Terminal()
        opened = open_runs(runs)
        if export is not None:
            from grpo.view_page import export as write

            console.print(f"written: {write(opened, export)}", soft_wrap=True)
        if png is not None:
            from grpo.figures import overview

            for path in overview(runs, png):
                console.print(f"written: {path}", soft_wrap=True)
        if export is None and png is None:
            from grpo.view import serve

            serve(
                opened,
                host=host,
                port=port,
                say=lambda line: console.print(literal(line), soft_wrap=True),
                ask_token=token,
            )

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


@app.command()
def config(
    key: Annotated[
        str | None, typer.Argument(metavar="[KEY]", help="a section or key, for example rollout or learner.lora.rank")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="print the whole page docs/config.md")] = False,
    debug: Debug = False,
) -> None:
    """Show what can be configured: every key with its values, default and meaning, or those under one name."""

    def job() -> None:
        from grpo import config_reference

        if markdown:
            print(config_reference.markdown(), end="")
        else:
            config_reference.show(config_reference.matching(key or ""), Terminal())

    _guarded(job, debug)


@app.callback()
def _start() -> None:
    # An error that nobody expected may quote a completion as well.
    sys.excepthook = show_traceback
    # A generator or verifier named by its module may lie in the folder that the command is run from.
    sys.path.append(os.getcwd())


def _load_either(path: Path, overrides: list[str] | None) -> TrainConfig | SftConfig:
    """A config of either job, which is seen from its keys."""
    from grpo.plan import schema_of

    if schema_of(path) is SftConfig:
        return load(SftConfig, path, overrides or [])
    return load(TrainConfig, path, overrides or [])
