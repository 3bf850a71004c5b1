"""Search for changes of a config that make a job fit the memory, and predict what they cost."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from grpo import config
from grpo.cluster.device import planned_device
from grpo.config.file import resolve
from grpo.planning.memory import generator_weights
from grpo.planning.policy_shape import PolicyShape, bytes_of

Settings = config.JobConfig

# How many choices a user gets, and how many kinds of changes a choice may combine.
CHOICES, _TOGETHER = 3, 4
# The costs are predictions for a learner that reaches 400 TFLOP/s, on a GPU that moves 2.7 TB/s, 300 GB/s to other GPUs
# and 25 GB/s to the host's memory: about an H100.
_FLOPS, _MEMORY, _LINK, _HOST = 4e14, 2.7e12, 3e11, 2.5e10
# Bytes that a microbatch moves for each parameter: the gradient into DeepSpeed's bucket, and from there into the sum.
_GRADIENT_BYTES = 14
# Seconds of a CPU thread for the fused step of Adam, for each parameter (docs/benchmarks.md).
_ADAM_S = 1.2e-9
_SHARES = (0.25, 0.5, 0.75, 1.0)
# Values of generator.gpu_memory_share.
_STEPS = tuple(round(0.05 * step, 2) for step in range(1, 19))
_LORA_RANK = 16


@dataclass(frozen=True, slots=True)
class Remedy:
    """A change that makes a job fit.

    Attributes:
        keys: overrides to write behind the command.
        cost: what the change costs.
    """

    keys: tuple[str, ...]
    cost: str


def remedies(settings: Settings, shape: PolicyShape, gpu: int | None, fits: Callable[[Settings], bool]) -> list[Remedy]:
    """Return up to `CHOICES` changes that fit: single changes first, then two or more changes together.

    Args:
        settings: settings of a job that does not fit.
        shape: size of the policy.
        gpu: memory of a GPU, in bytes; None if the machine has no GPU.
        fits: function that plans again with changed settings.
    """
    kinds = [list(kind) for kind in _kinds(settings, shape, gpu)]
    kinds = [kind for kind in kinds if kind]
    choices: list[Remedy] = []
    chosen: list[set[int]] = []
    for size in range(1, _TOGETHER + 1):
        for group in itertools.combinations(range(len(kinds)), size):
            # If a part of the group is enough, the rest would only cost time.
            if any(part <= set(group) for part in chosen):
                continue
            remedy = _mildest(settings, [kinds[index] for index in group], fits)
            if remedy:
                choices.append(remedy)
                chosen.append(set(group))
                if len(choices) == CHOICES:
                    return choices
    return choices


def _mildest(settings: Settings, kinds: list[list[Remedy]], fits: Callable[[Settings], bool]) -> Remedy | None:
    """Return the mildest combination of a change of each kind that fits. Each kind begins with its mildest change."""
    strongest = [kind[-1] for kind in kinds]
    if not _fits_with(settings, strongest, fits):
        return None
    steps = itertools.product(*(range(len(kind)) for kind in kinds))
    for step in sorted(steps, key=sum):
        together = [kind[index] for kind, index in zip(kinds, step, strict=True)]
        if _fits_with(settings, together, fits):
            keys = tuple(key for change in together for key in change.keys)
            return Remedy(keys, "; ".join(change.cost for change in together))
    return None


def _fits_with(settings: Settings, together: list[Remedy], fits: Callable[[Settings], bool]) -> bool:
    keys = [key for change in together for key in change.keys]
    values, source = settings.model_dump(mode="json"), "the changed config"
    changed: Settings
    try:
        if isinstance(settings, config.FineTuningConfig):
            changed = resolve(config.FINE_TUNING[settings.job], values, keys, source)
        else:
            changed = resolve(config.TrainConfig, values, keys, source)
    except ValueError:
        return False  # Some settings exclude each other.
    return fits(changed)


def _kinds(settings: Settings, shape: PolicyShape, gpu: int | None) -> Iterator[Iterator[Remedy]]:
    """Yield the kinds of changes, the cheapest kind first. Each kind begins with its mildest change."""
    train = settings if isinstance(settings, config.TrainConfig) else None
    learner = settings.learner
    on_gpu = planned_device(settings.cluster, samples=train is not None) == "cuda"
    if on_gpu and settings.policy.dtype == "float32":
        yield iter([Remedy(("policy.dtype=bfloat16",), "weights are rounded to bfloat16; several times faster")])
    if train and gpu and on_gpu:
        yield _larger_share(train, shape, gpu)
    yield _checkpointing(learner)
    yield _smaller_microbatches(settings)
    if train and gpu and on_gpu and train.cluster.share_gpus:
        yield _smaller_share(train, shape, gpu)
        yield _turns(train, shape)
    if learner.ranks > 1:
        yield _higher_stage(settings, shape)
    if on_gpu:
        yield _offload(settings, shape)
    if learner.lora is None and settings.policy.new is None:
        # The weights need no gradient: 4 of 6 FLOPs for each weight and token.
        cost = "-33 % of the learner's time; only adapters learn, at about 10 times the rate: docs/learner.md#lora"
        yield iter([Remedy((f"learner.lora.rank={_LORA_RANK}",), cost)])
    if on_gpu:
        yield _more_ranks(settings)
        if train and train.cluster.share_gpus:
            yield _apart(train)
        return
    if train and train.generator.replicas > 1:
        cost = f"up to {train.generator.replicas} times the time for sampling"
        yield iter([Remedy(("generator.replicas=1",), cost)])
    if learner.ranks > 1:
        keys = ("learner.ranks=1", "learner.sequence_parallel=1")
        yield iter([Remedy(keys, f"up to {learner.ranks} times the learner's time")])


def _checkpointing(learner: config.LearnerConfig) -> Iterator[Remedy]:
    now = learner.gradient_checkpointing
    for share in _SHARES:
        if share > now:
            # A forward pass takes a third of both passes.
            cost = f"+{100 * (share - now) / 3:.0f} % of the learner's time"
            yield Remedy((f"learner.gradient_checkpointing={share:g}",), cost)


def _smaller_microbatches(settings: Settings) -> Iterator[Remedy]:
    if isinstance(settings, config.FineTuningConfig):
        longest, _ = settings.longest_unit
    else:
        longest = settings.max_sequence_tokens
    now = settings.learner.microbatch_tokens
    # Tokens whose computation takes as long as the traffic of a microbatch's gradient.
    overhead = _GRADIENT_BYTES / _MEMORY / (6 / _FLOPS)
    tokens = now
    while tokens > longest:
        tokens = max(longest, tokens // 2)
        slower = overhead * (1 / tokens - 1 / now)
        cost = f"{now / tokens:.2g} times as many passes: +{100 * slower:.0f} % of the learner's time"
        yield Remedy((f"learner.microbatch_tokens={tokens}",), cost)


def _sequences(settings: config.TrainConfig, shape: PolicyShape, share: float, gpu: int) -> int:
    """Return how many longest sequences a generator samples at a time; 0 if its weights do not fit."""
    sequence = settings.max_sequence_tokens * shape.cache_bytes / settings.generator.devices
    return int(
        max(0.0, min(settings.generator.max_sequences, (share * gpu - generator_weights(settings, shape)) / sequence))
    )


def _larger_share(settings: config.TrainConfig, shape: PolicyShape, gpu: int) -> Iterator[Remedy]:
    if _sequences(settings, shape, settings.generator.gpu_memory_share, gpu):
        return
    for share in _STEPS:
        if sequences := _sequences(settings, shape, share, gpu):
            yield Remedy((f"generator.gpu_memory_share={share:g}",), f"{sequences} longest sequences at a time")
            return


def _smaller_share(settings: config.TrainConfig, shape: PolicyShape, gpu: int) -> Iterator[Remedy]:
    now = settings.generator.gpu_memory_share
    before = _sequences(settings, shape, now, gpu)
    for share in reversed(_STEPS):
        sequences = _sequences(settings, shape, share, gpu)
        if share < now and sequences:
            cost = (
                f"{sequences} longest sequences at a time in place of {before}: "
                f"up to +{100 * (before / sequences - 1):.0f} % of the time for sampling"
            )
            yield Remedy((f"generator.gpu_memory_share={share:g}",), cost)


def _turns(settings: config.TrainConfig, shape: PolicyShape) -> Iterator[Remedy]:
    if settings.cluster.sleep:
        return
    moved = 12 * shape.trained / settings.learner.ranks + generator_weights(settings, shape)
    yield Remedy(("cluster.sleep=true",), f"+{2 * moved / _HOST:.2g} s a step, to move states out and back")


def _higher_stage(settings: Settings, shape: PolicyShape) -> Iterator[Remedy]:
    learner = settings.learner
    for stage in range(learner.zero_stage + 1, 4):
        cost = "same traffic between the ranks"
        if stage == 3:
            # Each pass gathers the weights, the forward pass and the backward pass.
            seconds = 2 * bytes_of(settings.policy) * shape.parameters / _LINK
            computing = 6 * shape.parameters * learner.microbatch_tokens / learner.sequence_parallel / _FLOPS
            cost = f"gathers weights twice in each pass: up to +{100 * seconds / computing:.0f} % of the learner's time"
        yield Remedy((f"learner.zero_stage={stage}",), cost)


def _offload(settings: Settings, shape: PolicyShape) -> Iterator[Remedy]:
    learner = settings.learner
    part = shape.trained / learner.ranks
    updates = settings.algorithm.minibatches if isinstance(settings, config.TrainConfig) else 1
    seconds = updates * part * (_ADAM_S / learner.threads + (4 + bytes_of(settings.policy)) / _HOST)
    threads = "" if learner.threads > 1 else "; less with learner.threads=8"
    cost = f"+{seconds:.2g} s a step, because Adam runs on the CPU{threads}"
    if learner.offload == "none":
        yield Remedy(("learner.offload=optimizer",), cost)
    if learner.offload != "parameters":
        gathered = 2 * bytes_of(settings.policy) * shape.parameters / _HOST
        keys = ("learner.zero_stage=3", "learner.offload=parameters")
        yield Remedy(keys, f"{cost}, and +{gathered:.2g} s a microbatch to fetch the weights")


def _more_ranks(settings: Settings) -> Iterator[Remedy]:
    ranks = settings.learner.ranks
    paired = isinstance(settings, config.TrainConfig) and settings.cluster.share_gpus
    for more in (2 * ranks, 4 * ranks, 8 * ranks):
        keys = [f"learner.ranks={more}", "learner.zero_stage=3", *([f"generator.replicas={more}"] if paired else [])]
        yield Remedy(tuple(keys), f"{more} GPUs for the learner in place of {ranks}")


def _apart(train: config.TrainConfig) -> Iterator[Remedy]:
    keys = ["cluster.share_gpus=false", *(["cluster.sleep=false"] if train.cluster.sleep else [])]
    yield Remedy(tuple(keys), "twice as many GPUs: no GPU is shared")
