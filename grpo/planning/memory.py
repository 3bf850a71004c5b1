"""Estimate the memory of a job's parts from its config, and show it as a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.table import Table

from grpo import config
from grpo.cluster.device import planned_device
from grpo.config.algorithm import AlgorithmConfig
from grpo.config.cluster import Device
from grpo.planning.policy_shape import PolicyShape, bytes_of, sequence_tokens, teacher_parameters
from grpo.policy.flops import FUSED_LOGIT_BYTES, LOGIT_BYTES
from grpo.policy.recompute import recomputed_layers

if TYPE_CHECKING:
    from collections.abc import Mapping

GIB = 1 << 30
# Elements of the bucket in which DeepSpeed collects gradients (`reduce_bucket_size`), the most gathered parameters of
# ZeRO-3 (`stage3_max_live_parameters`), and the most elements that it updates at a time (`sub_group_size`). These are
# the defaults of DeepSpeed, which the learner does not change.
BUCKET_ELEMENTS, LIVE_PARAMETERS, SUB_GROUP_ELEMENTS = 500_000_000, 1_000_000_000, 1_000_000_000
# What a process takes on a GPU beside its tensors: CUDA's context, the kernels, and workspaces of cuBLAS and NCCL. This
# is an assumption: nobody has measured it here.
CUDA_BYTES = GIB
BUCKETS = "DeepSpeed's buckets"


@dataclass(frozen=True, slots=True)
class LearnerMemory:
    """The memory of a learner rank, in bytes.

    Attributes:
        moment: moment of a step in which the rank needs most of its device's memory.
        device: parts in the device's memory at this moment.
        host: parts in the host's memory.
    """

    moment: str
    device: Mapping[str, float]
    host: Mapping[str, float]

    @property
    def needed(self) -> float:
        """Memory of the device at the fullest moment."""
        return sum(self.device.values())


def learner_memory(
    shape: PolicyShape,
    policy: config.PolicyConfig,
    learner: config.LearnerConfig,
    algorithm: AlgorithmConfig | None,
    device: Device = "cuda",
    pushed: float = 0.0,
) -> LearnerMemory:
    """Compute the parts of a learner rank's memory. ZeRO (arXiv:1910.02054, section 3) shards some parts.

    A step has several moments with much memory: the backward pass of the output head, when all layers still keep their
    activations; the backward pass of the last layer; the optimizer step; and the push of the weights.

    Args:
        shape: size of the policy, with a layer measured for the tokens of this learner.
        policy: settings of the policy; they give its dtype.
        learner: settings of the learner: ranks, sharding and tokens of a microbatch.
        algorithm: settings of the algorithm, which may need a reference policy; None in supervised fine-tuning.
        device: device of the rank.
        pushed: bytes that a push of the weights needs; 0 if no weights are pushed.
    """
    size, shards = bytes_of(policy), _shards(learner)
    states, host = _states(shape, policy, learner, algorithm, device)
    frozen, tokens = learner.lora is not None, sequence_tokens(learner)
    embedding = 0.0 if frozen else float(shape.vocabulary * shape.hidden)
    again = recomputed_layers(shape.layers, learner.gradient_checkpointing)
    layer = shape.layer
    kept = layer.outside + sum(layer.input if chosen else layer.kept for chosen in again)
    activations, gradient_of_head = "activations of a microbatch", "gradient of the output head"
    with_entropy = algorithm is not None and bool(algorithm.entropy_coefficient)
    # The trial of the fused head takes place on the GPU, so the plan trusts it. The eager head needs little more.
    fused = device == "cuda" and learner.kernels != "eager"
    logits, of_head = _head(shape, size, frozen, tokens, with_entropy, fused)
    # The states of the predicted tokens, and their gradient.
    states_of_head = 2.0 * size * shape.hidden * tokens
    whole = 1 if learner.reduces_once(policy.dtype) else shards[2]
    # DeepSpeed computes the norm of each parameter's gradient in float64, and copies the gradients into one tensor.
    flat = shape.trained / shards[1] if policy.dtype == "float32" else 0.0
    flat = min(SUB_GROUP_ELEMENTS, shape.trained / shards[2]) if learner.zero_stage == 3 else flat
    # Stages 1 and 2 make the bucket when the first gradient is there. Stage 3 keeps it all the time.
    buckets = {BUCKETS: _buckets(shape, learner, size, device)}
    moments = {
        "the backward pass of the output head": {
            activations: kept + states_of_head,
            "logits": logits,
            gradient_of_head: of_head,
        },
        "the backward pass of a layer": {
            activations: kept,
            "a layer's backward pass": layer.again if any(again) else layer.backward,
            # The gradient of tied embeddings waits for its second half.
            gradient_of_head: size * embedding if shape.tied else 0.0,
            **({} if learner.zero_stage == 3 else buckets),
        },
        "the optimizer step": {"the step's copies of gradients": 8 * embedding / whole + 4 * flat},
        "a push of the weights": {"buckets of a push": pushed},
    }
    moment = max(moments, key=lambda name: sum(moments[name].values()))
    parts = {**states, **moments[moment]}
    return LearnerMemory(moment, {name: part for name, part in parts.items() if part}, host)


def _shards(learner: config.LearnerConfig) -> dict[int, int]:
    """Return the number of parts into which a stage of ZeRO divides what it divides."""
    return {stage: learner.ranks if learner.zero_stage >= stage else 1 for stage in (1, 2, 3)}


def _states(
    shape: PolicyShape,
    policy: config.PolicyConfig,
    learner: config.LearnerConfig,
    algorithm: AlgorithmConfig | None,
    device: Device,
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the parts that a rank holds all the time: in its device's memory, and in the host's."""
    size, shards, offload, stage = bytes_of(policy), _shards(learner), learner.offload, learner.zero_stage
    held = shape.parameters + (shape.trained if learner.lora else 0)
    weights = {"weights": held * size / shards[3]}
    gradients = {"gradients": shape.trained * 4.0 / (1 if learner.reduces_once(policy.dtype) else shards[2])}
    # Adam's two moments, and float32 weights. ZeRO-3 updates weights that are in float32 on its device in place.
    master = 0 if policy.dtype == "float32" and stage == 3 and offload == "none" else 4
    optimizer = {"optimizer (Adam, float32 weights)": shape.trained * (8.0 + master) / shards[1]}
    here: dict[str, float] = {}
    host: dict[str, float] = {}
    (host if offload == "parameters" else here).update(weights)
    (host if offload != "none" and stage == 3 else here).update(gradients)
    (host if offload != "none" else here).update(optimizer)
    if offload != "none" and stage < 3:
        # The step reads float32 gradients in the host's memory, and writes new weights there before they go back.
        host["copies for the step"] = shape.trained * (4.0 + size) / shards[1]
    if algorithm and algorithm.needs_reference and not learner.lora:
        # The reference policy is never sharded: every rank holds the whole.
        here["reference policy"] = float(shape.parameters * size)
    if algorithm and algorithm.teacher:
        # Nor is the teacher.
        here["teacher"] = float(teacher_parameters(algorithm.teacher) * size)
    if stage == 3:
        here["gathered weights"] = float(min(LIVE_PARAMETERS, shape.parameters) * size)
        here[BUCKETS] = _buckets(shape, learner, size, device)
    if device == "cuda":
        here["CUDA"] = float(CUDA_BYTES)
    return here, host


