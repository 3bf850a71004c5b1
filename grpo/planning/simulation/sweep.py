"""`grpo simulate`: simulate runs for many cluster sizes, policy lags and splits, and show them in a table."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table

from grpo.config import TrainConfig
from grpo.planning.simulation.generators import RolloutSchedule
from grpo.planning.simulation.lengths import Lengths
from grpo.planning.simulation.loop import Deployment, Speeds, Step, groups_needed, simulate
from grpo.terminal import LiteralTable

# Estimates for a policy of 4 billion parameters in bfloat16 on GPUs of 80 GB. They are computed from the GPU's
# arithmetic speed and memory bandwidth.
ASSUMED = Speeds(
    decode_base_s=8e-3,
    decode_sequence_s=5e-5,
    prefill_token_s=2e-5,
    learn_base_s=1.0,
    learn_token_s=1e-4,
    push_s=2.0,
)


@dataclass(frozen=True, slots=True)
class Row:
    """A simulated run, without its warm-up.

    Attributes:
        gpus: number of GPUs in total.
        lag: policy lag, `rollout.max_policy_lag`.
        shared: whether every GPU has a learner rank and a generator, which never run at the same time. Otherwise
            learner and generators use different GPUs.
        replicas: number of generators.
        generator_gpus: number of GPUs that the generators use.
        learner_gpus: number of GPUs that the learner uses.
        prompts_per_step: number of groups in a training step.
        step_s: mean seconds of a step.
        completions_per_s: number of completions learned from, per second.
        generator_idle: share of time in which a replica had no work, or waited for a push.
        slots_used: mean number of sequences that a replica samples at a time, as a share of `generator.max_sequences`.
        learner_idle: share of time in which the learner waited for groups, and neither trained nor pushed.
        gpu_idle: share of all GPUs' time in which the GPUs neither sampled nor trained nor pushed.
        mean_lag: number of versions between a group's first token and the step that trains on it, mean over groups.
    """

    gpus: int
    lag: int
    shared: bool
    replicas: int
    generator_gpus: int
    learner_gpus: int
    prompts_per_step: int
    step_s: float
    completions_per_s: float
    generator_idle: float
    slots_used: float
    learner_idle: float
    gpu_idle: float
    mean_lag: float


@dataclass(frozen=True, slots=True)
class Sweep:
    """The settings that are the same in all runs of `grpo simulate`.

    Attributes:
        settings: settings of the run. The simulation uses the batch, the limits and the generators.
        lengths: source of the completions' lengths.
        speeds: speeds of generators and learner.
        prompt_tokens: length of a prompt, in tokens.
        steps: number of measured steps in each run. Before these steps, the run has 3 (1 + lag) warm-up
            steps.
        seed: seed of the lengths. All rows of the same size use the same lengths.
        scale_batch: whether the number of prompts in a step grows in proportion to the number of GPUs. The config's
            number of prompts belongs to the config's number of GPUs.
    """

    settings: TrainConfig
    lengths: Lengths
    speeds: Speeds
    prompt_tokens: int = 0
    steps: int = 40
    seed: int = 0
    scale_batch: bool = False

    def rows(self, gpus: Iterable[int], lags: Sequence[int], shares: Sequence[float]) -> list[Row]:
        """Return a row for each size, lag and split, and an on-policy row with shared GPUs for each size.

        Raises:
            ValueError: a number is out of range.
        """
        for share in shares:
            if not 0 < share < 1:
                raise ValueError(f"a generator share is {share}; a share of the GPUs must be between 0 and 1")
        if self.steps < 1:
            raise ValueError(f"the number of steps to measure is {self.steps}; at least 1 is needed")
        simulated = []
        for size in gpus:
            wanted = self._prompts(size)
            # Every lag and split gets the same lengths, so differences between rows are not caused by chance.
            most = groups_needed(self._schedule(wanted, max(lags)), self.steps + _warm_up(max(lags)))
            group_size = self.settings.rollout.group_size
            lengths = self.lengths.draw(np.random.default_rng(self.seed), most, group_size)
            splits = dict.fromkeys(self._split(size, share) for share in shares)
            for lag, (replicas, used) in itertools.product(lags, splits):
                simulated.append(self._row(size, lag, wanted, lengths, replicas, used, size - used))
            if 0 in lags and self.settings.generator.devices == 1:
                simulated.append(self._row(size, 0, wanted, lengths, size, size, size))
        return simulated

    def _row(
        self, gpus: int, lag: int, wanted: int, lengths_NG: Any, replicas: int, generator_gpus: int, learner_gpus: int
    ) -> Row:
        slots = self.settings.generator.max_sequences
        schedule, warm_up = self._schedule(wanted, lag), _warm_up(lag)
        deployment = Deployment(replicas, slots, learner_gpus)
        steps = simulate(schedule, deployment, self.speeds, lengths_NG, warm_up + self.steps)[warm_up:]
        seconds = steps[-1].ended_s - steps[0].began_s
        busy, learning = sum(step.busy_s for step in steps) / replicas, sum(_working_s(step) for step in steps)
        shared = generator_gpus + learner_gpus > gpus
        # A shared GPU works if either the generator or the learner works. These two never work at the same time.
        used = busy + learning if shared else (busy * generator_gpus + learning * learner_gpus) / gpus
        return Row(
            gpus=gpus,
            lag=lag,
            shared=shared,
            replicas=replicas,
            generator_gpus=generator_gpus,
            learner_gpus=learner_gpus,
            prompts_per_step=wanted,
            step_s=seconds / len(steps),
            completions_per_s=wanted * lengths_NG.shape[1] * len(steps) / seconds,
            generator_idle=_idle(busy, seconds),
            slots_used=sum(step.slot_s for step in steps) / (seconds * replicas * slots),
            learner_idle=_idle(learning, seconds),
            gpu_idle=_idle(used, seconds),
            mean_lag=_mean_lag(steps, warm_up),
        )

    def _schedule(self, wanted: int, lag: int) -> RolloutSchedule:
        return RolloutSchedule(wanted, lag, self.settings.rollout.partial, self.prompt_tokens)

    def _prompts(self, gpus: int) -> int:
        configured = self.settings.rollout.prompts_per_step
        generator, ranks = self.settings.generator, self.settings.learner.ranks
        configured_gpus = ranks + generator.replicas * generator.devices
        if self.settings.cluster.share_gpus:
            configured_gpus = ranks
        return max(1, round(configured * gpus / configured_gpus)) if self.scale_batch else configured

    def _split(self, gpus: int, share: float) -> tuple[int, int]:
        """Return the number of replicas, and the number of GPUs that they use."""
        each = self.settings.generator.devices
        if gpus < each + 1:
            raise ValueError(
                f"{gpus} GPUs are too few for a learner and a generator of {each} GPUs "
                f"(generator.tensor_parallel_size x pipeline_parallel_size); give at least {each + 1}"
            )
        replicas = min(max(1, round(gpus * share / each)), (gpus - 1) // each)
        return replicas, replicas * each


def best_splits(rows: Iterable[Row]) -> list[Row]:
    """Return the fastest split for each size and lag, and the rows with shared GPUs."""
    best: dict[tuple[int, int, bool], Row] = {}
    for row in rows:
        key = row.gpus, row.lag, row.shared
        if key not in best or row.completions_per_s > best[key].completions_per_s:
            best[key] = row
    return list(best.values())


def speedup(row: Row, rows: Iterable[Row]) -> float | None:
    """Return the throughput relative to the fastest on-policy split with the same number of GPUs.

    Return None if there is no such split.
    """
    sync = [other.completions_per_s for other in rows if other.gpus == row.gpus and other.lag == 0 and not other.shared]
    return row.completions_per_s / max(sync) if sync else None


def table_of(shown: Sequence[Row], rows: Sequence[Row]) -> Table:
    """Return a table of the rows in `shown`. The speed-ups are relative to the best on-policy split in `rows`."""
    table = LiteralTable(title="Predicted by simulation", title_style="bold")
    for name in ("GPUs", "lag"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("generators + learner", no_wrap=True)
    names = ("step s", "completions/s", "generator idle", "slots used", "learner idle", "GPUs idle", "over sync")
    for name in names:
        table.add_column(name, justify="right")
    for size, of_size in itertools.groupby(shown, key=lambda row: row.gpus):
        for row in of_size:
            ratio = speedup(row, rows)
            split = "all GPUs, in turns" if row.shared else f"{row.generator_gpus} + {row.learner_gpus} GPUs"
            shares = (row.generator_idle, row.slots_used, row.learner_idle, row.gpu_idle)
            table.add_row(
                str(size),
                "0 (sync)" if row.lag == 0 else str(row.lag),
                split,
                f"{row.step_s:,.1f}" if row.step_s >= 10 else f"{row.step_s:.3g}",
                f"{row.completions_per_s:,.1f}",
                *(f"{share:.0%}" for share in shares),
                "" if ratio is None else f"{ratio:.2f}",
            )
        table.add_section()
    return table


def record_of(sweep: Sweep, rows: Sequence[Row]) -> dict[str, Any]:
    """Return the assumptions and the rows as plain data."""
    rollout = sweep.settings.rollout
    return {
        "assumptions": {
            **dataclasses.asdict(sweep.speeds),
            "group_size": rollout.group_size,
            "max_sequences": sweep.settings.generator.max_sequences,
            "prompt_tokens": sweep.prompt_tokens,
            "steps": sweep.steps,
            "seed": sweep.seed,
        },
        "rows": [dataclasses.asdict(row) | {"speedup_over_sync": speedup(row, rows)} for row in rows],
    }


def _working_s(step: Step) -> float:
    return step.ended_s - step.ready_s


def _idle(busy_s: float, seconds: float) -> float:
    # Rounding errors can make the share slightly negative. It would be printed as -0 %.
    return max(0.0, 1 - busy_s / seconds)


def _warm_up(lag: int) -> int:
    return 3 * (1 + lag)


def _mean_lag(steps: Sequence[Step], first: int) -> float:
    lags = [first + number - birth for number, step in enumerate(steps) for birth in step.births]
    return sum(lags) / len(lags)
