"""Compare a job's memory plan with the memory of this machine, and refuse a job that does not fit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

from grpo import config
from grpo.cluster.device import planned_device, usable_gpus
from grpo.deferred import deferred
from grpo.planning.memory import (
    CUDA_BYTES,
    GIB,
    LearnerMemory,
    bucket_bytes,
    generator_weights,
    planned_memory,
    push_bytes,
)
from grpo.planning.policy_shape import PolicyShape, architecture_of, bytes_of, shape_for
from grpo.planning.remedies import Remedy, remedies

if TYPE_CHECKING:
    import torch

    from grpo.planning.policy_shape import Architecture
else:
    torch = deferred("torch")


@dataclass(frozen=True, slots=True)
class Memory:
    """The memory of a machine, in bytes.

    Attributes:
        gpu: memory of the first GPU, in bytes; None if the machine has no GPU.
        free: free host memory, in bytes.
        host: host memory, in bytes.
    """

    gpu: int | None
    free: int
    host: int


@dataclass(frozen=True, slots=True)
class Shortage:
    """What does not fit.

    Attributes:
        text: what needs how much, and what there is.
        certain: False if it would fit, if other programs freed their memory.
    """

    text: str
    certain: bool = True


def memory_here() -> Memory:
    """Return the memory of this machine."""
    gpu = torch.cuda.get_device_properties(0).total_memory if usable_gpus() else None
    host = psutil.virtual_memory()
    return Memory(gpu, host.available, host.total)


def shortage(settings: config.JobConfig, shape: PolicyShape, memory: Memory) -> Shortage | None:
    """Return what does not fit this machine; None if everything fits, or if nothing is known.

    Nothing is known if the job uses a running cluster (`cluster.address`), or GPUs that this machine does not have.
    """
    if settings.cluster.address is not None:
        return None
    train = settings if isinstance(settings, config.TrainConfig) else None
    learner, ranks = planned_memory(settings, shape), settings.learner.ranks
    if planned_device(settings.cluster, samples=train is not None) == "cpu":
        needed = (learner.needed + sum(learner.host.values())) * ranks
        if train:
            cache = train.generator.cpu_cache_gib * GIB
            needed += train.generator.replicas * (shape.parameters * bytes_of(train.policy) + cache)
        what = "learner and generators together need" if train else "the learner needs"
        return _in_host_memory(what, needed, memory)
    if memory.gpu is None:
        return None
    for what, needed, there in _on_the_gpu(train, shape, learner, memory.gpu):
        if needed > there:
            return Shortage(f"{what} about {needed / GIB:.1f} GiB, and there are {there / GIB:.1f} GiB")
    host = sum(learner.host.values()) * ranks
    if train and train.cluster.sleep:
        moved = sum(part for name, part in learner.device.items() if name.startswith("optimizer"))
        host += ranks * (moved + generator_weights(train, shape))
    return _in_host_memory("what the learner moves into the host's memory needs", host, memory)


def _in_host_memory(what: str, needed: float, memory: Memory) -> Shortage | None:
    if needed <= memory.free:
        return None
    certain = needed > memory.host
    there = f"the machine has {memory.host / GIB:.1f} GiB" if certain else f"{memory.free / GIB:.1f} GiB are free"
    return Shortage(f"{what} about {needed / GIB:.1f} GiB, and {there}", certain)


def _on_the_gpu(
    train: config.TrainConfig | None, shape: PolicyShape, learner: LearnerMemory, gpu: int
) -> Iterable[tuple[str, float, float]]:
    """Yield for each moment what needs memory, how much it needs, and how much there is."""
    if train is None:
        yield "a learner rank needs", learner.needed, gpu
        return
    share = train.generator.gpu_memory_share * gpu
    sequence = train.max_sequence_tokens * shape.cache_bytes / train.generator.devices
    key = f"generator.gpu_memory_share={train.generator.gpu_memory_share:g}"
    yield (
        f"a generator's weights and its longest sequence under {key} need",
        generator_weights(train, shape) + sequence,
        share,
    )
    if not train.cluster.share_gpus:
        yield "a learner rank needs", learner.needed, gpu
        return
    # vLLM copies a bucket and a layer while it loads them.
    loading = bucket_bytes(train, shape) + generator_weights(train, shape) / shape.layers
    if not train.cluster.sleep:
        yield "a learner rank and the generator on its GPU need", learner.needed + share, gpu
        return
    yield "a learner rank beside a sleeping generator needs", learner.needed + CUDA_BYTES, gpu
    lasting = ("weights", "reference", "CUDA")
    asleep = sum(part for name, part in learner.device.items() if name.split()[0] in lasting)
    pushing = share + asleep + push_bytes(train, shape) + loading
    yield "a generator and a sleeping learner rank that pushes its weights need", pushing, gpu


def refusal(settings: config.JobConfig, architecture: Architecture, memory: Memory, short: Shortage) -> str:
    """Return why the job is refused, and up to three changes that would make it fit, with their costs."""

    def fits(changed: config.JobConfig) -> bool:
        return shortage(changed, shape_for(changed, architecture), memory) is None

    shape = shape_for(settings, architecture)
    choices = remedies(settings, shape, memory.gpu, fits)
    lines = [f"the job does not fit the memory of this machine: {short.text}.", *_choices(choices)]
    lines.append("to start nevertheless, set cluster.check_memory=warn (the plan is an estimate)")
    return "\n".join(lines)


def _choices(choices: list[Remedy]) -> list[str]:
    if not choices:
        return ["no change of a few settings makes it fit; take a smaller policy, or more or larger GPUs"]
    lines = "each of these changes makes it fit; take one:" if len(choices) > 1 else "this change makes it fit:"
    return [lines, *(f"  - {' '.join(remedy.keys)}   ({remedy.cost})" for remedy in choices)]


def refuse_what_does_not_fit(settings: config.JobConfig) -> None:
    """Refuse a job that needs more memory than this machine has, before anything starts.

    Raises:
        ValueError: the job does not fit, and `cluster.check_memory` is `refuse`.
    """
    if settings.cluster.address is not None or settings.cluster.check_memory != "refuse":
        return
    memory = memory_here()
    on_gpu = planned_device(settings.cluster, samples=isinstance(settings, config.TrainConfig)) == "cuda"
    if on_gpu and memory.gpu is None:
        return
    architecture = architecture_of(settings.policy)
    if architecture is None:
        return
    short = shortage(settings, shape_for(settings, architecture), memory)
    if short and short.certain:
        raise ValueError(refusal(settings, architecture, memory, short))
