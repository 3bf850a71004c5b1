"""The simulator against the real training loop by the clock on the wall: engines that sleep, in threads.

    .venv/bin/python tests/bench/overlap.py

Runs the loop of `grpo train` with a learner that sleeps, and generators each of which is a thread that sleeps through
every engine step; that thread's loop, the driver's loop and the verifier pool are the real ones.
Lengths are long-tailed and the same for every policy lag. For each lag the table shows the seconds of a step and the
idle shares, measured and as `grpo.planning.simulation.loop` foretells them, and the speed-up over lag 0.
"""

from __future__ import annotations

import json
import os
import queue
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from fake_engines import FakeCluster, FakeGenerators, FakeLearner
from fake_run import silent_progress
from slow_engines import completion_of, settings_of
from tiny_policy import make_tiny_policy

from grpo.algorithm.minibatches import TrainBatch
from grpo.cluster.ready import SLICE_S
from grpo.generator.loop import EngineLoop
from grpo.planning.simulation.lengths import modelled
from grpo.planning.simulation.loop import Deployment, Integers, RolloutSchedule, Speeds, groups_needed, simulate
from grpo.train_loop import train
from grpo.types import Finished, Prompt, Request, SamplingParams

PROMPTS, GROUP_SIZE = 16, 4
DEPLOYMENT = Deployment(replicas=4, max_sequences=32)
SPEEDS = Speeds(decode_base_s=0.02, decode_sequence_s=0.0005, learn_base_s=0.6, push_s=0.1)
LENGTHS, LIMIT = "lognormal:median=12,sigma=1", 100


@dataclass
class Sleeper:
    """A completion under way."""

    group: int
    number: int
    length: int
    done: int = 0
    begun: dict[int, int] = field(default_factory=dict)


class SleepingEngine:
    """Sleeps through its engine steps; a late waking is made up for in the next step, so that it is as fast as said."""

    def __init__(self, lengths_NG: Integers) -> None:
        self._lengths_NG = lengths_NG
        self._waiting: list[Sleeper] = []
        self._running: list[Sleeper] = []
        self._ended: dict[int, list[Sleeper]] = {}
        self._version = 0
        self._until = 0.0
        # (beginning, end) of each engine step.
        self.worked: list[tuple[float, float]] = []

    @property
    def busy(self) -> bool:
        return bool(self._running or self._waiting)

    @property
    def alive(self) -> bool:
        return True

    def submit(self, requests: Sequence[Request], sampling: SamplingParams) -> None:
        for request in requests:
            lengths = self._lengths_NG[request.index].tolist()
            self._waiting += [Sleeper(request.index, number, length) for number, length in enumerate(lengths)]

    def step(self) -> Finished:
        began = time.monotonic()
        free = DEPLOYMENT.max_sequences - len(self._running)
        self._running += self._waiting[:free]
        del self._waiting[:free]
        seconds = SPEEDS.decode_base_s + SPEEDS.decode_sequence_s * len(self._running)
        # After a pause there is nothing to make up for.
        self._until = (self._until if began - self._until < seconds else began) + seconds
        time.sleep(max(0.0, self._until - began))
        for one in self._running:
            one.begun.setdefault(one.done, self._version)
            one.done += 1
        ended = [one for one in self._running if one.done == one.length]
        self._running = [one for one in self._running if one.done < one.length]
        self.worked.append((began, time.monotonic()))
        for one in ended:
            self._ended.setdefault(one.group, []).append(one)
        whole = [group for group in {one.group: None for one in ended} if len(self._ended[group]) == GROUP_SIZE]
        return [(group, self._completions(self._ended.pop(group))) for group in whole]

    def _completions(self, ended: Sequence[Sleeper]) -> tuple[Any, ...]:
        spans = {}
        for one in ended:
            versions = [one.begun[token] for token in range(one.length)]
            changes = [0, *(token for token in range(1, one.length) if versions[token] != versions[token - 1])]
            spans[one.number] = completion_of(one.length, one.number, [(token, versions[token]) for token in changes])
        return tuple(spans[number] for number in range(GROUP_SIZE))

    def hold(self, version: int) -> None:
        """A weight push, between two engine steps."""
        time.sleep(SPEEDS.push_s if version else 0.0)
        self._version = version


