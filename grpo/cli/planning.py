"""The commands for planning: check, profile, simulate, config."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from grpo.cli.guarded import EXIT_FAILED, guarded
from grpo.cli.options import ConfigPath, Debug, LogLevelOption, Overrides, with_log_level
from grpo.config import TrainConfig
from grpo.config.file import load
from grpo.jobs import load_config
from grpo.terminal import Terminal

# Largest number of gold answers that `grpo check` judges. Most data sets have fewer. The math verifier judges this
# number in about a minute on a single core.
GOLD_LIMIT = 20_000


# Longest wait for a probe, in seconds. The slowest probe starts vLLM from a file system with a cold cache.
PREFLIGHT_S = 180.0


def check(
    config: ConfigPath,
    overrides: Overrides = None,
    gold_limit: Annotated[
        int, typer.Option(min=0, help="largest number of gold answers to check; if there are more, a sample; 0: none")
    ] = GOLD_LIMIT,
    strict: Annotated[
        bool, typer.Option("--strict", help="exit with 1 if data fail the check, or cannot be checked")
    ] = False,
    cluster: Annotated[bool, typer.Option("--cluster", help="also try every node of the cluster; see below")] = False,
    full: Annotated[bool, typer.Option("--full", help="print every key, and the whole of the first prompts")] = False,
    debug: Debug = False,
) -> None:
    """Validate a config: print what differs from the defaults, the data, the gold answers, the plan and a verdict.

    The plan has actors, devices, objective, batch arithmetic and memory. `--full` prints the whole resolved config.

    A verifier must accept the gold answer of its row, and refuse the gold answers of other rows. Otherwise the check
    prints a warning, or with `--strict` it fails. If a verifier accepts no gold answer, or too many references cannot
    be used, the check fails, and `grpo train` does not start. Without `--cluster`, the check claims no devices and
    writes nothing. With it, each node of the cluster (by default, this machine) takes part in an all-reduce, samples a
    completion, receives new weights and runs a program in the sandbox. The sections of the config choose the job.
    """

    def job() -> None:
        settings = load_config(config, *overrides or ())
        # The import takes seconds, and a wrong config is refused without it.
        from grpo.planning.check import show_plan

        gold_behaves = show_plan(settings, Terminal(), gold_limit=gold_limit, full=full)
        if cluster:
            from grpo.cluster.preflight.nodes import preflight
            from grpo.cluster.preflight.probes import table_of

            outcomes_by_node = preflight(settings.cluster, PREFLIGHT_S)
            Terminal().print(table_of(outcomes_by_node))
            if not all(outcome.passed for outcomes in outcomes_by_node.values() for outcome in outcomes.values()):
                raise RuntimeError("a node cannot do what a run needs; the table shows the node and the reason")
        if strict and not gold_behaves:
            raise typer.Exit(EXIT_FAILED)

    guarded(job, debug)


def profile(
    config: ConfigPath,
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(min=1, help="steps to profile, after two warm-up steps")] = 3,
    log_level: LogLevelOption = None,
    debug: Debug = False,
) -> None:
    """Train for a few steps, show where the time goes, and suggest what to try next.

    Learner and generators run under PyTorch's profiler, in a folder beside the run's. Open the traces, and Ray's time
    line, in ui.perfetto.dev. The profiler slows each step down: compare phases and operators, not throughput.
    """

    def job() -> None:
        settings = load(TrainConfig, config, with_log_level(overrides, log_level))
        from grpo.planning.profile import WARM_UP
        from grpo.planning.profile import profile as run
        from grpo.report.progress import open_progress

        run(settings, open_progress("Profile", total_steps=WARM_UP + steps), Terminal(), steps)

    guarded(job, debug)


def simulate(
    config: ConfigPath,
    overrides: Overrides = None,
    run: Annotated[Path | None, typer.Option("--from", metavar="RUN", help="run with lengths and speeds")] = None,
    lengths: Annotated[str | None, typer.Option(metavar="LENGTHS", help="distribution, written as above")] = None,
    gpus: Annotated[str, typer.Option(help="sizes of the cluster")] = "8,32,128,512,1000",
    lag: Annotated[str, typer.Option(help="values of rollout.max_policy_lag")] = "0,1,4",
    generator_share: Annotated[
        str, typer.Option(help="shares of the GPUs that generate; the best share is shown")
    ] = "0.25,0.5,0.625,0.75,0.875",
    all_splits: Annotated[bool, typer.Option("--all-splits", help="show every share, not only the best")] = False,
    scale_batch: Annotated[
        bool, typer.Option("--scale-batch", help="let rollout.prompts_per_step grow with the GPUs")
    ] = False,
    decode_base_s: Annotated[float | None, typer.Option(help="seconds of an engine step")] = None,
    decode_sequence_s: Annotated[float | None, typer.Option(help="seconds that each sequence adds")] = None,
    prefill_token_s: Annotated[float | None, typer.Option(help="seconds for a token of prefill")] = None,
    learn_base_s: Annotated[float | None, typer.Option(help="seconds of a training step")] = None,
    learn_token_s: Annotated[float | None, typer.Option(help="GPU-seconds that each token adds")] = None,
    push_s: Annotated[float | None, typer.Option(help="seconds of a weight push")] = None,
    prompt_tokens: Annotated[int | None, typer.Option(help="default: rollout.max_prompt_tokens")] = None,
    steps: Annotated[int, typer.Option(help="training steps to measure in each simulated run")] = 40,
    seed: Annotated[int, typer.Option(help="seed of the lengths; every lag and split gets the same")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="print assumptions and all rows as JSON")] = False,
    debug: Debug = False,
) -> None:
    """Predict step time, throughput and idle shares by policy lag and number of GPUs, without any GPU.

    Give `--from RUN` for the lengths of a run's stored rollouts and speeds fitted to its metrics. Or give `--lengths`:
    `constant:tokens=500`, `lognormal:median=600,sigma=0.8` (or `mean=`), `pareto:minimum=200,alpha=1.5`, or a mixture,
    `0.95*lognormal:median=600,sigma=0.5+0.05*pareto:minimum=3000,alpha=1.2`, cut at rollout.max_completion_tokens.
    Without `--from`, speeds are estimates for a policy of 4 billion parameters on GPUs of 80 GB; options replace them.
    docs/simulator.md describes the model and its limits. The command claims no devices and writes nothing.
    """

    def job() -> None:
        from grpo.planning.simulation.command import SimulationRequest, show

        given = {
            "decode_base_s": decode_base_s,
            "decode_sequence_s": decode_sequence_s,
            "prefill_token_s": prefill_token_s,
            "learn_base_s": learn_base_s,
            "learn_token_s": learn_token_s,
            "push_s": push_s,
        }
        request = SimulationRequest(
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

    guarded(job, debug)


def config(
    key: Annotated[
        str | None, typer.Argument(metavar="[KEY]", help="a section, a key or a word: rollout, learner.lora.rank, warm")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="print the whole page docs/config.md")] = False,
    migrating: Annotated[bool, typer.Option("--migrating", help="print the whole page docs/migrating.md")] = False,
    debug: Debug = False,
) -> None:
    """Show every key of the configuration, or the keys under a name, with values, default and meaning.

    If there is no such name, show the keys with this word in their name or description. For a key of verl, TRL,
    OpenRLHF or prime-rl, name the key that does the same.
    """

    def job() -> None:
        from grpo.config import reference as config_reference

        def descriptions(name: str) -> Mapping[str, str]:
            # Importing torch takes seconds. So import it only for sections that need it.
            if not name.startswith("algorithm."):
                return {}
            from grpo.algorithm import choices

            return choices.said(name)

        if migrating:
            from grpo.config.migrating import markdown as migrating_page

            print(migrating_page(config_reference.defaults()), end="")
        elif markdown:
            print(config_reference.markdown(), end="")
        else:
            config_reference.show(config_reference.matching(key or ""), Terminal(), descriptions)

    guarded(job, debug)