def _buckets(shape: PolicyShape, learner: config.LearnerConfig, size: int, device: Device) -> float:
    filled = min(BUCKET_ELEMENTS, shape.trained)
    # A page of the host's memory counts once it is written to.
    whole = BUCKET_ELEMENTS if device == "cuda" else filled
    if learner.zero_stage == 1:
        # At stage 1 the gradients are already in float32.
        return 4.0 * whole
    if learner.zero_stage == 2:
        return float(size * whole * (2 if learner.overlap_comm else 1))
    # The reduction puts the pieces of all ranks in order, in a copy.
    return float(size * (whole + filled))


def _head(
    shape: PolicyShape, size: int, frozen: bool, tokens: float, entropy: bool, fused: bool
) -> tuple[float, float]:
    """Return the bytes of the logits and of the weights' gradient, at the fullest moment of `LogprobHead`.

    Args:
        shape: size of the policy.
        size: bytes of a weight.
        frozen: True if the weights get no gradient.
        tokens: predicted tokens.
        entropy: whether the entropy has a gradient.
        fused: whether the functions of `grpo.policy.fused_head` compute it.
    """
    weights = 0 if frozen else shape.vocabulary * shape.hidden
    if fused:
        # A sum in float32. At the end, the rounded sum in bfloat16 takes the place of the last chunk's logits.
        rounded = 2 * weights if size == 2 else 0
        logits = min(FUSED_LOGIT_BYTES, size * shape.vocabulary * tokens)
        return float(max(logits, rounded)), 4.0 * weights
    logits = min(LOGIT_BYTES, 4 * shape.vocabulary * tokens)
    # A sum in float32; in bfloat16 also the product of the last chunk, whose memory the rounded sum takes at the end.
    gradient = (6 if size == 2 else 4) * weights
    # The backward pass has a chunk's logits in float32, and with them the gradient in bfloat16 or an entropy's factor.
    backward = 2.0 if entropy else 1.5 if size == 2 else 1.0
    # The forward pass has three tensors of a chunk's size.
    return max(backward * logits, 3 * logits - gradient), float(gradient)