class SleepingStream:
    """The only one; a request goes to the replica with the fewest unfinished groups."""

    def __init__(self, generators: SleepingGenerators, sampling: SamplingParams) -> None:
        self._generators, self._sampling = generators, sampling
        self._of: dict[int, int] = {}
        self._handed_on: queue.SimpleQueue[Finished] = queue.SimpleQueue()
        for loop in generators.loops:
            threading.Thread(target=self._listen, args=(loop,), daemon=True).start()

    @property
    def unfinished(self) -> int:
        return len(self._of)

    def submit(self, requests: Sequence[Request], prompts: Sequence[Prompt] = ()) -> None:
        shares: dict[int, list[Request]] = {}
        loads = [list(self._of.values()).count(replica) for replica in range(DEPLOYMENT.replicas)]
        for request in requests:
            freest = loads.index(min(loads))
            loads[freest] += 1
            self._of[request.index] = freest
            shares.setdefault(freest, []).append(request)
        for replica, share in shares.items():
            self._generators.loops[replica].submit(share, self._sampling)

    def finished(self, wait: bool = True) -> Finished:
        found: Finished = self._handed_on.get(timeout=60) if wait else []
        while not self._handed_on.empty():
            found = found + self._handed_on.get()
        for group, _ in found:
            del self._of[group]
        return found

    def _listen(self, loop: EngineLoop) -> None:
        while True:
            report = loop.take(60.0)
            if report.finished:
                self._handed_on.put(report.finished)


class SleepingGenerators(FakeGenerators):
    """Replicas in threads."""

    def __init__(self, max_sequence_tokens: int, lengths_NG: Integers) -> None:
        super().__init__(max_sequence_tokens)
        self.engines = [SleepingEngine(lengths_NG) for _ in range(DEPLOYMENT.replicas)]
        self.loops = [EngineLoop(lambda engine=engine: engine) for engine in self.engines]  # type: ignore[misc]
        self.pushed: list[float] = []

    def stream(self, sampling: SamplingParams) -> SleepingStream:  # type: ignore[override]
        return SleepingStream(self, sampling)

    def load_weights(self, buckets: Iterable[Any], policy_version: int) -> list[str]:
        names = super().load_weights(buckets, policy_version)
        with ThreadPoolExecutor(len(self.loops)) as held:
            list(held.map(lambda loop: loop.call(lambda engine: engine.hold(policy_version)), self.loops))
        self.pushed.append(time.monotonic())
        return names


class SleepingLearner(FakeLearner):
    """Sleeps through a training step, and meanwhile does what the real one's group does."""

    def __init__(self) -> None:
        super().__init__()
        self.ready: list[float] = []

    def steps(self, batches: Iterable[TrainBatch]) -> list[dict[str, float]]:
        self.ready.append(time.monotonic())
        until = self.ready[-1] + SPEEDS.learn_base_s
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, SLICE_S))
            self.work()
        return super().steps(batches)


@dataclass(frozen=True)
class Figures:
    """Of the steps that count: seconds of one, and the shares of time in which nobody worked."""

    step_s: float
    generator_idle: float
    learner_idle: float


def measured(folder: Path, policy: Path, lag: int, lengths_NG: Integers, warm_up: int, steps: int) -> Figures:
    """Run the real loop; after the steps that count come as many more as versions are in flight."""
    total = warm_up + steps + lag
    settings = settings_of(folder, policy, PROMPTS, lag, lengths_NG[: total * PROMPTS], total)  # type: ignore[arg-type]
    generators = SleepingGenerators(settings.max_sequence_tokens, lengths_NG)
    learner = SleepingLearner()
    with mock.patch("grpo.run.training.Cluster", FakeCluster(learner, generators)):
        train(settings, silent_progress())
    began, ended = generators.pushed[warm_up], generators.pushed[warm_up + steps]
    counted = range(warm_up, warm_up + steps)
    learned = sum(generators.pushed[step + 1] - learner.ready[step] for step in counted)
    worked = [span for engine in generators.engines for span in engine.worked]
    busy = sum(max(0.0, min(until, ended) - max(since, began)) for since, until in worked)
    seconds = ended - began
    return Figures(seconds / steps, 1 - busy / (seconds * DEPLOYMENT.replicas), 1 - learned / seconds)


