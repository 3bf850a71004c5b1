"""The learner's speed on paper: what an H100 or H200 can reach, by the operators that the learner really calls.

    python tests/bench/roofline.py            the table of docs/benchmarks.md
    python tests/bench/roofline.py --parts    also the milliseconds of each part

It runs one and two layers of the real policy on torch's meta device, which computes shapes and no numbers, and records
every operator of the forward and backward pass: the FLOPs of matrix products, and the bytes that every other operator
reads and writes. Attention and, on request, fused kernels are opaque: attention costs its FLOPs, a kernel of Liger
reads its inputs and writes its outputs once, and the fused functions of the output head read and write what their
compiled loops do. Memory is the plan of `grpo check`. The speeds of the hardware below are assumptions.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))
os.environ.setdefault("DS_ACCELERATOR", "cpu")

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402
from transformers import Qwen3Config, Qwen3ForCausalLM  # noqa: E402
from transformers.models.qwen3 import modeling_qwen3 as qwen3  # noqa: E402

from grpo.algorithm.packing import Microbatch, TrainingSequence, pack  # noqa: E402
from grpo.config import LearnerConfig, PolicyConfig  # noqa: E402
from grpo.config.algorithm import AlgorithmConfig  # noqa: E402
from grpo.config.learner import Kernels  # noqa: E402
from grpo.planning.memory import learner_memory  # noqa: E402
from grpo.planning.policy_shape import measured_shape  # noqa: E402
from grpo.policy.attention import PACKED, VarlenLayout  # noqa: E402
from grpo.policy.flops import PolicyFlops, peak_flops  # noqa: E402
from grpo.policy.fused_head import FusedHead  # noqa: E402
from grpo.policy.logprobs import PolicyLogprobs  # noqa: E402

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Gpu:
    """Assumed speeds of a GPU.

    Attributes:
        name: name in the table of peak FLOP/s.
        memory: memory that a process can use, in bytes.
        bandwidth: bytes per second that a large elementwise kernel moves, about four fifths of the maker's figure.
        products: FLOP/s of large matrix products in bfloat16, about two thirds of the maker's figure.
    """

    name: str
    memory: float
    bandwidth: float
    products: float


GPUS = (Gpu("H100", 79 * GIB, 2.7e12, 6.5e14), Gpu("H200", 139 * GIB, 3.9e12, 6.5e14))
# FLOP/s of causal attention with head size 128, forward and backward, in a sequence of 16k tokens; of the order of the
# figures in arXiv:2407.08608. Shorter sequences have fewer blocks and more edges, so they reach a smaller share.
ATTENTION = {"FA2": (3.3e14, 2.8e14), "FA3/4": (6.0e14, 4.8e14)}
SHORT_SHARE = 0.75
# Qwen3's shapes: hidden size, layers, heads, key-value heads, intermediate size, tied embeddings; and the ranks of the
# learner under ZeRO-3 (1: ZeRO-2 on one GPU).
POLICIES = {"1.7B": (2048, 28, 16, 8, 6144, True, 1), "8B": (4096, 36, 32, 8, 12288, False, 8)}
VOCABULARY = 151_936
# Microbatches in an optimizer step: the cost of the step itself is divided by their number.
MICROBATCHES = 4
# For each parameter: bytes that DeepSpeed moves in each microbatch (the gradient in bfloat16 into the bucket, and from
# there into the sum in float32), and bytes of the step (fused AdamW in float32, and a copy in bfloat16).
GRADIENT_BYTES, STEP_BYTES = 14, 30


@dataclass(slots=True)
class Traffic:
    """Counts of a pass over a microbatch.

    Attributes:
        product_flops: FLOPs of matrix products.
        bytes: bytes that other operators read and write.
        by_operator: bytes of each operator.
    """

    product_flops: float = 0.0
    bytes: float = 0.0
    by_operator: dict[str, float] = field(default_factory=dict)

    def add(self, operator: str, size: float) -> None:
        """Count the bytes of an operator."""
        self.bytes += size
        self.by_operator[operator] = self.by_operator.get(operator, 0.0) + size

    def minus(self, other: Traffic) -> Traffic:
        """Return the difference of two counts."""
        return Traffic(self.product_flops - other.product_flops, self.bytes - other.bytes)


_PRODUCTS = {"mm", "addmm", "addmm_", "bmm"}
# Operators that make memory or a view and write nothing.
_MOVE_NOTHING = {
    "_unsafe_view",
    "empty",
    "empty_like",
    "new_empty",
    "empty_strided",
    "new_empty_strided",
    "empty_permuted",
}


class Recorder(TorchDispatchMode):
    """Counts operators into `traffic`."""

    def __init__(self) -> None:
        super().__init__()
        self.traffic = Traffic()

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operator(*args, **(kwargs or {}))
        name = operator._schema.name.split("::")[1]
        inputs = [one for one in tree_leaves((args, kwargs or {})) if isinstance(one, Tensor)]
        outputs = [one for one in tree_leaves(result) if isinstance(one, Tensor)]
        aliases = [one.alias_info for one in operator._schema.returns]
        if any(alias is not None and not alias.is_write for alias in aliases) or name in _MOVE_NOTHING:
            return result  # A view moves nothing.
        if name in _PRODUCTS:
            # `addmm` adds its first argument to the product of the other two.
            left, right = args[1:3] if name.startswith("addmm") else args[:2]
            self.traffic.product_flops += 2.0 * left.numel() * right.shape[-1]
        else:
            self.traffic.add(name, sum(map(_bytes, inputs)) + sum(map(_bytes, outputs)))
        return result


def _bytes(tensor: Tensor) -> float:
    """Return the bytes of a tensor in memory; an expanded tensor is smaller than its shape."""
    expanded = [size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride]
    return float(torch.Size(expanded).numel() * tensor.element_size())


class _Opaque(torch.autograd.Function):
    """A fused kernel: it reads its inputs and writes its outputs once, forward and backward.

    The backward pass reads the gradients and what was kept, and writes the gradients of the inputs.
    """

    @staticmethod
    def forward(ctx: Any, count: Callable[[str, float], None], name: str, outputs: int, *inputs: Tensor) -> Any:
        ctx.count, ctx.name = count, name
        ctx.save_for_backward(*inputs)
        made = tuple(torch.empty_like(one) for one in inputs[:outputs])
        count(name, sum(map(_bytes, (*inputs, *made))))
        return made[0] if outputs == 1 else made

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        made = tuple(torch.empty_like(one) for one in ctx.saved_tensors)
        ctx.count(ctx.name, sum(map(_bytes, (*gradients, *ctx.saved_tensors, *made))))
        return (None, None, None, *made)


@contextlib.contextmanager
def opaque(recorder: Recorder, kernels: str) -> Iterator[FusedHead | None]:
    """Inside, attention costs nothing here (its FLOPs are counted apart), and `liger` fuses norms, rotary and MLPs.

    Yields the fused functions of the output head, if the kernels are fused.
    """

    def count(name: str, size: float) -> None:
        recorder.traffic.add(name, size)

    def attend(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        attended: Tensor = _Opaque.apply(lambda *_: None, "attention", 1, query, key, value)
        return attended

    def norm(module: Any, hidden: Tensor) -> Tensor:
        normed: Tensor = _Opaque.apply(count, "norm", 1, hidden, module.weight)
        return normed

    def rotate(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
        rotated: tuple[Tensor, Tensor] = _Opaque.apply(count, "rotary", 2, query, key)
        return rotated

    def mlp(module: Any, hidden: Tensor) -> Tensor:
        gated = _Opaque.apply(count, "swiglu", 1, module.gate_proj(hidden), module.up_proj(hidden))
        down: Tensor = module.down_proj(gated)
        return down

    def statistics(logits_CV: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
        # The compiled kernel has two loops over the vocabulary: the largest logit, and the sums.
        recorder.traffic.add("head", 2 * _bytes(logits_CV))
        one_C = logits_CV.new_empty(len(logits_CV), dtype=torch.float32)
        return one_C, torch.empty_like(one_C), torch.empty_like(one_C)

    def replace_by_gradient(logits_CV: Tensor, *_: Any) -> None:
        recorder.traffic.add("head", 2 * _bytes(logits_CV))

    def add_product(sum_VE: Tensor, gradient_VC: Tensor, hidden_CE: Tensor, beta: int) -> None:
        # The product's own writing is part of its FLOP/s. Here each chunk reads and writes the whole sum, too.
        recorder.traffic.product_flops += 2.0 * gradient_VC.numel() * hidden_CE.shape[1]
        recorder.traffic.add("sum of the head's gradient", (1 + beta) * _bytes(sum_VE))

    with contextlib.ExitStack() as patched:
        patched.enter_context(mock.patch("grpo.policy.head.add_product", add_product))
        patched.enter_context(mock.patch("grpo.policy.attention.varlen_attn", attend))
        if kernels == "liger":
            patched.enter_context(mock.patch.object(qwen3.Qwen3RMSNorm, "forward", norm))
            patched.enter_context(mock.patch.object(qwen3, "apply_rotary_pos_emb", rotate))
            patched.enter_context(mock.patch.object(qwen3.Qwen3MLP, "forward", mlp))
        yield FusedHead(statistics, replace_by_gradient) if kernels == "liger" else None


def shape_of(name: str, layers: int | None = None) -> Qwen3Config:
    """Return the config of a policy, with fewer layers if `layers` is given."""
    hidden, depth, heads, key_value_heads, intermediate, tied, _ = POLICIES[name]
    shape = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers or depth,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        head_dim=128,
        max_position_embeddings=32_768,
        tie_word_embeddings=tied,
    )
    shape._attn_implementation = PACKED
    return shape


def microbatch(long: bool) -> Microbatch:
    """Return a microbatch of 16k tokens: one sequence, or two groups of six completions of 1,332 tokens."""
    if long:
        tokens = (1,) * 16_385
        return pack([TrainingSequence(tokens, 200, (0.0,) * (len(tokens) - 200), 1.0)])
    groups = [(prompt,) * 200 for prompt in (1, 2)]
    return pack([TrainingSequence((*one, *(3,) * 1332), 200, (0.0,) * 1332, 1.0) for one in groups for _ in range(6)])


@dataclass(frozen=True, slots=True)
class Passes:
    """Counts of a policy: forward and backward of everything outside the layers, and of one layer."""

    rest: tuple[Traffic, Traffic]
    layer: tuple[Traffic, Traffic]


@functools.cache
def recorded(name: str, long: bool, kernels: str) -> Passes:
    """Record the operators of a policy. Everything outside the layers, the output head too, is in `rest`."""
    batch = microbatch(long)
    one, two = (_passes(shape_of(name, layers), batch, kernels) for layers in (1, 2))
    layer = (two[0].minus(one[0]), two[1].minus(one[1]))
    return Passes((one[0].minus(layer[0]), one[1].minus(layer[1])), layer)


def _passes(shape: Qwen3Config, batch: Microbatch, kernels: str) -> tuple[Traffic, Traffic]:
    with torch.device("meta"):
        model = Qwen3ForCausalLM(shape).to(torch.bfloat16)
    forward, backward = Recorder(), Recorder()
    with opaque(forward, kernels) as fused:
        policy, moved = PolicyLogprobs(model, None, VarlenLayout, fused), batch.to(torch.device("meta"))
        with forward:
            logprobs_T = policy(moved, 1.0, "value")[0]
        # The kernels' backward passes count where their forward passes counted.
        before = dataclasses.replace(forward.traffic, by_operator=dict(forward.traffic.by_operator))
        with backward:
            torch.autograd.grad(logprobs_T.sum(), [one for one in model.parameters()], allow_unused=True)
    backward.traffic.bytes += forward.traffic.bytes - before.bytes
    backward.traffic.product_flops += forward.traffic.product_flops - before.product_flops
    return before, backward.traffic


@dataclass(frozen=True, slots=True)
class Setting:
    """Settings of the learner.

    Attributes:
        kernels: `learner.kernels`: `eager`, or `liger`, which also fuses the output head.
        attention: key of `ATTENTION`.
        share: share of the layers whose forward pass is computed again; None for the smallest share that fits.
    """

    kernels: Kernels
    attention: str
    share: float | None


@dataclass(frozen=True, slots=True)
class Prediction:
    """A predicted microbatch.

    Attributes:
        parts: seconds of each part.
        mfu: share of the peak, with the FLOPs that `grpo.policy.flops` counts.
        tokens_per_s: computed tokens per second, as in `learner/tokens_per_s`.
        memory: largest memory, in bytes.
        share: share of the layers whose forward pass is computed again.
    """

    parts: dict[str, float]
    mfu: float
    tokens_per_s: float
    memory: float
    share: float


def predict(gpu: Gpu, name: str, batch: Microbatch, passes: Passes, setting: Setting) -> Prediction:
    """Predict a microbatch with its part of the optimizer step. Traffic between ranks is taken to be hidden."""
    shape = shape_of(name)
    layers, ranks = shape.num_hidden_layers, POLICIES[name][6]
    parameters = _parameters(shape)
    share = setting.share
    if share is None:
        shares = (again / layers for again in range(layers + 1))
        share = next((each for each in shares if planned(name, batch, setting.kernels, each) <= gpu.memory), 1.0)
    again = round(share * layers)
    forward, backward = passes.layer
    products = sum(one.product_flops for one in passes.rest) + layers * (forward.product_flops + backward.product_flops)
    moved = sum(one.bytes for one in passes.rest) + layers * (forward.bytes + backward.bytes)
    pairs = sum(place.length * (place.length + 1) / 2 for place in batch.places)
    width = shape.num_attention_heads * shape.head_dim
    long = max(place.length for place in batch.places) > 8000
    rates = [rate * (1.0 if long else SHORT_SHARE) for rate in ATTENTION[setting.attention]]
    attention = width * pairs * ((layers + again) * 4 / rates[0] + layers * 10 / rates[1])
    parts = {
        "products": (products + again * forward.product_flops) / gpu.products,
        "attention": attention,
        "other operators": (moved + again * forward.bytes) / gpu.bandwidth,
        "gradients and step": parameters / ranks * (GRADIENT_BYTES * ranks + STEP_BYTES / MICROBATCHES) / gpu.bandwidth,
    }
    seconds = sum(parts.values())
    flops, peak = PolicyFlops.of(shape).training(batch), peak_flops(gpu.name)
    assert peak is not None
    memory = planned(name, batch, setting.kernels, share)
    return Prediction(parts, flops / seconds / peak, len(batch.input_ids_N) / seconds, memory, share)


def _parameters(shape: Qwen3Config) -> int:
    with torch.device("meta"):
        return sum(one.numel() for one in Qwen3ForCausalLM(shape).parameters())


def planned(name: str, batch: Microbatch, kernels: Kernels, share: float) -> float:
    """Return the memory of a learner rank by the plan of `grpo check`, in bytes."""
    ranks, tokens = POLICIES[name][6], len(batch.input_ids_N)
    learner = LearnerConfig(
        ranks=ranks,
        zero_stage=3 if ranks > 1 else 2,
        microbatch_tokens=tokens,
        kernels=kernels,
        gradient_checkpointing=share,
    )
    policy = PolicyConfig(path=name, dtype="bfloat16")
    repeats = sum(place.length for place in batch.places) / tokens
    shape = measured_shape(policy, learner, shape_of(name), "cuda", repeats)
    return learner_memory(shape, policy, learner, AlgorithmConfig()).needed


SETTINGS = {
    "before: eager, all layers again": Setting("eager", "FA2", 1.0),
    "+ share that fits": Setting("eager", "FA2", None),
    "+ fused kernels": Setting("liger", "FA2", None),
    "+ FA3/4": Setting("liger", "FA3/4", None),
}


def predictions() -> Iterator[tuple[Gpu, str, bool, str, Prediction]]:
    """Predict all cases of the table."""
    for name, long in itertools.product(POLICIES, (False, True)):
        batch = microbatch(long)
        for title, setting in SETTINGS.items():
            passes = recorded(name, long, setting.kernels)
            for gpu in GPUS:
                yield gpu, name, long, title, predict(gpu, name, batch, passes, setting)


def table(found: list[tuple[Gpu, str, bool, str, Prediction]]) -> str:
    """Return the predictions as a table of Markdown: one row for a GPU, a policy and lengths."""
    lines = ["| GPU, policy, lengths | " + " | ".join(SETTINGS) + " |", "| --- |" + " --- |" * len(SETTINGS)]
    for _, group in itertools.groupby(found, key=lambda one: (one[0].name, one[1], one[2])):
        rows = list(group)
        gpu, name, long, _, _ = rows[0]
        cells = [
            f"{100 * one.mfu:.0f} %; {one.tokens_per_s / 1000:.1f}; {one.share:.2f}; {one.memory / GIB:.0f}"
            for *_, one in rows
        ]
        lines.append(f"| {gpu.name}, {name}, {'one of 16k' if long else 'RL'} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", action="store_true", help="also print the milliseconds of each part")
    options = parser.parse_args()
    found = sorted(predictions(), key=lambda one: (one[0].name, one[1], one[2]))
    print(table(found))
    if options.parts:
        for gpu, name, long, title, one in found:
            parts = ", ".join(f"{part} {1000 * seconds:.0f}" for part, seconds in one.parts.items())
            print(f"{gpu.name} {name} {'16k' if long else 'RL'}, {title}: {parts} ms")


if __name__ == "__main__":
    main()