def push_bytes(settings: config.TrainConfig, shape: PolicyShape) -> float:
    """Return the bytes of the buckets that a learner rank on a GPU holds in a push of the weights.

    With ipc, a bucket is gathered while the bucket before it is loaded and the one before that is given back.
    """
    ipc = settings.cluster.share_gpus and settings.weight_sync.transport in ("auto", "ipc")
    return (3 if ipc else 2) * bucket_bytes(settings, shape)


def bucket_bytes(settings: config.TrainConfig, shape: PolicyShape) -> float:
    """Return the size of the largest bucket of a push. The embedding is a bucket by itself if it is larger."""
    embedding = shape.vocabulary * shape.hidden * bytes_of(settings.policy)
    return float(max(settings.weight_sync.bucket_mib << 20, embedding))


def planned_memory(settings: config.JobConfig, shape: PolicyShape) -> LearnerMemory:
    """Return the memory of a learner rank of a job."""
    device = planned_device(settings.cluster, samples=isinstance(settings, config.TrainConfig))
    algorithm, pushed = None, 0.0
    if isinstance(settings, config.TrainConfig):
        algorithm = settings.algorithm
        pushed = push_bytes(settings, shape) if device == "cuda" else 0.0
    return learner_memory(shape, settings.policy, settings.learner, algorithm, device, pushed)


def add_memory(table: Table, settings: config.JobConfig, shape: PolicyShape | None) -> Table:
    """Fill `table` with the memory of a learner rank and of a generator.

    Args:
        table: table of two columns; it is also returned.
        settings: settings of a training or fine-tuning job.
        shape: size of the policy; None if it is unknown.
    """
    if shape is None:
        table.add_row("unknown", f"the policy {settings.policy.path!r} is not here yet and the hub does not answer")
        return table
    lora = settings.learner.lora
    adapters = f"; only the {shape.trained:,} of adapters of rank {lora.rank} are trained" if lora else ""
    table.add_row("policy", f"{shape.parameters:,} parameters{adapters}")
    learner = planned_memory(settings, shape)
    without = f"; activations are not counted, because {shape.unmeasured}" if shape.unmeasured else ""
    table.add_row("a learner rank", f"{_parts(learner.device)}; in {learner.moment}{without}")
    if learner.host:
        table.add_row("in the host's memory", _parts(learner.host))
    if isinstance(settings, config.TrainConfig):
        cache = settings.generator.max_sequences * settings.max_sequence_tokens * shape.cache_bytes
        table.add_row(
            "a generator",
            f"weights {generator_weights(settings, shape) / GIB:.2f} GiB a device; key-value cache of "
            f"{settings.generator.max_sequences} longest sequences {cache / GIB:.2f} GiB",
        )
    return table


def _parts(parts: Mapping[str, float]) -> str:
    return f"{sum(parts.values()) / GIB:.2f} GiB: " + ", ".join(
        f"{name} {part / GIB:.2f}" for name, part in parts.items()
    )


def generator_weights(settings: config.TrainConfig, shape: PolicyShape) -> float:
    """Return the bytes of a generator's weights on each of its devices."""
    return shape.parameters * bytes_of(settings.policy) / settings.generator.devices
