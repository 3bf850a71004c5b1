"""The size of a policy: its parameters, its key-value cache, and what one of its layers needs in training."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from grpo import config
from grpo.cluster.device import build, planned_device
from grpo.config.cluster import Device
from grpo.config.signals.teacher import TeacherConfig
from grpo.deferred import deferred
from grpo.planning.layer_sizes import LayerBytes, plain_layer
from grpo.policy.adapters import trained_parameters
from grpo.policy.kernels import FAMILIES
from grpo.policy.plain import PlainConfig, stored_parameters
from grpo.policy.stored import check_heads, local_or_hub, policy_config

if TYPE_CHECKING:
    import torch
    import transformers
    from transformers import PreTrainedConfig

    Architecture: TypeAlias = PreTrainedConfig | PlainConfig
else:
    torch, transformers = deferred("torch"), deferred("transformers")

# What was measured and counted before, by everything that decides it. The search for settings that fit asks often.
_LAYERS: dict[tuple[object, ...], tuple[LayerBytes, str]] = {}
_COUNTS: dict[tuple[object, ...], tuple[int, int]] = {}


# What the code of a policy raises if it reads numbers, or has parts that the measurement does not know. A run may still
# be possible. A `ValueError` comes from our attention, which a run has too.
_NOT_ON_META = (AttributeError, KeyError, RuntimeError, TypeError)


@dataclass(frozen=True, slots=True)
class PolicyShape:
    """A policy's size.

    Attributes:
        parameters: number of parameters.
        trained: number of parameters with gradients and optimizer state: all parameters, or with LoRA only those of the
            adapters. `parameters` does not count the adapters.
        cache_bytes: key-value cache of a token, in bytes.
        vocabulary: number of logits of a token.
        hidden: size of a hidden state.
        layers: number of layers.
        tied: whether the output head has the embedding's weights.
        layer: what a layer needs for a microbatch of the learner.
        unmeasured: why `layer` is all zeros; empty if it was measured.
    """

    parameters: int
    trained: int
    cache_bytes: int
    vocabulary: int
    hidden: int
    layers: int
    tied: bool
    layer: LayerBytes
    unmeasured: str = ""


def bytes_of(policy: config.PolicyConfig) -> int:
    """Return the bytes of a weight."""
    return 2 if policy.dtype == "bfloat16" else 4


def sequence_tokens(learner: config.LearnerConfig) -> float:
    """Return the tokens of a microbatch that a rank computes."""
    return learner.microbatch_tokens / learner.sequence_parallel


def planned_shape(settings: config.JobConfig) -> PolicyShape | None:
    """Return the size of a job's policy; None if its config can be read neither locally nor from the hub.

    Raises:
        ValueError: as `shape_of`.
    """
    architecture = architecture_of(settings.policy)
    return None if architecture is None else shape_for(settings, architecture)


def shape_for(settings: config.JobConfig, architecture: Architecture) -> PolicyShape:
    """Return the size of a job's policy, whose architecture was read before.

    Raises:
        ValueError: as `shape_of`.
    """
    device = planned_device(settings.cluster, samples=isinstance(settings, config.TrainConfig))
    return measured_shape(settings.policy, settings.learner, architecture, device, _repeats(settings))


def architecture_of(policy: config.PolicyConfig) -> Architecture | None:
    """Read the policy's architecture; return None if neither a folder nor the hub provides it."""
    if policy.new is None:
        return policy_config(policy)
    from grpo.policy.new import shape_of as new_shape

    new = policy.new
    characters = len(set(new.alphabet)) + len(new.tags) + 3
    return new_shape(new, new.vocabulary if new.tokenizer == "bpe" else characters)


def _repeats(settings: config.JobConfig) -> float:
    """Return how many tokens attention computes for each token of a microbatch of the longest sequences.

    A microbatch holds a prompt once for several of its completions, and attention repeats it for each of them.
    """
    if isinstance(settings, config.PreferenceJobConfig):
        # Two answers share a prompt that is about as long as an answer: 4 parts for the 3 that are computed.
        return 4 / 3
    if isinstance(settings, config.FineTuningConfig):
        return 1.0
    rollout = settings.rollout
    prompt, completion = rollout.max_prompt_tokens, rollout.max_completion_tokens
    together = (settings.learner.microbatch_tokens - prompt) // completion
    together = max(1, min(rollout.group_size, together))
    return together * (prompt + completion) / (prompt + together * completion)


