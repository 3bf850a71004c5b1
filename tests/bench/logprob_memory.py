"""Peak memory of log-probabilities at a vocabulary of 150,000: whole logits against `LogprobHead`'s chunks.

    .venv/bin/python tests/bench/logprob_memory.py [--tokens 4096] [--vocabulary 151936] [--hidden 1024] [--chunks-only]
    LOGPROB_BENCH_PROJECT=OTHER_CHECKOUT .venv/bin/python tests/bench/logprob_memory.py --chunks-only --dtype bfloat16

Only the output head and what follows it, forward and backward, each way in a process of its own, as the peak of a
process never falls. Log-probabilities and the gradient of the hidden states are compared first. The memory that the
inputs take is subtracted. Runs on a CUDA GPU where there is one.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor, nn

PROJECT = Path(os.environ.get("LOGPROB_BENCH_PROJECT") or Path(__file__).resolve().parents[2])
sys.path.insert(0, str(PROJECT))

from grpo.policy.head import LOGIT_BYTES, LogprobHead  # noqa: E402

GIB = 1 << 30
WAYS = ("whole logits in float32", "chunks")


def whole(head: nn.Module, hidden_TE: Tensor, targets_T: Tensor) -> Tensor:
    """What most trainers do: all logits, in float32, through log_softmax."""
    logits_TV = head(hidden_TE).float()
    return logits_TV.log_softmax(-1).gather(1, targets_T[:, None])[:, 0]


def peak_bytes() -> int:
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(way: str, tokens: int, vocabulary: int, hidden: int, name: str, channel: Connection) -> None:
    """Send (peak bytes above the inputs, processor seconds forward and backward, log-probabilities, gradient)."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, name)
    head = nn.Linear(hidden, vocabulary, bias=False, device=device, dtype=dtype)
    hidden_TE = torch.randn(tokens, hidden, device=device, dtype=dtype, requires_grad=True)
    targets_T = torch.randint(vocabulary, (tokens,), device=device)
    # The gradient of the head's weights is there either way.
    head.weight.grad = torch.zeros_like(head.weight)
    before = peak_bytes()
    started = time.process_time()
    if way == WAYS[0]:
        logprobs_T = whole(head, hidden_TE, targets_T)
    else:
        logprobs_T, _ = LogprobHead(head)(hidden_TE, targets_T, 1.0, "value")
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    forward_s = time.process_time() - started
    (logprobs_T * torch.linspace(-1, 1, tokens, device=device)).sum().backward()  # type: ignore[no-untyped-call]
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds = (forward_s, time.process_time() - started - forward_s)
    assert hidden_TE.grad is not None
    found = (peak_bytes() - before, seconds, logprobs_T.detach().cpu().numpy(), hidden_TE.grad.float().cpu().numpy())
    channel.send(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--hidden", type=int, default=1024)
    dtype = "bfloat16" if torch.cuda.is_available() else "float32"
    parser.add_argument("--dtype", default=dtype, choices=("float32", "bfloat16"))
    parser.add_argument("--chunks-only", action="store_true", help="leave out the whole logits and the comparison")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    found = {}
    ways = WAYS[1:] if options.chunks_only else WAYS
    for way in ways:
        here, there = context.Pipe()
        sizes = (options.tokens, options.vocabulary, options.hidden)
        process = context.Process(target=measure, args=(way, *sizes, options.dtype, there))
        process.start()
        found[way] = here.recv()
        process.join()
    for index in () if options.chunks_only else (2, 3):
        torch.testing.assert_close(*(torch.from_numpy(found[way][index]) for way in WAYS), rtol=1e-3, atol=1e-4)
    one = options.tokens * options.vocabulary * 4
    print(
        f"{options.tokens} tokens x {options.vocabulary} logits = {one / GIB:.2f} GiB in float32; "
        f"chunks of {LOGIT_BYTES / GIB:.2f} GiB"
    )
    print(
        json.dumps(
            {
                way: {"peak_gib": taken / GIB, "forward_s": seconds[0], "backward_s": seconds[1]}
                for way, (taken, seconds, *_) in found.items()
            },
            indent=2,
        )
    )
    if not options.chunks_only:
        print(f"ratio of the peaks: {found[WAYS[0]][0] / found[WAYS[1]][0]:.2f}")


if __name__ == "__main__":
    main()
