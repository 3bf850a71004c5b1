"""VeriGRPO against TRL's GRPOTrainer: completions per second over whole steps, on this machine, by one command.

    .venv/bin/python tests/bench/quickstart_against_trl.py

Both sides start from the same policy and get the same prompts in the same order, the same verifier, the same number
of completions and optimizer steps and the same hyper-parameters; each runs alone, in processes of its own. Ours is
`grpo train` as a user starts it. TRL generates with `transformers`, in the fastest of several settings, which short
trials find out. `docs/benchmarks.md` says what is measured, and how the two are kept comparable.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import importlib.util
import itertools
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import long_tail
import psutil
import typer
from measurement import Measurement, Step, mean_of, per_second, quartiles, step_rates, tokens_per_second
from rich.console import Console
from rich.table import Table
from trl_side import INSTALL

from grpo.config import SftConfig, TrainConfig
from grpo.config.file import dump, load
from grpo.report import rollout_store
from grpo.report.metrics_log import read_history

ROOT = Path(__file__).resolve().parents[2]
GRPO = (sys.executable, "-c", "from grpo.cli.app import app; app()")
# A completion of so many tokens is one of the tail.
LONG = 300
SAMPLE_EVERY_S = 0.5
console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)


class Variant(enum.StrEnum):
    """What is compared."""

    QUICKSTART = "quickstart"
    LONG_TAILED = "long-tailed"
    BOTH = "both"


@dataclass(frozen=True, slots=True)
class TrlSetting:
    """What TRL's speed depends on and its results do not."""

    threads: int
    microbatch: int
    generation: str
    # Whether threads that wait spin, which is faster on an idle machine and ruinous on a busy one.
    wait: str = "active"


# --- the two tasks ------------------------------------------------------------------------------------------------


def quickstart_settings(policy: Path | None, work: Path, overrides: Sequence[str]) -> TrainConfig:
    """`configs/quickstart.yaml`, with its cold start made where no policy is given."""
    if policy is None:
        policy = cold_start(load(SftConfig, ROOT / "configs/quickstart_sft.yaml"), work / "quickstart_sft")
    return settings_of(policy, work, overrides)


def long_tailed_settings(
    policy: Path | None, start: Path | None, work: Path, overrides: Sequence[str], marked_one_in: int
) -> TrainConfig:
    """The quickstart with a policy and questions whose completions have a long tail."""
    work.mkdir(parents=True, exist_ok=True)
    if policy is None:
        start = start or cold_start(load(SftConfig, ROOT / "configs/quickstart_sft.yaml"), work / "quickstart_sft")
        rows = work / "demonstrations.jsonl"
        write_rows(rows, long_tail.cold_start_rows(20_000, marked_one_in=8))
        second_start = [
            "policy.new=null",
            f"policy.path={start}",
            "data.generator=null",
            f"data.path={rows}",
            "learner.learning_rate=2e-3",
            "learner.threads=1",
            "sft.max_tokens=512",
            "sft.steps=300",
            "sft.checkpoint_every=300",
        ]
        settings = load(SftConfig, ROOT / "configs/quickstart_sft.yaml", second_start)
        policy = cold_start(settings, work / "long_tailed_sft")
    rows = work / "questions.jsonl"
    write_rows(rows, long_tail.training_rows(4000, marked_one_in))
    longer = ["data.generator=null", f"data.path={rows}", "rollout.max_completion_tokens=440"]
    return settings_of(policy, work, [*longer, *overrides])


def settings_of(policy: Path, work: Path, overrides: Sequence[str]) -> TrainConfig:
    """The quickstart's config for a comparison: no evaluation and no recording beside the metrics."""
    shared = [f"policy.path={policy.absolute()}", "evaluation=null", "report.trackers=[]", f"run.folder={work / 'run'}"]
    return load(TrainConfig, ROOT / "configs/quickstart.yaml", [*shared, *overrides])