def predicted(lag: int, lengths_NG: Integers, warm_up: int, steps: int) -> Figures:
    """The same steps, simulated."""
    found = simulate(RolloutSchedule(PROMPTS, lag), DEPLOYMENT, SPEEDS, lengths_NG, warm_up + steps)[warm_up:]
    seconds = found[-1].ended_s - found[0].began_s
    busy = sum(step.busy_s for step in found)
    learned = sum(step.ended_s - step.ready_s for step in found)
    return Figures(seconds / steps, 1 - busy / (seconds * DEPLOYMENT.replicas), 1 - learned / seconds)


def main(
    lags: Annotated[str, typer.Option(help="policy lags, with commas between")] = "0,1,2,4",
    seeds: Annotated[int, typer.Option(help="runs of each lag, of other lengths each")] = 3,
    warm_up: Annotated[int, typer.Option(help="steps that do not count")] = 3,
    steps: Annotated[int, typer.Option(help="steps that count")] = 12,
    out: Annotated[Path | None, typer.Option(help="also write all figures here, as JSON")] = None,
) -> None:
    """Measure, foretell, compare."""
    console, found = Console(), {}
    numbers = [int(lag) for lag in lags.split(",")]
    console.print(f"load average {os.getloadavg()[0]:.1f}; {LENGTHS} cut at {LIMIT}; {DEPLOYMENT}; {SPEEDS}")
    with tempfile.TemporaryDirectory() as folder:
        policy = make_tiny_policy(Path(folder) / "policy")
        for seed in range(seeds):
            most = groups_needed(RolloutSchedule(PROMPTS, max(numbers)), warm_up + steps + max(numbers))
            lengths = modelled(LENGTHS, LIMIT).draw(np.random.default_rng(seed), most, GROUP_SIZE)
            for lag in numbers:
                real = measured(Path(folder) / f"{seed}_{lag}", policy, lag, lengths, warm_up, steps)
                told = predicted(lag, lengths, warm_up, steps)
                found[seed, lag] = real, told
                console.print(f"seed {seed}, lag {lag}: {real.step_s:.3f} s a step, predicted {told.step_s:.3f} s")
    console.print(table_of(found, numbers, seeds))
    console.print(f"load average {os.getloadavg()[0]:.1f}")
    if out:
        rows = [
            {"seed": seed, "lag": lag, "measured": asdict(real), "predicted": asdict(told)}
            for (seed, lag), (real, told) in found.items()
        ]
        out.write_text(json.dumps(rows, indent=1))


def table_of(found: dict[tuple[int, int], tuple[Figures, Figures]], lags: Sequence[int], seeds: int) -> Table:
    """Means over the seeds, and the range of what differs between them."""
    table = Table(title="measured / predicted, mean over seeds (lowest to highest)", title_justify="left")
    names = ("lag", "step s", "measured over predicted", "over sync", "generator idle", "learner idle")
    for name in names:
        table.add_column(name, justify="right")
    for lag in lags:
        pairs = [found[seed, lag] for seed in range(seeds)]
        ratios = [real.step_s / told.step_s for real, told in pairs]
        cells = [
            f"{statistics.fmean(getattr(real, name) for real, _ in pairs):{form}} / "
            f"{statistics.fmean(getattr(told, name) for _, told in pairs):{form}}"
            for name, form in (("step_s", ".2f"), ("generator_idle", ".0%"), ("learner_idle", ".0%"))
        ]
        over = ""
        if (0, 0) in found:
            sync = [found[seed, 0] for seed in range(seeds)]
            over = " / ".join(
                _spread([before[side].step_s / after[side].step_s for before, after in zip(sync, pairs, strict=True)])
                for side in (0, 1)
            )
        table.add_row(str(lag), cells[0], _spread(ratios), over, cells[1], cells[2])
    return table


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    typer.run(main)
