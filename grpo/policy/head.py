"""The learner's output head: log-probabilities and entropies of tokens, with few logits in memory at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from grpo.policy.flops import FUSED_LOGIT_BYTES, LOGIT_BYTES
from grpo.policy.fused_head import FusedHead

# What to compute of the entropy: nothing, its value for the metrics, or its value with a gradient for the loss.
Entropy = Literal["none", "value", "gradient"]


class LogprobHead(nn.Linear):
    """A model's output head that computes the log-probabilities of targets, with few logits at a time.

    A single call of the module computes all chunks. With ZeRO-3, a call is a collective, so all ranks must make the
    same number of calls. The number of chunks may differ between ranks, because it depends on the number of tokens.
    """

    def __init__(self, head: nn.Linear, fused: FusedHead | None = None) -> None:
        """Use the parameters of `head`; compute what stands beside the matrix products with `fused`, on a GPU."""
        nn.Module.__init__(self)
        self.in_features, self.out_features = head.in_features, head.out_features
        self.weight, self.bias = head.weight, head.bias
        self._fused = fused

    def forward(  # type: ignore[override]
        self, hidden_TE: Tensor, targets_T: Tensor, temperature: float, entropy: Entropy = "none"
    ) -> tuple[Tensor, ...]:
        """Compute log-probabilities of targets and, if asked for, entropies. Both are float32 [T].

        Args:
            hidden_TE: hidden states, possibly empty. A rank without hidden states still takes part in all collectives.
            targets_T: token ids.
            temperature: divisor of the logits.
            entropy: `none` for one result, `value` or `gradient` for two.
        """
        size = LOGIT_BYTES // 4 if self._fused is None else FUSED_LOGIT_BYTES // hidden_TE.element_size()
        chunk = max(1, size // self.out_features)
        # With a single chunk, computing the logits again would cost time and save no memory.
        keep = torch.is_grad_enabled() and len(hidden_TE) <= chunk
        settings = _Settings(temperature, entropy, chunk, keep, self._fused)
        scored: tuple[Tensor, ...] = _ChunkedLogprobs.apply(  # type: ignore[no-untyped-call]
            hidden_TE, self.weight, self.bias, targets_T, settings
        )
        return scored


@dataclass(frozen=True, slots=True)
class _Settings:
    """Settings of a call.

    Attributes:
        temperature: divisor of the logits.
        entropy: what to compute of the entropy.
        chunk: number of tokens in a chunk.
        keep: whether to keep what the only chunk needs for its backward pass.
        fused: functions of a chunk; None for the operators of PyTorch.
    """

    temperature: float
    entropy: Entropy
    chunk: int
    keep: bool
    fused: FusedHead | None


class _ChunkedLogprobs(torch.autograd.Function):
    """log softmax(h W' + b / temperature) at the targets, chunk by chunk, and the entropies.

    The forward pass keeps only each token's log-sum-exp. The backward pass computes each chunk's logits once more. It
    sums the gradient of the weights over the chunks in float32, so a smaller chunk does not lose digits in bfloat16.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_TE: Tensor,
        weight_VE: Tensor,
        bias_V: Tensor | None,
        targets_T: Tensor,
        settings: _Settings,
    ) -> tuple[Tensor, ...]:
        ctx.settings, entropy = settings, settings.entropy
        logprobs_T = hidden_TE.new_empty(len(hidden_TE), dtype=torch.float32)
        log_total_T, entropy_T = torch.empty_like(logprobs_T), torch.empty_like(logprobs_T)
        # With a single chunk: logits (fused), probabilities, or their logarithms if the entropy has a gradient.
        ctx.kept_TV = None
        of_chunk = _fused_statistics if settings.fused else _statistics
        for part in _chunks(len(hidden_TE), settings.chunk):
            logits = functools.partial(_logits, hidden_TE[part], weight_VE, bias_V)
            logprobs_T[part], log_total_T[part], entropy_C, kept_CV = of_chunk(logits, targets_T[part], settings)
            if entropy_C is not None:
                entropy_T[part] = entropy_C
            if settings.keep:
                ctx.kept_TV = kept_CV
            # Otherwise the next chunk would be computed while this chunk's logits are still there.
            del kept_CV
        ctx.save_for_backward(hidden_TE, weight_VE, bias_V, targets_T, log_total_T, entropy_T)
        if entropy == "none":
            return (logprobs_T,)
        if entropy == "value":
            ctx.mark_non_differentiable(entropy_T)
        return logprobs_T, entropy_T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_T: Tensor, entropy_gradient_T: Tensor | None = None) -> tuple[Tensor | None, ...]:
        hidden_TE, weight_VE, bias_V, targets_T, log_total_T, entropy_T = ctx.saved_tensors
        settings: _Settings = ctx.settings
        of_hidden, of_weight, of_bias = ctx.needs_input_grad[:3]
        hidden_gradient_TE = torch.empty_like(hidden_TE) if of_hidden else None
        of_weights = _WeightGradient(weight_VE, len(hidden_TE), settings.fused is not None) if of_weight else None
        bias_gradient_V = torch.zeros_like(bias_V, dtype=torch.float32) if of_bias else None
        # The gradient is computed in the memory of what was kept. A second backward pass computes the logits again.
        kept_CV, ctx.kept_TV = ctx.kept_TV, None
        if settings.entropy != "gradient":
            entropy_gradient_T = None
        of_chunk = _fused_gradient if settings.fused else _gradient
        for part in _chunks(len(hidden_TE), settings.chunk):
            logits = functools.partial(_logits, hidden_TE[part], weight_VE, bias_V)
            tokens = _Tokens(
                targets_T[part],
                log_total_T[part],
                gradient_T[part],
                entropy_T[part],
                None if entropy_gradient_T is None else entropy_gradient_T[part],
            )
            gradient_CV = of_chunk(logits, kept_CV, tokens, settings).to(hidden_TE.dtype)
            # With a single chunk these are the same memory.
            kept_CV = None
            if hidden_gradient_TE is not None:
                torch.mm(gradient_CV, weight_VE, out=hidden_gradient_TE[part])
            if of_weights is not None:
                of_weights.add(gradient_CV, hidden_TE[part], first=part.start == 0)
            if bias_gradient_V is not None:
                bias_gradient_V += gradient_CV.sum(dim=0, dtype=torch.float32)
            del gradient_CV
        return (
            hidden_gradient_TE,
            None if of_weights is None else of_weights.rounded(),
            None if bias_gradient_V is None else bias_gradient_V.to(weight_VE.dtype),
            None,
            None,
        )


