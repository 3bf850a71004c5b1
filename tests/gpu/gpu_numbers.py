"""Parts of the GPU check that compare numbers of the device with numbers in float64 on the CPU."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import gpu_policies
import torch
from gpu_context import DTYPES, Context, Differences, Wrong
from gpu_outcomes import Result
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from grpo.algorithm.objective import SUMS, Terms, policy_terms
from grpo.algorithm.packing import Microbatch, Place, TrainingSequence, pack
from grpo.config.algorithm import AlgorithmConfig
from grpo.config.cluster import Device
from grpo.config.learner import Kernels
from grpo.config.presets import PRESETS
from grpo.learner.deepspeed_setup import load_policy
from grpo.policy import head as head_module
from grpo.policy.attention import PackedLayout, VarlenLayout
from grpo.policy.fused_head import FusedHead, compiled_head
from grpo.policy.head import Entropy, LogprobHead
from grpo.policy.logprobs import PolicyLogprobs

TEMPERATURE = 0.8
# Shares of the layers that are computed again in the backward pass.
SHARES = (0.0, 0.5, 1.0)
# Settings of the objective that no preset has, each beside the defaults.
BESIDES = {
    "entropy bonus": {"entropy_coefficient": 0.01},
    "importance weights": {"importance_weight": "token"},
    "mismatch mask": {"mismatch_mask": "token"},
}


def layouts(context: Context, dtype: torch.dtype) -> dict[str, type[PackedLayout | VarlenLayout]]:
    """Return the layouts that run on this device in this number format."""
    found: dict[str, type[PackedLayout | VarlenLayout]] = {"sdpa": PackedLayout}
    if context.on_gpu and dtype == torch.bfloat16:
        found["varlen"] = VarlenLayout
    return found


def attention(context: Context) -> Result:
    """Both layouts against plain attention: outputs and gradients, shared prompts, grouped heads."""
    worst = Differences()
    lengths = gpu_policies.TINY if context.tiny else gpu_policies.Lengths(4, 4, 100, 150, 700, 4096)
    shared = pack(gpu_policies.sequences(lengths, 50, seed=1)).places
    alone = pack(gpu_policies.sequences(dataclasses.replace(lengths, group_size=1), 50, seed=2)).places
    for places, name in ((shared, "shared prompts"), (alone, "no shared prompt")):
        for size in (16,) if context.tiny else (64, 128):
            torch.manual_seed(size)
            tokens = max(place.rest + place.rest_length for place in places)
            drawn = [torch.randn(tokens, heads, size).bfloat16() for heads in (8, 2, 2, 8)]
            expected = _attended(lambda q, k, v, at=places: plain_attention(at, q, k, v), [x.double() for x in drawn])
            for dtype in DTYPES:
                for kind, layout in layouts(context, dtype).items():
                    laid = layout(places, context.device)
                    given = [one.to(context.device, dtype) for one in drawn]
                    found = _attended(lambda q, k, v, at=laid: at.attend(q, k, v, None), given)
                    for what, one, wanted in zip(("output", "dQ", "dK", "dV"), found, expected, strict=True):
                        worst.add(f"{kind}, {name}, head size {size}, {what}", one, wanted, dtype)
    ran = " and ".join(layouts(context, torch.bfloat16))
    return Result(f"{ran} equal plain attention in float64: {worst.note()}", worst.figures())


def _attended(attend: Callable[[Tensor, Tensor, Tensor], Tensor], drawn: Sequence[Tensor]) -> list[Tensor]:
    """Return output and gradients of query, key and value; the last tensor of `drawn` weighs the outputs in a loss."""
    leaves = [one.detach().clone().requires_grad_() for one in drawn[:3]]
    output = attend(*leaves)
    return [output, *torch.autograd.grad((output * drawn[3]).sum(), leaves)]


def plain_attention(places: Sequence[Place], query_NHD: Tensor, key_NHD: Tensor, value_NHD: Tensor) -> Tensor:
    """Compute causal attention of each sequence alone, with whole matrices of scores. Return [N, heads, head size]."""
    repeats = query_NHD.shape[1] // key_NHD.shape[1]
    output_NHD = torch.zeros_like(query_NHD)
    for place in places:
        prompt = torch.arange(place.prompt, place.prompt + place.prompt_length)
        at = torch.cat([prompt, torch.arange(place.rest, place.rest + place.rest_length)])
        query_HLD = query_NHD[at].transpose(0, 1)
        key_HLD, value_HLD = (one[at].repeat_interleave(repeats, dim=1).transpose(0, 1) for one in (key_NHD, value_NHD))
        scores_HLL = query_HLD @ key_HLD.transpose(1, 2) / query_HLD.shape[-1] ** 0.5
        later_LL = torch.ones(len(at), len(at), dtype=torch.bool).triu(1)
        weights_HLL = scores_HLL.masked_fill(later_LL, float("-inf")).softmax(-1)
        output_NHD = output_NHD.index_copy(0, at, (weights_HLL @ value_HLD).transpose(0, 1))
    return output_NHD


def small_policy(context: Context) -> Path:
    """Return the folder of a small policy whose logits differ, and which bfloat16 holds exactly."""
    folder = context.folder / "check_policy"
    if not folder.is_dir():
        name = "tiny" if context.tiny else "check"
        gpu_policies.make_policy(name, folder, torch.device("cpu"), torch.bfloat16, scale=3.0)
    return folder


def small_sequences(context: Context, seed: int) -> list[TrainingSequence]:
    """Return sequences for the small policy."""
    lengths = gpu_policies.TINY if context.tiny else gpu_policies.Lengths(4, 3, 40, 60, 300, 4096)
    return gpu_policies.sequences(lengths, gpu_policies.SHAPES["tiny" if context.tiny else "check"][-1], seed)


def losses(context: Context) -> Result:
    """Log-probabilities, entropies, loss and gradients of a packed policy against each sequence alone."""
    return _losses(context, "eager")


def kernels(context: Context) -> Result:
    """The same with Liger's kernels, which change the classes of transformers for the rest of the process."""
    return dataclasses.replace(_losses(context, "liger"), spent=True)


