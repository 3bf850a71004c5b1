"""The trial of a kernel on this GPU, a program of its own: `python -m grpo.learner.kernel_trial SIZES KERNEL`.

Its last line is `right`, or why the kernel must not be used. If the kernel raises or crashes, the program fails.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from grpo.algorithm.packing import Place
from grpo.learner.kernels import HEAD, RIGHT, Sizes
from grpo.policy.attention import PackedLayout, VarlenLayout
from grpo.policy.flash import FLASH_KERNELS
from grpo.policy.fused_head import FusedHead, compiled_head
from grpo.policy.head import LogprobHead

# Largest relative error of a result in bfloat16, whose numbers have eight digits: rounding makes errors of about 0.004.
TOLERANCE = 0.02
# Sequences of several blocks and of a single token, and three that share a prompt.
PLACES = (
    Place(0, 1, 1, 0),
    Place(1, 100, 101, 600),
    Place(701, 65, 766, 30),
    Place(701, 65, 796, 128),
    Place(701, 65, 924, 1),
)


def try_attention(layout: type[VarlenLayout], sizes: Sizes, device: torch.device) -> str:
    """Compare a kernel of attention, in bfloat16, with torch's attention in float32: output and gradients."""
    torch.manual_seed(0)
    tokens = max(place.rest + place.rest_length for place in PLACES)
    heads = (sizes.heads, sizes.key_value_heads, sizes.key_value_heads, sizes.heads)
    drawn = [torch.randn(tokens, count, sizes.head_size, device=device).bfloat16() for count in heads]

    def results(attend: VarlenLayout | PackedLayout, dtype: torch.dtype) -> list[Tensor]:
        leaves = [tensor.to(dtype).requires_grad_() for tensor in drawn[:3]]
        query, key, value = leaves
        output = attend.attend(query, key, value, None)
        return [output, *torch.autograd.grad((output * drawn[3].to(dtype)).sum(), leaves)]

    wanted = results(PackedLayout(PLACES, device), torch.float32)
    return difference(("output", "dQ", "dK", "dV"), results(layout(PLACES, device), torch.bfloat16), wanted)


def try_head(fused: FusedHead, sizes: Sizes, device: torch.device, tokens: int = 300) -> str:
    """Compare the fused output head, in bfloat16, with the eager head in float32: values, entropies, gradients."""
    torch.manual_seed(0)
    hidden = min(sizes.hidden, 512)
    weight_VE = (torch.randn(sizes.vocabulary, hidden, device=device) / hidden**0.5).bfloat16()
    hidden_TE = (3 * torch.randn(tokens, hidden, device=device)).bfloat16()
    targets_T = torch.randint(sizes.vocabulary, (tokens,), device=device)
    factors_2T = torch.randn(2, tokens, device=device)

    def results(functions: FusedHead | None, dtype: torch.dtype) -> list[Tensor]:
        head = nn.Linear(hidden, sizes.vocabulary, bias=False, device=device, dtype=dtype)
        head.weight = nn.Parameter(weight_VE.to(dtype))
        states_TE = hidden_TE.to(dtype).requires_grad_()
        scored = LogprobHead(head, functions)
        outputs: list[Tensor] = []
        for entropy in ("value", "gradient"):
            values = scored(states_TE, targets_T, 0.8, entropy)
            loss = (values[0] * factors_2T[0]).sum()
            if entropy == "gradient":
                loss = loss + (values[1] * factors_2T[1]).sum()
            outputs += [*values, *torch.autograd.grad(loss, [states_TE, head.weight])]
        return outputs

    names = ("log-probabilities", "entropies", "gradient of states", "gradient of weights")
    return difference((*names, *names), results(fused, torch.bfloat16), results(None, torch.float32))


def difference(names: Sequence[str], results: Sequence[Tensor], expected: Sequence[Tensor]) -> str:
    """Return the first result that is not finite or differs too much, with its error; empty if there is none."""
    for name, result, right in zip(names, results, expected, strict=True):
        error = float((result.detach().double() - right.detach().double()).norm() / right.detach().double().norm())
        # An error that is not a number fails too.
        if not error <= TOLERANCE:
            return f"on this GPU its {name} differ by {error:.2g} of their norm from PyTorch's, more than {TOLERANCE}"
    return ""


def main(sizes: str, name: str) -> None:
    """Try a kernel with a policy's sizes (JSON), and print the verdict."""
    policy, device = Sizes(**json.loads(sizes)), torch.device("cuda")
    if name == HEAD:
        verdict = try_head(compiled_head(), policy, device)
    else:
        verdict = try_attention(FLASH_KERNELS[name].layout, policy, device)
    print(verdict or RIGHT)


if __name__ == "__main__":
    main(*sys.argv[1:])
