"""`grpo simulate`: many simulated runs, over sizes of the cluster, policy lags and splits, as one table."""

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

# About a policy of 4 billion parameters in bfloat16 on GPUs of 80 GB: estimates from arithmetic and bandwidth.
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
    """One simulated run, after its warm-up.

    Attributes:
        gpus: in all.
        lag: `rollout.max_policy_lag`.
        shared: every GPU has a learner rank and a generator, which take turns; else they have GPUs of their own.
        replicas: generators.
        generator_gpus: that they use.
        learner_gpus: that the learner uses.
        prompts_per_step: groups in a training step.
        step_s: mean seconds of a step.
        completions_per_s: learned from.
        generator_idle: share of time in which a replica had nothing to do, or was held by a push.
        slots_used: mean share of the sequences that a replica may sample at a time.
        learner_idle: share of time in which the learner waited for groups: neither training nor pushing.
        gpu_idle: share of all GPUs' time in which they neither sampled nor trained nor pushed.
        mean_lag: versions between a group's first token and its step, mean over groups.
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
    """What `grpo simulate` varies, and what it holds fixed.

    Attributes:
        settings: of the run; its batch, limits and generators.
        lengths: of completions.
        speeds: of generators and learner.
        prompt_tokens: length of a prompt.
        steps: that are measured in each simulated run; three times the versions in flight come before as warm-up.
        seed: of the lengths, which are the same for all rows.
        scale_batch: prompts in a step grow with the number of GPUs, from as many as the config has for its own.
    """

    settings: TrainConfig
    lengths: Lengths
    speeds: Speeds
    prompt_tokens: int = 0
    steps: int = 40
    seed: int = 0
    scale_batch: bool = False

    def rows(self, gpus: Iterable[int], lags: Sequence[int], shares: Sequence[float]) -> list[Row]:
        """A row for each size, lag and split, and for each size one on-policy row with shared GPUs.

        Raises:
            ValueError: a number is out of range.
        """
        for share in shares:
            if not 0 < share < 1:
                raise ValueError(f"a generator share is {share}; it is a part of the GPUs, between 0 and 1")
        if self.steps < 1:
            raise ValueError(f"{self.steps} steps are to be measured; at least 1 is needed")
        found = []
        for size in gpus:
            wanted = self._prompts(size)
            # The same lengths for every lag and split: what differs between two rows is not luck.
            most = groups_needed(self._schedule(wanted, max(lags)), self.steps + _warm_up(max(lags)))
            group_size = self.settings.rollout.group_size
            lengths = self.lengths.draw(np.random.default_rng(self.seed), most, group_size)
            splits = dict.fromkeys(self._split(size, share) for share in shares)
            for lag, (replicas, used) in itertools.product(lags, splits):
                found.append(self._row(size, lag, wanted, lengths, replicas, used, size - used))
            if 0 in lags and self.settings.generator.devices == 1:
                found.append(self._row(size, 0, wanted, lengths, size, size, size))
        return found

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
        # Where they take turns, a GPU works while either does; nobody samples while the learner works.
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
        own = ranks + generator.replicas * generator.devices
        if self.settings.cluster.share_gpus:
            own = ranks
        return max(1, round(configured * gpus / own)) if self.scale_batch else configured

    def _split(self, gpus: int, share: float) -> tuple[int, int]:
        """Replicas, and the GPUs that they use."""
        each = self.settings.generator.devices
        if gpus < each + 1:
            raise ValueError(
                f"{gpus} GPUs do not hold a generator of {each} (generator.tensor_parallel_size x "
                f"pipeline_parallel_size) and a learner; give at least {each + 1}"
            )
        replicas = min(max(1, round(gpus * share / each)), (gpus - 1) // each)
        return replicas, replicas * each


def best_splits(rows: Iterable[Row]) -> list[Row]:
    """For each size and lag the fastest split, and the row with shared GPUs."""
    best: dict[tuple[int, int, bool], Row] = {}
    for row in rows:
        key = row.gpus, row.lag, row.shared
        if key not in best or row.completions_per_s > best[key].completions_per_s:
            best[key] = row
    return list(best.values())


def speedup(row: Row, rows: Iterable[Row]) -> float | None:
    """Throughput over that of the fastest on-policy split of as many GPUs; None where there is none among `rows`."""
    sync = [one.completions_per_s for one in rows if one.gpus == row.gpus and one.lag == 0 and not one.shared]
    return row.completions_per_s / max(sync) if sync else None


def table_of(shown: Sequence[Row], rows: Sequence[Row]) -> Table:
    """The rows to show, as a table; speed-ups are over the best of all `rows`."""
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
    """Assumptions and rows as plain data."""
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
    # Rounding must not make a share of -0 %.
    return max(0.0, 1 - busy_s / seconds)


def _warm_up(lag: int) -> int:
    return 3 * (1 + lag)


def _mean_lag(steps: Sequence[Step], first: int) -> float:
    lags = [first + number - birth for number, step in enumerate(steps) for birth in step.births]
    return sum(lags) / len(lags)
