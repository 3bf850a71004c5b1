"""The learner's output head: log-probabilities and entropies of tokens, with few logits in memory at a time."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from grpo.policy.flops import LOGIT_BYTES

# What to compute of the entropy: nothing, its value for the metrics, or its value with a gradient for the loss.
Entropy = Literal["none", "value", "gradient"]


class LogprobHead(nn.Linear):
    """A model's output head that computes the log-probabilities of targets, with few logits at a time.

    A single call of the module computes all chunks. With ZeRO-3, a call is a collective, so all ranks must make the
    same number of calls. The number of chunks may differ between ranks, because it depends on the number of tokens.
    """

    def __init__(self, head: nn.Linear) -> None:
        """Use the parameters of `head`."""
        nn.Module.__init__(self)
        self.in_features, self.out_features = head.in_features, head.out_features
        self.weight, self.bias = head.weight, head.bias

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
        chunk = max(1, LOGIT_BYTES // (4 * self.out_features))
        # With a single chunk, computing the probabilities again would cost time and save no memory.
        keep = torch.is_grad_enabled() and len(hidden_TE) <= chunk
        scored: tuple[Tensor, ...] = _ChunkedLogprobs.apply(  # type: ignore[no-untyped-call]
            hidden_TE, self.weight, self.bias, targets_T, temperature, entropy, chunk, keep
        )
        return scored


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
        temperature: float,
        entropy: Entropy,
        chunk: int,
        keep: bool,
    ) -> tuple[Tensor, ...]:
        ctx.temperature, ctx.entropy, ctx.chunk = temperature, entropy, chunk
        logprobs_T = hidden_TE.new_empty(len(hidden_TE), dtype=torch.float32)
        log_total_T, entropy_T = torch.empty_like(logprobs_T), torch.empty_like(logprobs_T)
        # With a single chunk: probabilities, or their logarithms if the entropy has a gradient.
        ctx.kept_TV = None
        for part in _chunks(len(hidden_TE), chunk):
            logits_CV = _logits(hidden_TE[part], weight_VE, bias_V, temperature)
            # As in log_softmax, the largest logit is subtracted first. So a large logit does not cost digits.
            largest_C = logits_CV.amax(dim=-1, keepdim=True)
            logits_CV -= largest_C
            chosen_C = logits_CV.gather(1, targets_T[part, None])[:, 0]
            weights_CV = logits_CV.exp() if keep or entropy != "none" else logits_CV.exp_()
            sum_C = weights_CV.sum(dim=-1)
            log_sum_C = sum_C.log()
            logprobs_T[part] = chosen_C - log_sum_C
            log_total_T[part] = largest_C[:, 0] + log_sum_C
            if entropy != "none":
                entropy_T[part] = log_sum_C - torch.linalg.vecdot(weights_CV, logits_CV) / sum_C
            if keep and entropy == "gradient":
                ctx.kept_TV = logits_CV.sub_(log_sum_C[:, None])
            elif keep:
                ctx.kept_TV = weights_CV.div_(sum_C[:, None])
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
        of_hidden, of_weight, of_bias = ctx.needs_input_grad[:3]
        hidden_gradient_TE = torch.empty_like(hidden_TE) if of_hidden else None
        # The first chunk fills the gradients of weights and bias, so they need no zeros before.
        new = torch.empty_like if len(hidden_TE) else torch.zeros_like
        weight_gradient_VE = new(weight_VE, dtype=torch.float32) if of_weight else None
        bias_gradient_V = new(bias_V, dtype=torch.float32) if of_bias else None
        # The gradient is computed in the memory of what was kept. A second backward pass computes the logits again.
        kept_CV, ctx.kept_TV = ctx.kept_TV, None
        scaled_T = gradient_T / ctx.temperature
        scaled_entropy_T = None if entropy_gradient_T is None else entropy_gradient_T / ctx.temperature
        for part in _chunks(len(hidden_TE), ctx.chunk):
            log_CV = kept_CV
            if log_CV is None:
                log_CV = _logits(hidden_TE[part], weight_VE, bias_V, ctx.temperature).sub_(log_total_T[part, None])
            # d logprob / d logit_v = [v is the target] - p_v; d entropy / d logit_v = -p_v (log p_v + entropy).
            scaled_C1 = scaled_T[part, None]
            if ctx.entropy == "gradient":
                assert scaled_entropy_T is not None
                factor_CV = (log_CV + entropy_T[part, None]).mul_(-scaled_entropy_T[part, None]).sub_(scaled_C1)
                gradient_CV = log_CV.exp_().mul_(factor_CV)
            else:
                gradient_CV = (log_CV.exp_() if kept_CV is None else kept_CV).mul_(-scaled_C1)
            gradient_CV = gradient_CV.scatter_add_(1, targets_T[part, None], scaled_C1).to(hidden_TE.dtype)
            first = part.start == 0
            if hidden_gradient_TE is not None:
                torch.mm(gradient_CV, weight_VE, out=hidden_gradient_TE[part])
            if weight_gradient_VE is not None and gradient_CV.dtype == torch.float32:
                weight_gradient_VE.addmm_(gradient_CV.t(), hidden_TE[part], beta=0 if first else 1)
            elif weight_gradient_VE is not None:
                product_VE = gradient_CV.t() @ hidden_TE[part]
                weight_gradient_VE = (
                    weight_gradient_VE.copy_(product_VE) if first else weight_gradient_VE.add_(product_VE)
                )
            if bias_gradient_V is not None:
                sum_V = gradient_CV.sum(dim=0, dtype=torch.float32)
                bias_gradient_V = bias_gradient_V.copy_(sum_V) if first else bias_gradient_V.add_(sum_V)
        return (
            hidden_gradient_TE,
            None if weight_gradient_VE is None else weight_gradient_VE.to(weight_VE.dtype),
            None if bias_gradient_V is None else bias_gradient_V.to(weight_VE.dtype),
            *(None,) * 5,
        )


def _chunks(tokens: int, chunk: int) -> list[slice]:
    return [slice(start, min(start + chunk, tokens)) for start in range(0, tokens, chunk)]


def _logits(hidden_CE: Tensor, weight_VE: Tensor, bias_V: Tensor | None, temperature: float) -> Tensor:
    """Return a chunk's logits, divided by the temperature, in float32. The caller may change them in place."""
    logits_CV = hidden_CE @ weight_VE.t()
    if bias_V is not None:
        logits_CV += bias_V
    logits_CV = logits_CV.float()
    return logits_CV if temperature == 1.0 else logits_CV.div_(temperature)