class _WeightGradient:
    """The gradient of the weights, summed over the chunks in a single buffer in float32."""

    def __init__(self, weight_VE: Tensor, tokens: int, fused: bool) -> None:
        """Make the buffer. The first chunk fills it, so it needs no zeros, except if there are no tokens."""
        new = torch.empty_like if tokens else torch.zeros_like
        self._sum_VE, self._dtype, self._fused = new(weight_VE, dtype=torch.float32), weight_VE.dtype, fused
        # On a CPU, products of bfloat16 have no sum in float32: a chunk's product needs memory of its own.
        apart = not fused and weight_VE.dtype != torch.float32
        self._product_VE = new(weight_VE) if apart else None

    def add(self, gradient_CV: Tensor, hidden_CE: Tensor, *, first: bool) -> None:
        """Add the product of a chunk."""
        if self._product_VE is not None:
            torch.mm(gradient_CV.t(), hidden_CE, out=self._product_VE)
            self._sum_VE = (self._sum_VE.copy_ if first else self._sum_VE.add_)(self._product_VE)
        elif gradient_CV.dtype == torch.float32:
            self._sum_VE.addmm_(gradient_CV.t(), hidden_CE, beta=0 if first else 1)
        else:
            # Factors in bfloat16 and a sum in float32, in one product. Only CUDA has it.
            add_product(self._sum_VE, gradient_CV.t(), hidden_CE, 0 if first else 1)

    def rounded(self) -> Tensor:
        """Return the sum in the weights' number format, in the memory of the products if there is some."""
        if self._product_VE is not None:
            return self._product_VE.copy_(self._sum_VE)
        return self._sum_VE.to(self._dtype)


def add_product(sum_VE: Tensor, gradient_VC: Tensor, hidden_CE: Tensor, beta: int) -> None:
    """Compute sum = beta x sum + gradient @ hidden in place, of factors in bfloat16 and a sum in float32, on a GPU."""
    torch.addmm(sum_VE, gradient_VC, hidden_CE, torch.float32, beta=beta, out=sum_VE)


@dataclass(frozen=True, slots=True)
class _Tokens:
    """What the backward pass knows of a chunk's tokens, each [C]; `entropy_gradient_C` only if there is a gradient."""

    targets_C: Tensor
    log_total_C: Tensor
    gradient_C: Tensor
    entropy_C: Tensor
    entropy_gradient_C: Tensor | None


