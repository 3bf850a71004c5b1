"""Learner ranks as plain processes, to look at what Ray's actors would hide: which collectives DeepSpeed calls.

The same processes run all cases one after another, as starting the engines takes longer than the cases do.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import random
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from grpo import config
from grpo.algorithm.comparisons import AnswerComparison, preference_batch
from grpo.algorithm.minibatches import RankBatch, TrainBatch, batch
from grpo.algorithm.rescoring import Source
from grpo.config.algorithm import AlgorithmConfig
from grpo.learner.setup import LearnerSetup


@dataclass(frozen=True)
class Case:
    """Settings of a learner, and what is done with it.

    Attributes:
        learner: its section.
        dtype: of the policy.
        algorithm: the objective; by default the plain one.
        preference: the loss of pairs, in place of `algorithm`.
        group_size: sequences that share a prompt.
        steps: ordinary steps.
        resume: it goes back to a checkpoint and takes a step again.
        refreshes: the reference becomes the policy before that checkpoint, and another one after it.
        broken: a step whose loss is no number comes after the ordinary ones.
        sleeps: it sleeps before each step.
        teacher: the policy's start is also its teacher.
        few_logits: ranks compute their logits in many chunks, other numbers of them, with a head in shards at ZeRO-3.
    """

    learner: dict[str, Any]
    dtype: config.Dtype = "float32"
    algorithm: AlgorithmConfig | None = None
    preference: config.DpoScheduleConfig | config.RewardScheduleConfig | None = None
    group_size: int = 1
    steps: int = 2
    resume: bool = False
    refreshes: bool = False
    broken: bool = False
    sleeps: bool = False
    few_logits: bool = False
    teacher: bool = False


@dataclass(frozen=True)
class Outcome:
    """What rank 0 saw.

    Attributes:
        metrics: of each step, the broken one among them.
        reduced: elements that went through reductions in the last ordinary step.
        resumed: metrics of one more step, and of the same after going back to the checkpoint before it.
        fine_gradients: share of the first step's gradient that bfloat16 could not hold.
        fine_weights: share of the optimizer's weights that bfloat16 could not hold.
        scored: log-probabilities of a batch after all steps, under the policy, and the reference and the teacher where
            there are such.
        weights: the policy after the ordinary steps.
    """

    metrics: list[dict[str, float]]
    reduced: int
    resumed: list[dict[str, float]]
    fine_gradients: float
    fine_weights: float
    scored: list[list[Tensor]]
    weights: dict[str, Tensor]


class HostReads(TorchDispatchMode):
    """Inside, `names` collects the operators at which the host waits for a GPU's result.

    These are operators whose result is a number of Python or has a size that depends on values, and copies to the CPU.
    """

    ALWAYS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_consecutive")

    def __init__(self, where: str) -> None:
        """Look at operators on tensors of the device `where`."""
        super().__init__()
        self.where = torch.device(where)
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, values: Any = (), named: Any = None) -> Any:
        tensors, name = [one for one in values if isinstance(one, torch.Tensor)], function.overloadpacket.__name__
        if any(one.device == self.where for one in tensors):
            indices = values[1] if name in ("index", "index_put", "index_put_") else ()
            by_mask = any(one is not None and one.dtype in (torch.bool, torch.uint8) for one in indices)
            sized = name == "repeat_interleave" and not (named or {}).get("output_size")
            onto = (named or {}).get("device") if name == "_to_copy" else tensors[0].device if name == "copy_" else None
            leaves = onto is not None and torch.device(onto) != self.where
            if name in self.ALWAYS or by_mask or sized or leaves:
                self.names.append(name)
        return function(*values, **(named or {}))


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def small_microbatches(seed: int, ranks: int, group_size: int = 1) -> TrainBatch:
    """Several microbatches for each rank, of groups that share a prompt."""
    from setups_for_tests import random_sequences

    sequences = random_sequences(24, seed, group_size)
    trained = sum(sequence.trained_tokens for sequence in sequences)
    return batch(sequences, denominator=float(trained), ranks=ranks, microbatch_tokens=64)


def small_comparisons(seed: int, ranks: int, group_size: int = 1) -> TrainBatch:
    """Several microbatches for each rank, of pairs and of rankings of three answers."""
    generator = random.Random(seed)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(generator.randrange(3, 20) for _ in range(length))

    made = [
        AnswerComparison.of(
            ids(generator.randint(2, 9)), [ids(generator.randint(1, 16)) for _ in range(2 + number % 2)]
        )
        for number in range(11)
    ]
    # About what the random policies say of a token, so that gaps are small and every pair has a gradient.
    references = [tuple(-3.1 * len(answer.old_logprobs) for answer in each.answers) for each in made]
    return preference_batch(made, references, ranks=ranks, microbatch_tokens=64)


def run_cases(path: str, folder: Path, cases: dict[str, Case], ranks: int = 2) -> dict[str, Outcome]:
    """Outcome of each case on rank 0."""
    port = free_port()
    # One process imports the engines, and all ranks of a session are forked from it. It finds modules from the
    # project's folder; where the tests run in another one, each rank imports for itself.
    context = get_context("forkserver")
    context.set_forkserver_preload(["engines_on_cpu"])
    with ProcessPoolExecutor(ranks, mp_context=context) as pool:
        running = [pool.submit(_rank, rank, ranks, port, path, str(folder), cases) for rank in range(ranks)]
        outcomes = [one.result(timeout=400) for one in running]
        return outcomes[0]


def _rank(rank: int, ranks: int, port: int, path: str, folder: str, cases: dict[str, Case]) -> dict[str, Outcome]:
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed.comm
    from setups_for_tests import learner_setups

    counted = [0]

    def counting(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            tensors = [one for one in (*arguments, *named.values()) if isinstance(one, torch.Tensor)]
            counted[0] += max((one.numel() for one in tensors), default=0)
            return function(*arguments, **named)

        return call

    for name in ("all_reduce", "reduce", "reduce_scatter_fn", "reduce_scatter_tensor", "reduce_scatter"):
        if hasattr(deepspeed.comm, name):
            setattr(deepspeed.comm, name, counting(getattr(deepspeed.comm, name)))
    outcomes = {}
    for name, case in cases.items():
        (base,) = learner_setups(path, dtype=case.dtype)
        setup = dataclasses.replace(
            base,
            learner=base.learner.model_copy(update={**case.learner, "ranks": ranks}),
            algorithm=None if case.preference else case.algorithm or base.algorithm,
            preference=case.preference,
            teacher_path=path if case.teacher else None,
            rank=rank,
            world_size=ranks,
            skipped_folder=f"{folder}/skipped/{name}",
        )
        with _few_logits() if case.few_logits else contextlib.nullcontext():
            outcomes[name] = _outcome(case, setup, port, f"{folder}/{name}", counted)
    return outcomes


def _outcome(case: Case, setup: LearnerSetup, port: int, folder: str, counted: list[int]) -> Outcome:
    from grpo.learner.rank import LearnerRank

    learner = LearnerRank(setup, "127.0.0.1", port)

    def part(seed: int) -> RankBatch:
        share = setup.rank // setup.learner.sequence_parallel
        made = small_comparisons if case.preference else small_microbatches
        return made(seed, setup.learner.data_parallel, case.group_size).ranks[share]

    metrics = []
    for step in range(case.steps):
        if case.sleeps:
            learner.sleep()
            learner.score([[3, 4, 5]])
            learner.wake()
        counted[0] = 0
        metrics.append(learner.step(part(step)))
        if step == 0:
            states = learner._engine.optimizer.optimizer.state
            # After one step the first moment is a tenth of the gradient, which is below the clip.
            fine_gradients = _finer_than_bfloat16([state["exp_avg"] / 0.1 for state in states.values()])
            fine_weights = _finer_than_bfloat16(list(states))
    reduced, resumed = counted[0], []
    needs_reference = setup.algorithm is not None and setup.algorithm.needs_reference
    sources: tuple[Source, ...] = ("policy", "reference") if needs_reference else ("policy",)
    sources += ("teacher",) if setup.teacher_path else ()
    scored = [learner.logprobs(part(9).microbatches, source) for source in sources]
    weights = dict(learner.weights())
    if case.broken:
        metrics.append(learner.step(dataclasses.replace(part(0), denominator=math.nan)))
    if case.resume:
        if case.refreshes:
            learner.refresh_reference()
        learner.save(folder)
        torch.distributed.barrier()
        resumed.append(learner.step(part(7)))
        if case.refreshes:
            learner.refresh_reference()
        learner.load(folder)
        resumed.append(learner.step(part(7)))
    learner._engine.destroy()
    return Outcome(metrics, reduced, resumed, fine_gradients, fine_weights, scored, weights)


@contextlib.contextmanager
def _few_logits() -> Iterator[None]:
    """Inside, five tokens' logits at a time, and at ZeRO-3 nothing so small that each rank keeps it whole."""
    import grpo.learner.rank
    import grpo.policy.head

    held, settings_of = grpo.policy.head.LOGIT_BYTES, grpo.learner.rank.deepspeed_settings

    def sharded(setup: LearnerSetup) -> dict[str, Any]:
        settings = settings_of(setup)
        settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        return settings

    # The policies of these tests know 28 tokens.
    grpo.policy.head.LOGIT_BYTES = 5 * 4 * 28
    grpo.learner.rank.deepspeed_settings = sharded
    yield
    grpo.policy.head.LOGIT_BYTES, grpo.learner.rank.deepspeed_settings = held, settings_of


def _finer_than_bfloat16(tensors: list[Tensor]) -> float:
    values = torch.cat([one.detach().flatten() for one in tensors])
    values = values[values != 0]
    # A thirtieth of bfloat16's own spacing, and far above what float32 rounds.
    return float(((values.bfloat16().float() - values).abs() > 1e-4 * values.abs()).float().mean())
