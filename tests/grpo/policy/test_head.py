"""The output head by chunks, against log_softmax over whole logits in float64."""

from __future__ import annotations

import pytest
import torch
from tiny_policy import add_product_on_a_cpu
from torch import Tensor, nn

from grpo.policy import head as head_module
from grpo.policy.fused_head import FusedHead, compiled_head, replace_by_gradient, statistics
from grpo.policy.head import Entropy, LogprobHead

# The fused functions, without a compiler.
FUSED = FusedHead(statistics, replace_by_gradient)
TOKENS, HIDDEN, VOCABULARY = 37, 12, 29
TEMPERATURE = 0.7


def head_of(
    bias: bool, dtype: torch.dtype = torch.float32, fused: FusedHead | None = None
) -> tuple[LogprobHead, Tensor, Tensor]:
    """A head, hidden states and targets, the same in each dtype but for rounding."""
    torch.manual_seed(3)
    head = nn.Linear(HIDDEN, VOCABULARY, bias=bias)
    hidden_TE, targets_T = torch.randn(TOKENS, HIDDEN), torch.randint(VOCABULARY, (TOKENS,))
    return LogprobHead(head.to(dtype), fused), hidden_TE.to(dtype).requires_grad_(), targets_T


def by_hand(head: nn.Linear, hidden_TE: Tensor, targets_T: Tensor) -> tuple[Tensor, Tensor]:
    logprobs_TV = (nn.functional.linear(hidden_TE, head.weight, head.bias) / TEMPERATURE).log_softmax(-1)
    return logprobs_TV.gather(1, targets_T[:, None])[:, 0], -(logprobs_TV.exp() * logprobs_TV).sum(-1)


def gradients(values: tuple[Tensor, ...], head: nn.Linear, hidden_TE: Tensor, *, entropy: bool) -> list[Tensor]:
    """Gradients of hidden states, weights and bias, of a loss that weighs each token otherwise."""
    torch.manual_seed(5)
    loss = (values[0] * torch.randn(TOKENS)).sum()
    if entropy:
        loss = loss + (values[1] * torch.randn(TOKENS)).sum()
    inputs = [hidden_TE, head.weight] + ([head.bias] if head.bias is not None else [])
    return list(torch.autograd.grad(loss, inputs))