_Logits = Callable[[], Tensor]
_Statistics = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


def _statistics(logits: _Logits, targets_C: Tensor, settings: _Settings) -> _Statistics:
    """Return log-probabilities, log-sum-exps and entropies of a chunk, and what its backward pass would keep."""
    logits_CV = _scaled(logits, settings.temperature)
    entropy, keep = settings.entropy, settings.keep
    # As in log_softmax, the largest logit is subtracted first. So a large logit does not cost digits.
    largest_C = logits_CV.amax(dim=-1, keepdim=True)
    logits_CV -= largest_C
    chosen_C = logits_CV.gather(1, targets_C[:, None])[:, 0]
    weights_CV = logits_CV.exp() if keep or entropy != "none" else logits_CV.exp_()
    sum_C = weights_CV.sum(dim=-1)
    log_sum_C = sum_C.log()
    entropy_C = None if entropy == "none" else log_sum_C - torch.linalg.vecdot(weights_CV, logits_CV) / sum_C
    kept_CV = None
    if keep and entropy == "gradient":
        kept_CV = logits_CV.sub_(log_sum_C[:, None])
    elif keep:
        kept_CV = weights_CV.div_(sum_C[:, None])
    return chosen_C - log_sum_C, largest_C[:, 0] + log_sum_C, entropy_C, kept_CV


def _fused_statistics(logits: _Logits, targets_C: Tensor, settings: _Settings) -> _Statistics:
    assert settings.fused is not None
    logits_CV = logits()
    temperature = _number(settings.temperature, logits_CV)
    statistics = settings.fused.statistics(logits_CV, targets_C, temperature, settings.entropy != "none")
    return *statistics, logits_CV


def _gradient(logits: _Logits, kept_CV: Tensor | None, tokens: _Tokens, settings: _Settings) -> Tensor:
    """Return the gradient of a chunk's logits, float32 [C, V], from the logits or from what was kept."""
    log_CV = kept_CV
    if log_CV is None:
        log_CV = _scaled(logits, settings.temperature).sub_(tokens.log_total_C[:, None])
    # d logprob / d logit_v = [v is the target] - p_v; d entropy / d logit_v = -p_v (log p_v + entropy).
    scaled_C1 = tokens.gradient_C[:, None] / settings.temperature
    if tokens.entropy_gradient_C is not None:
        scaled_entropy_C1 = tokens.entropy_gradient_C[:, None] / settings.temperature
        factor_CV = (log_CV + tokens.entropy_C[:, None]).mul_(-scaled_entropy_C1).sub_(scaled_C1)
        gradient_CV = log_CV.exp_().mul_(factor_CV)
    else:
        gradient_CV = (log_CV.exp_() if kept_CV is None else kept_CV).mul_(-scaled_C1)
    return gradient_CV.scatter_add_(1, tokens.targets_C[:, None], scaled_C1)


def _fused_gradient(logits: _Logits, kept_CV: Tensor | None, tokens: _Tokens, settings: _Settings) -> Tensor:
    gradient_CV = logits() if kept_CV is None else kept_CV
    assert settings.fused is not None
    entropy_gradient_C = tokens.entropy_gradient_C
    settings.fused.replace_by_gradient(
        gradient_CV,
        tokens.targets_C,
        _number(settings.temperature, gradient_CV),
        tokens.log_total_C,
        tokens.gradient_C,
        None if entropy_gradient_C is None else tokens.entropy_C,
        entropy_gradient_C,
    )
    return gradient_CV


def _number(value: float, beside: Tensor) -> Tensor:
    """Return a number as a tensor on a device. The host does not wait for the device, as it would for a copy."""
    return torch.full((), value, dtype=torch.float32, device=beside.device)


def _chunks(tokens: int, chunk: int) -> list[slice]:
    return [slice(start, min(start + chunk, tokens)) for start in range(0, tokens, chunk)]


def _logits(hidden_CE: Tensor, weight_VE: Tensor, bias_V: Tensor | None) -> Tensor:
    """Return a chunk's logits in the weights' number format."""
    logits_CV = hidden_CE @ weight_VE.t()
    return logits_CV if bias_V is None else logits_CV.add_(bias_V)


def _scaled(logits: _Logits, temperature: float) -> Tensor:
    """Return logits divided by the temperature, in float32. The logits in another number format are gone then."""
    logits_CV = logits().float()
    return logits_CV if temperature == 1.0 else logits_CV.div_(temperature)