def _losses(context: Context, fused: Kernels) -> Result:
    made = small_sequences(context, seed=3)
    batch, folder = pack(made), small_policy(context)
    # Wide edges: with narrow ones, rounding would decide which tokens are clipped.
    algorithm = AlgorithmConfig.model_validate({"entropy_coefficient": 0.01, "clip_low": 0.5, "clip_high": 0.5})
    exact = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="sdpa")
    scored = [_alone(exact, sequence) for sequence in made]
    expected = [torch.cat([one[index] for one in scored]) for index in (0, 1)]
    # The first optimizer step of a batch: the policy is the sampler, so every ratio is 1.
    batch = dataclasses.replace(batch, old_logprobs_T=expected[0].detach().float())
    loss = policy_terms(algorithm, batch, expected[0], expected[1], None).loss_sum
    loss.backward()
    wanted = {name: one.grad for name, one in exact.named_parameters()}
    worst = Differences()
    for dtype in DTYPES:
        for kind, layout in layouts(context, dtype).items():
            name = "bfloat16" if dtype == torch.bfloat16 else "float32"
            device: Device = "cuda" if context.on_gpu else "cpu"
            setup = gpu_policies.learner_setup(folder, device, name, {"kernels": fused})
            model = load_policy(setup, str(folder), None).to(context.device)
            policy, moved = PolicyLogprobs(model, None, layout), batch.to(context.device)
            found = policy(moved, TEMPERATURE, "gradient")
            terms = policy_terms(algorithm, moved, found[0], found[1], None)
            terms.loss_sum.backward()
            for what, one, right in zip(("log-probabilities", "entropies"), found, expected, strict=True):
                worst.add(f"{what} with {kind}", one, right, dtype)
            named = {name: one.grad for name, one in model.named_parameters()}
            missing = [name for name in wanted if named.get(name) is None]
            if missing:
                raise Wrong(f"no gradient for {', '.join(missing[:3])} with {kind}")
            every = [torch.cat([grads[name].double().cpu().flatten() for name in wanted]) for grads in (named, wanted)]
            worst.add(f"gradient with {kind}", every[0], every[1], dtype)
    ran = " and ".join(layouts(context, torch.bfloat16))
    return Result(
        f"{ran}, {fused} kernels: values and gradients equal float64 on the CPU: {worst.note()}", worst.figures()
    )