def few_logits(monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    for name in ("LOGIT_BYTES", "FUSED_LOGIT_BYTES"):
        monkeypatch.setattr(head_module, name, tokens * 4 * VOCABULARY)


@pytest.mark.parametrize("entropy", ["none", "value", "gradient"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunk", [5, 37, 1000])
@pytest.mark.parametrize("fused", [None, FUSED], ids=["eager", "fused"])
def test_values_and_gradients_are_those_of_whole_logits(
    monkeypatch: pytest.MonkeyPatch, chunk: int, bias: bool, entropy: Entropy, fused: FusedHead | None
) -> None:
    few_logits(monkeypatch, chunk)
    head, hidden_TE, targets_T = head_of(bias, fused=fused)
    values = head(hidden_TE, targets_T, TEMPERATURE, entropy)
    fine, fine_hidden_TE, _ = head_of(bias, torch.float64)
    expected = by_hand(fine, fine_hidden_TE, targets_T)
    assert len(values) == (1 if entropy == "none" else 2)
    for value, wanted in zip(values, expected, strict=False):
        torch.testing.assert_close(value, wanted.float(), rtol=1e-5, atol=1e-6)
    assert entropy == "none" or values[1].requires_grad == (entropy == "gradient")
    in_loss = entropy == "gradient"
    for gradient, wanted in zip(
        gradients(values, head, hidden_TE, entropy=in_loss),
        gradients(expected, fine, fine_hidden_TE, entropy=in_loss),
        strict=True,
    ):
        torch.testing.assert_close(gradient, wanted.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk", [5, 1000])
@pytest.mark.parametrize("fused", [None, FUSED], ids=["eager", "fused"])
def test_a_second_backward_pass_gives_the_same(
    monkeypatch: pytest.MonkeyPatch, chunk: int, fused: FusedHead | None
) -> None:
    few_logits(monkeypatch, chunk)
    head, hidden_TE, targets_T = head_of(bias=True, fused=fused)
    loss = sum(value.sum() for value in head(hidden_TE, targets_T, TEMPERATURE, "gradient"))
    inputs = [hidden_TE, head.weight]
    first = torch.autograd.grad(loss, inputs, retain_graph=True)
    # What a single chunk keeps is used up by the first pass, so the second computes the logits once more.
    torch.testing.assert_close(torch.autograd.grad(loss, inputs), first)


@pytest.mark.parametrize("fused", [None, FUSED], ids=["eager", "fused"])
def test_large_logits_and_a_certain_token_keep_their_digits(fused: FusedHead | None) -> None:
    head, hidden_TE, targets_T = head_of(bias=False, fused=fused)
    logprobs_T, entropy_T = head(1000 * hidden_TE, targets_T, TEMPERATURE, "gradient")
    fine, fine_hidden_TE, _ = head_of(bias=False, dtype=torch.float64)
    expected_T, expected_entropy_T = by_hand(fine, 1000 * fine_hidden_TE, targets_T)
    torch.testing.assert_close(logprobs_T, expected_T.float(), rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(entropy_T, expected_entropy_T.float(), rtol=1e-3, atol=1e-6)
    (gradient_TE,) = torch.autograd.grad(entropy_T.sum() + logprobs_T.sum(), hidden_TE)
    assert torch.isfinite(gradient_TE).all()


@pytest.mark.parametrize("fused", [None, FUSED], ids=["eager", "fused"])
def test_small_chunks_lose_no_digits_of_the_weights_gradient_in_bfloat16(
    monkeypatch: pytest.MonkeyPatch, fused: FusedHead | None
) -> None:
    """A sum in bfloat16 over the 37 chunks would lose more than rounding the sum once does."""
    monkeypatch.setattr(head_module, "add_product", add_product_on_a_cpu)
    head, hidden_TE, targets_T = head_of(bias=False, dtype=torch.bfloat16, fused=fused)
    exact, exact_hidden_TE, _ = head_of(bias=False, dtype=torch.bfloat16)
    exact, exact_hidden_TE = exact.double(), exact_hidden_TE.detach().double().requires_grad_()
    wanted = gradients(by_hand(exact, exact_hidden_TE, targets_T), exact, exact_hidden_TE, entropy=False)[1]
    errors = []
    for chunk in (1000, 1):
        few_logits(monkeypatch, chunk)
        values = head(hidden_TE, targets_T, TEMPERATURE)
        gradient = gradients(values, head, hidden_TE, entropy=False)[1].double()
        errors.append(float((gradient - wanted).norm() / wanted.norm()))
    assert errors[1] < 1.3 * errors[0] < 0.02


def test_frozen_weights_get_no_gradient_and_no_tokens_are_no_error() -> None:
    head, hidden_TE, targets_T = head_of(bias=True)
    head.requires_grad_(False)
    (logprobs_T,) = head(hidden_TE, targets_T, TEMPERATURE)
    logprobs_T.sum().backward()
    assert hidden_TE.grad is not None and head.weight.grad is None
    head.requires_grad_(True)
    empty_TE = hidden_TE.detach()[:0].requires_grad_()
    logprobs_T, entropy_T = head(empty_TE, targets_T[:0], TEMPERATURE, "gradient")
    assert logprobs_T.shape == entropy_T.shape == (0,)
    (logprobs_T.sum() + entropy_T.sum()).backward()
    assert head.weight.grad is not None and not head.weight.grad.any()


@pytest.mark.slow
def test_the_fused_functions_compile_once_for_chunks_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are traced whole, without a part that would run eagerly, and not again for another chunk or temperature."""
    monkeypatch.setattr(torch._dynamo.config, "error_on_recompile", True)
    head, hidden_TE, targets_T = head_of(bias=False, fused=compiled_head("eager"))
    plain, plain_hidden_TE, _ = head_of(bias=False)
    for chunk, temperature in ((5, 0.7), (8, 1.0), (1000, 0.7)):
        few_logits(monkeypatch, chunk)
        values, expected = (
            one(states, targets_T, temperature, "value")
            for one, states in ((head, hidden_TE), (plain, plain_hidden_TE))
        )
        torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-6)
        found = gradients(values, head, hidden_TE, entropy=False)
        wanted = gradients(expected, plain, plain_hidden_TE, entropy=False)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("entropy", ["value", "gradient"])
def test_the_fused_head_of_a_gpu_equals_the_eager_head(monkeypatch: pytest.MonkeyPatch, entropy: Entropy) -> None:
    few_logits(monkeypatch, 5)
    found, wanted = [], []
    for fused, into in ((compiled_head(), found), (None, wanted)):
        head, hidden_TE, targets_T = head_of(bias=False, dtype=torch.bfloat16, fused=fused)
        head, there_TE = head.cuda(), hidden_TE.detach().cuda().requires_grad_()
        values = head(there_TE, targets_T.cuda(), TEMPERATURE, entropy)
        torch.manual_seed(5)
        loss = (values[0] * torch.randn(TOKENS, device="cuda")).sum() + values[-1].sum()
        into += [*values, *torch.autograd.grad(loss, [there_TE, head.weight])]
    torch.testing.assert_close(found, wanted, rtol=2e-2, atol=2e-2)