def teacher_parameters(teacher: TeacherConfig) -> int:
    """Return the number of the teacher's parameters; 0 if its files are not here."""
    as_policy = config.PolicyConfig(path=teacher.path, revision=teacher.revision)
    architecture = architecture_of(as_policy)
    return 0 if architecture is None else _counts(as_policy, config.LearnerConfig(), architecture)[0]


def shape_of(
    policy: config.PolicyConfig, learner: config.LearnerConfig, device: Device = "cuda", repeats: float = 1.0
) -> PolicyShape | None:
    """Return the size of the policy; None if its config can be read neither locally nor from the hub.

    Args:
        policy: settings of the policy.
        learner: settings of the learner, for the tokens, kernels and adapters of a layer.
        device: device of the learner. On a CPU, a common policy is computed and not measured, so torch is not imported.
        repeats: tokens that attention computes for each token of the packed row.

    Raises:
        ValueError: a target of `learner.lora` names no linear layer of the policy, or `learner.sequence_parallel` does
            not divide the policy's heads, or the learner does not have the policy's attention.
    """
    architecture = architecture_of(policy)
    return None if architecture is None else measured_shape(policy, learner, architecture, device, repeats)


def measured_shape(
    policy: config.PolicyConfig, learner: config.LearnerConfig, shape: Architecture, device: Device, repeats: float
) -> PolicyShape:
    """Return the size of a policy with this architecture; the arguments and errors are those of `shape_of`."""
    check_heads(shape, learner.sequence_parallel)
    parameters, trained = _counts(policy, learner, shape)
    size = bytes_of(policy)
    heads = getattr(shape, "num_key_value_heads", None) or shape.num_attention_heads
    head = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    unmeasured = ""
    if isinstance(shape, PlainConfig) and device == "cpu" and learner.lora is None:
        layer = plain_layer(shape, size, sequence_tokens(learner))
    else:
        layer, unmeasured = _measured(policy, learner, shape, device, repeats)
    return PolicyShape(
        parameters=parameters,
        trained=trained,
        cache_bytes=2 * shape.num_hidden_layers * heads * head * size,
        vocabulary=shape.vocab_size,
        hidden=shape.hidden_size,
        layers=shape.num_hidden_layers,
        tied=bool(getattr(shape, "tie_word_embeddings", False)),
        layer=layer,
        unmeasured=unmeasured,
    )


def _counts(policy: config.PolicyConfig, learner: config.LearnerConfig, shape: Architecture) -> tuple[int, int]:
    """Return the number of parameters, and the number of trained parameters."""
    if (
        isinstance(shape, PlainConfig)
        and not learner.lora
        and (stored := stored_parameters(local_or_hub(policy), shape))
    ):
        return stored, stored
    model_shape = _whole(policy, shape)
    key = (model_shape.to_json_string(), learner.lora)
    if key not in _COUNTS:
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(model_shape)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        _COUNTS[key] = parameters, trained_parameters(model, learner.lora)
    return _COUNTS[key]


def _whole(policy: config.PolicyConfig, shape: Architecture) -> PreTrainedConfig:
    if isinstance(shape, PlainConfig):
        shape_of_files: PreTrainedConfig = transformers.AutoConfig.from_pretrained(local_or_hub(policy))
        return shape_of_files
    return shape


def _measured(
    policy: config.PolicyConfig,
    learner: config.LearnerConfig,
    shape: Architecture,
    device: Device,
    repeats: float,
) -> tuple[LayerBytes, str]:
    """Return what a layer needs, and why it could not be measured (empty if it could)."""
    from grpo.planning.layer_bytes import LayerSetting, measured_layer

    whole, tokens = _whole(policy, shape), max(1, round(sequence_tokens(learner)))
    kernels = _kernels(learner, device, whole.model_type)
    setting = LayerSetting(policy.dtype, kernels, repeats, learner.lora)
    key = (whole.to_json_string(), setting, tokens)
    if key not in _LAYERS:
        try:
            _LAYERS[key] = measured_layer(whole, setting, tokens), ""
        except _NOT_ON_META as failure:
            reason = (
                f"the code of {whole.model_type} does not run on the meta device: {type(failure).__name__}: {failure}"
            )
            _LAYERS[key] = LayerBytes(0, 0, 0, 0, 0), reason
    return _LAYERS[key]


def _kernels(learner: config.LearnerConfig, device: Device, family: str) -> Literal["eager", "liger"]:
    """Return the kernels of the run. A CPU environment plans for a GPU environment, which has Liger."""
    if device == "cpu" or learner.kernels == "eager" or family not in FAMILIES:
        return "eager"
    return "liger" if build() == "cpu" or importlib.util.find_spec("liger_kernel") else "eager"