def write_rows(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    """One JSON object per line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def cold_start(settings: SftConfig, folder: Path) -> Path:
    """The policy that `grpo sft` makes in `folder`; made once."""
    policy = folder / "policy"
    if not policy.is_dir():
        console.print(f"cold start in {folder}: {settings.sft.steps} steps ...")
        at_home = settings.model_copy(update={"run": settings.run.model_copy(update={"folder": str(folder)})})
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        config = folder.with_suffix(".yaml")
        config.write_text(dump(at_home), encoding="utf-8")
        run([*GRPO, "sft", str(config)], folder.with_suffix(".log"))
    return policy


# --- the two sides ------------------------------------------------------------------------------------------------


class ProcessorTime:
    """Samples the processor time of a process and all its descendants until it ends."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        """Begin to sample, in a thread."""
        self.samples: list[tuple[float, float]] = []
        self._root = psutil.Process(process.pid)
        self._used: dict[psutil.Process, float] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """The process has ended."""
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.0 if not self.samples else SAMPLE_EVERY_S):
            with contextlib.suppress(psutil.NoSuchProcess):
                for process in (self._root, *self._root.children(recursive=True)):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        times = process.cpu_times()
                        self._used[process] = times.user + times.system
            # Those that ended keep what they had used when last seen.
            self.samples.append((time.time(), sum(self._used.values())))


def run(
    command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> tuple[tuple[float, float], ...]:
    """Run a process to its end, its output in `log`; samples of the processor time that it used.

    Raises:
        typer.Exit: it failed; the end of its output is shown.
    """
    surroundings = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env={**surroundings, **(environment or {})}, stdout=output, stderr=subprocess.STDOUT
        )
        used = ProcessorTime(process)
        try:
            code = process.wait()
        except KeyboardInterrupt:
            # It was told too, and ends its own processes before itself.
            process.wait(timeout=60)
            raise
        finally:
            if process.poll() is None:
                process.terminate()
            used.stop()
    if code != 0:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-25:])
        console.print(f"failed with exit code {code}; the end of {log}:\n{tail}", markup=False)
        raise typer.Exit(1)
    return tuple(used.samples)


def measure_ours(settings: TrainConfig, steps: int, work: Path) -> Measurement:
    """`grpo train` for some steps, read from what the run recorded."""
    folder = work / "ours"
    shutil.rmtree(folder, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    config = work / "ours.yaml"
    dictionary = settings.model_dump(mode="json")
    dictionary["run"]["folder"] = str(folder)
    dictionary["train"] |= {"steps": steps, "checkpoint_every": steps}
    # The rollouts of the first and the last step are kept.
    dictionary["report"]["rollouts_every"] = steps
    ours = TrainConfig.model_validate(dictionary)
    config.write_text(dump(ours), encoding="utf-8")
    load_average = os.getloadavg()[0]
    used = run([*GRPO, "train", str(config)], work / "ours.log")

    completions = settings.rollout.prompts_per_step * settings.rollout.group_size
    lines = read_history(folder).lines
    kept = []
    for before, line in itertools.pairwise(lines):
        numbers = line.metrics
        kept.append(
            Step(
                ended=line.time,
                # A line's time is taken when its step is done: what lies between two is one step, recording included.
                seconds=line.time - before.time,
                generate_s=numbers.get("time/generate_s", 0.0),
                verify_s=numbers.get("time/verify_s", 0.0),
                learn_s=numbers["time/learn_s"],
                completions=completions,
                tokens=round(numbers["rollout/completion_tokens_mean"] * completions),
                longest=int(numbers["rollout/completion_tokens_max"]),
                reward=numbers["reward/mean"],
                optimizer_steps=settings.algorithm.minibatches,
            )
        )
    lengths = {
        step: tuple(
            one.completion_tokens for group in rollout_store.read_groups(folder, step) for one in group.rollouts
        )
        for step in rollout_store.stored_steps(folder)
    }
    described = (
        f"{settings.generator.replicas} generator(s) of {settings.generator.threads} threads, learner of "
        f"{settings.learner.threads}, {settings.learner.microbatch_tokens} tokens a pass"
    )
    return Measurement("VeriGRPO", described, load_average, tuple(kept), lengths, used)


def measure_trl(settings: TrainConfig, setting: TrlSetting, steps: int, work: Path) -> Measurement:
    """TRL for some steps, in a process of its own."""
    work.mkdir(parents=True, exist_ok=True)
    config, result = work / "trl.yaml", work / "trl.json"
    config.write_text(dump(settings), encoding="utf-8")
    side = [sys.executable, str(Path(__file__).with_name("trl_side.py")), str(config), str(result)]
    options = ["--steps", str(steps), "--microbatch", str(setting.microbatch), "--generation", setting.generation]
    # vLLM is in the same environment, and TRL would tell at every import which versions of it it knows.
    quiet = {"PYTHONWARNINGS": "ignore", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": str(setting.threads)}
    quiet["OMP_WAIT_POLICY"] = setting.wait
    used = run([*side, *options], work / "trl.log", quiet)
    measured = Measurement.read(result)
    return dataclasses.replace(measured, settings=f"{measured.settings}, {setting.wait} waiting", processor=used)


def fastest_trl(settings: TrainConfig, candidates: Sequence[TrlSetting], trial_steps: int, work: Path) -> TrlSetting:
    """The fastest of several settings, each tried for a few steps of which the first does not count."""
    if len(candidates) == 1:
        return candidates[0]
    rates: dict[TrlSetting, float] = {}
    for candidate in candidates:
        trial = measure_trl(settings, candidate, trial_steps, work)
        rates[candidate] = per_second(trial.after(1))
        console.print(f"  TRL, {trial.settings}: {rates[candidate]:.1f} completions/s (load {trial.load:.1f})")
    return max(rates, key=lambda candidate: rates[candidate])


# --- what is told -------------------------------------------------------------------------------------------------


def compare(name: str, rounds: Sequence[tuple[Measurement, Measurement]], warm_up: int) -> None:
    """Print what was measured, whether both sides did the same work, and the ratio."""
    ours, theirs = ([side for pair in rounds for side in pair[index : index + 1]] for index in (0, 1))
    counted = [tuple(step for one in side for step in one.after(warm_up)) for side in (ours, theirs)]
    table = Table(title=f"{name}: {len(rounds)} round(s), {len(counted[0])} steps each after {warm_up} of warm-up")
    for heading in ("", "VeriGRPO", "TRL"):
        table.add_column(heading, justify="left" if not heading else "right")

    def row(label: str, value: Callable[[Sequence[Step]], str]) -> None:
        table.add_row(label, *(value(steps) for steps in counted))

    def each(label: str, part: Callable[[Step], float], form: str) -> None:
        row(label, lambda steps: format(mean_of(steps, part), form))

    row("completions/s, over all steps", lambda steps: f"[bold]{per_second(steps):.1f}[/]")
    row("completions/s, quartiles of the steps", lambda s: " / ".join(f"{v:.1f}" for v in quartiles(step_rates(s))))
    row("tokens/s, over all steps", lambda steps: f"{tokens_per_second(steps):.0f}")
    each("seconds a step", lambda step: step.seconds, ".2f")
    each("  generate", lambda step: step.generate_s, ".2f")
    each("  verify", lambda step: step.verify_s, ".2f")
    each("  learn", lambda step: step.learn_s, ".2f")
    each("  rest (ours: weight sync, recording)", rest_of, ".2f")
    used = (
        sum(one.processor_s(warm_up) for one in side) / len(steps)
        for side, steps in zip((ours, theirs), counted, strict=True)
    )
    table.add_row("processor seconds a step, all processes", *(f"{seconds:.2f}" for seconds in used))
    table.add_section()
    each("completions a step", lambda step: step.completions, ".0f")
    each("optimizer steps a step", lambda step: step.optimizer_steps, ".0f")
    each("tokens a completion", lambda step: step.tokens / step.completions, ".1f")
    each("longest completion, mean of the steps", lambda step: step.longest, ".0f")
    each("reward", lambda step: step.reward, ".3f")
    table.add_section()
    first = [[one.steps[0] for one in side] for side in (ours, theirs)]
    table.add_row("first step: reward", *(f"{mean_of(steps, lambda step: step.reward):.3f}" for steps in first))
    for label, value in LENGTH_STATISTICS.items():
        table.add_row(f"first step: {label}", *(value(pooled_lengths(side)) for side in (ours, theirs)))
    table.add_section()
    table.add_row(
        "load average at the start", *(", ".join(f"{one.load:.1f}" for one in side) for side in (ours, theirs))
    )
    console.print(table)
    for side in (ours[0], theirs[0]):
        console.print(f"{side.side}: {side.settings}")
    console.print(f"[bold]{name}: VeriGRPO / TRL = {per_second(counted[0]) / per_second(counted[1]):.2f}[/]")
    if len(rounds) > 1:
        each_round = [per_second(a.after(warm_up)) / per_second(b.after(warm_up)) for a, b in rounds]
        console.print(f"  by round: {', '.join(f'{ratio:.2f}' for ratio in each_round)}")


def rest_of(step: Step) -> float:
    """Seconds of a step that are neither sampling, verdicts nor optimizer steps."""
    return step.seconds - step.generate_s - step.verify_s - step.learn_s


def pooled_lengths(side: Sequence[Measurement]) -> list[int]:
    """Tokens of the first step's completions, all rounds together."""
    return sorted(length for one in side for length in one.lengths[1])


LENGTH_STATISTICS: Mapping[str, Callable[[list[int]], str]] = {
    "tokens, mean": lambda lengths: f"{statistics.fmean(lengths):.1f}",
    "tokens, quartiles": lambda lengths: " / ".join(f"{value:.0f}" for value in quartiles(lengths)),
    "under 40 tokens": lambda lengths: f"{sum(length < 40 for length in lengths) / len(lengths):.1%}",
    f"{LONG} tokens or more": lambda lengths: f"{sum(length >= LONG for length in lengths) / len(lengths):.1%}",
    "longest": lambda lengths: str(lengths[-1]),
}


def numbers(text: str) -> list[int]:
    """`1,2` as numbers."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list of numbers such as 1,2") from None


def main(
    variant: Annotated[Variant, typer.Option(help="which task")] = Variant.BOTH,
    steps: Annotated[int, typer.Option(min=2, help="whole steps of each run, warm-up included")] = 23,
    warm_up: Annotated[int, typer.Option(min=1, help="steps at the start of each run that do not count")] = 3,
    rounds: Annotated[int, typer.Option(min=1, help="runs of each side, one after the other in turn")] = 1,
    policy: Annotated[Path | None, typer.Option(help="cold-started quickstart policy; made where not given")] = None,
    long_tailed_policy: Annotated[
        Path | None, typer.Option(help="policy of the long-tailed task; made from the other where not given")
    ] = None,
    marked_one_in: Annotated[int, typer.Option(min=3, help="long-tailed: one question in so many is long")] = 16,
    trl_threads: Annotated[str, typer.Option(help="thread counts that TRL is tried with")] = "1,2",
    trl_microbatch: Annotated[str, typer.Option(help="completions a pass that TRL is tried with")] = "64,32,16",
    trl_generation: Annotated[
        str, typer.Option(help="`batch`, `continuous`, or both: TRL's tried generation")
    ] = "batch",
    trial_steps: Annotated[int, typer.Option(min=2, help="steps of each trial of a TRL setting")] = 3,
    ours: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override of our config; may be repeated")
    ] = None,
    work: Annotated[Path, typer.Option(help="folder for policies, runs and logs")] = ROOT / "runs" / "against_trl",
) -> None:
    """Measure VeriGRPO and TRL's GRPOTrainer on the same work and print the ratio."""
    if importlib.util.find_spec("trl") is None:
        console.print(f"The comparison needs TRL in this environment. Install it with:\n  {INSTALL}", soft_wrap=True)
        raise typer.Exit(2)
    work = work.absolute()
    candidates = [
        TrlSetting(threads, microbatch, generation, wait)
        for generation in trl_generation.split(",")
        for threads in numbers(trl_threads)
        for wait in (("active", "passive") if threads > 1 else ("passive",))
        for microbatch in numbers(trl_microbatch)
    ]
    console.print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores; load average {os.getloadavg()}"
    )
    for one in (Variant.QUICKSTART, Variant.LONG_TAILED) if variant is Variant.BOTH else (variant,):
        place = work / one.value
        place.mkdir(parents=True, exist_ok=True)
        if one is Variant.QUICKSTART:
            settings = quickstart_settings(policy, place, ours or [])
        else:
            settings = long_tailed_settings(long_tailed_policy, policy, place, ours or [], marked_one_in)
        chosen = fastest_trl(settings, candidates, trial_steps, place)
        pairs = []
        for number in range(1, rounds + 1):
            console.print(f"{one.value}, round {number} of {rounds}: {steps} steps each ...")
            pairs.append((measure_ours(settings, steps, place), measure_trl(settings, chosen, steps, place)))
        compare(one.value, pairs, warm_up)


if __name__ == "__main__":
    typer.run(main)