def _alone(model: nn.Module, sequence: TrainingSequence) -> tuple[Tensor, Tensor]:
    """Return log-probabilities and entropies of a completion, without packing and without our head."""
    ids_L = torch.tensor(sequence.token_ids)
    logits_LV = model(input_ids=ids_L[None], use_cache=False).logits[0] / TEMPERATURE
    predicted_TV = logits_LV[sequence.prompt_length - 1 : -1].log_softmax(-1)
    chosen_T = predicted_TV.gather(1, ids_L[sequence.prompt_length :, None])[:, 0]
    return chosen_T, -(predicted_TV.exp() * predicted_TV).sum(-1)


def presets(context: Context) -> Result:
    """Every preset of the objective: loss, gradient and metrics on the device against the CPU."""
    worst, tried = Differences(), {name: {"preset": name} for name in PRESETS} | BESIDES
    made = [dataclasses.replace(one, proximal_logprobs=one.old_logprobs) for one in small_sequences(context, seed=4)]
    batch = pack(made)
    torch.manual_seed(0)
    moved_T = batch.old_logprobs_T + 0.2 * torch.randn(len(batch.targets_T))
    entropy_T, reference_T = torch.rand(len(moved_T)), moved_T + 0.1 * torch.randn(len(moved_T))
    for name, settings in tried.items():
        algorithm = AlgorithmConfig.model_validate(settings)
        expected, right_T = _terms(algorithm, batch, moved_T, entropy_T, reference_T)
        given = [one.to(context.device) for one in (moved_T, entropy_T, reference_T)]
        found, gradient_T = _terms(algorithm, batch.to(context.device), *given)
        worst.add(f"gradient of {name}", gradient_T, right_T, torch.float32)
        if not float(right_T.norm()):
            raise Wrong(f"{name} has no gradient, so the comparison shows nothing")
        # A sum over tokens is rounded like its terms, also if the terms cancel.
        size = 0.01 * len(moved_T)
        worst.add(f"loss of {name}", found.loss_sum, expected.loss_sum, torch.float32, size)
        for index, metric in enumerate(SUMS):
            worst.add(f"{metric} of {name}", found.sums[index], expected.sums[index], torch.float32, size)
        # Rounding may move a token at the edge of a bin into the next bin.
        counts = [terms.log_ratios.cpu().cumsum(0) for terms in (found, expected)]
        if float((counts[0] - counts[1]).abs().max()) > 2:
            raise Wrong(f"the histogram of ratios of {name} differs by more than two tokens")
    return Result(f"{len(tried)} objectives equal those on the CPU: {worst.note()}", worst.figures())


def _terms(
    algorithm: AlgorithmConfig, batch: Microbatch, moved_T: Tensor, entropy_T: Tensor, reference_T: Tensor
) -> tuple[Terms, Tensor]:
    """Return the terms of a microbatch, and the gradient of the log-probabilities."""
    leaf_T = moved_T.detach().clone().requires_grad_()
    terms = policy_terms(algorithm, batch, leaf_T, entropy_T, reference_T if algorithm.kl_in_loss else None)
    (gradient_T,) = torch.autograd.grad(terms.loss_sum, leaf_T)
    return terms, gradient_T


def head(context: Context) -> Result:
    """The output head in chunks and in one piece, against log_softmax over whole logits in float64."""
    tokens, hidden, vocabulary = (24, 16, 60) if context.tiny else (600, 512, 32_768)
    worst, held = Differences(), (head_module.LOGIT_BYTES, head_module.FUSED_LOGIT_BYTES)
    ways = {"eager": None, **({"fused": compiled_head()} if context.on_gpu else {})}
    torch.manual_seed(0)
    drawn = (torch.randn(vocabulary, hidden) * 0.2).bfloat16()
    hidden_TE, targets_T = torch.randn(tokens, hidden).bfloat16(), torch.randint(vocabulary, (tokens,))
    weights = torch.randn(2, tokens).bfloat16()
    wanted: list[Tensor] = []
    for entropy in ("value", "gradient"):
        wanted = _scored(_whole_logits, drawn.double(), hidden_TE.double(), targets_T, weights.double(), entropy)
        for dtype, chunk, (way, fused) in itertools.product(DTYPES, (tokens // 3 - 1, tokens), ways.items()):
            head_module.LOGIT_BYTES = 4 * vocabulary * chunk
            head_module.FUSED_LOGIT_BYTES = dtype.itemsize * vocabulary * chunk
            given = [one.to(context.device, dtype) for one in (drawn, hidden_TE)]
            by_head = functools.partial(_by_head, fused=fused)
            found = _scored(by_head, *given, targets_T.to(context.device), weights.to(given[0]), entropy)
            head_module.LOGIT_BYTES, head_module.FUSED_LOGIT_BYTES = held
            for what, one, right in zip(
                ("values", "entropies", "gradient of states", "gradient of weights"), found, wanted, strict=True
            ):
                worst.add(f"{what} of the {way} head in chunks of {chunk}, entropy {entropy}", one, right, dtype)
    ran = " and ".join(ways)
    return Result(f"{ran} chunks equal whole logits in float64: {worst.note()}", worst.figures())


def _scored(
    score: Callable[[Tensor, Tensor, Tensor, Entropy], tuple[Tensor, ...]],
    weight_VE: Tensor,
    hidden_TE: Tensor,
    targets_T: Tensor,
    weights_2T: Tensor,
    entropy: Entropy,
) -> list[Tensor]:
    """Return log-probabilities, entropies and the gradients of a loss that weighs each token otherwise."""
    leaves = [one.detach().clone().requires_grad_() for one in (weight_VE, hidden_TE)]
    logprobs_T, entropy_T = score(leaves[0], leaves[1], targets_T, entropy)
    loss = (logprobs_T * weights_2T[0]).sum()
    if entropy == "gradient":
        loss = loss + (entropy_T * weights_2T[1]).sum()
    of_weight, of_hidden = torch.autograd.grad(loss, leaves)
    return [logprobs_T, entropy_T, of_hidden, of_weight]


def _by_head(
    weight_VE: Tensor, hidden_TE: Tensor, targets_T: Tensor, entropy: Entropy, fused: FusedHead | None
) -> tuple[Tensor, ...]:
    plain = nn.Linear(weight_VE.shape[1], weight_VE.shape[0], bias=False, device="meta")
    made = LogprobHead(plain, fused)
    del made.weight
    made.weight = weight_VE  # a leaf of the caller, so that its gradient can be asked for
    return made(hidden_TE, targets_T, TEMPERATURE, entropy)  # type: ignore[no-any-return]


def _whole_logits(weight_VE: Tensor, hidden_TE: Tensor, targets_T: Tensor, entropy: Entropy) -> tuple[Tensor, ...]:
    logprobs_TV = (hidden_TE @ weight_VE.t() / TEMPERATURE).log_softmax(-1)
    return logprobs_TV.gather(1, targets_T[:, None])[:, 0], -(logprobs_TV.exp() * logprobs_TV).sum(-1)


def checkpointing(context: Context) -> Result:
    """Each share of checkpointed layers: the same gradients, as many layers computed again, less memory."""
    batch, folder = pack(small_sequences(context, seed=5)).to(context.device), small_policy(context)
    dtype = torch.bfloat16 if context.on_gpu else torch.float32
    name = "bfloat16" if context.on_gpu else "float32"
    worst, expected, seen, figures = Differences(), torch.empty(0), [], {}
    for share in SHARES:
        setup = gpu_policies.learner_setup(folder, "cpu", name, {"gradient_checkpointing": share, "kernels": "eager"})
        model = load_policy(setup, str(folder), None).to(context.device).train()
        calls = [0]
        for layer in model.model.layers:
            layer.mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.__setitem__(0, calls[0] + 1))
        layout = list(layouts(context, dtype).values())[-1]
        if context.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() if context.on_gpu else 0
        PolicyLogprobs(model, None, layout)(batch, TEMPERATURE)[0].sum().backward()
        peak = torch.cuda.max_memory_allocated() - before if context.on_gpu else 0
        gradient = torch.cat([one.grad.flatten().cpu() for one in model.parameters() if one.grad is not None])
        layers = len(model.model.layers)
        again = calls[0] - layers
        if again != round(share * layers):
            raise Wrong(f"gradient_checkpointing={share:g} computed {again} of {layers} layers again")
        if not seen:
            expected = gradient
        worst.add(f"gradient with gradient_checkpointing={share:g}", gradient, expected, dtype)
        seen.append(peak)
        figures[f"peak_mib_at_{share:g}"] = peak / 2**20
    if context.on_gpu and seen != sorted(seen, reverse=True):
        raise Wrong(f"peaks of {', '.join(f'{peak / 2**20:.0f}' for peak in seen)} MiB do not fall with the share")
    shares = ", ".join(f"{share:g}" for share in SHARES)
    return Result(f"shares {shares} give the same gradient: {worst.note()}", {**worst.figures(), **figures})
