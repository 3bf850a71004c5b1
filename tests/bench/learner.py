"""The learner alone, without Ray and vLLM: tokens per second, model FLOPs utilisation and peak memory.

    python tests/bench/learner.py                          a small shape, on a CPU
    python tests/bench/learner.py --shape 1.7b --checkpointing

It needs torch, transformers and deepspeed, and nothing else that is not theirs. The weights are random. The batch is
like one that GRPO trains on: groups of completions with long-tailed lengths (log-normal) behind one prompt each. One
step is one optimizer step on all of it. MFU is against the maker's bfloat16 figure on a GPU, and against what a large
matrix product reaches in this very process on a CPU; `grpo.policy.flops` says what is counted.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import resource
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch  # noqa: E402

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

from tokenizers import Tokenizer, models  # noqa: E402
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM  # noqa: E402

from grpo import config  # noqa: E402
from grpo.algorithm.minibatches import TrainBatch, batch  # noqa: E402
from grpo.algorithm.packing import TrainingSequence  # noqa: E402
from grpo.learner.setup import LearnerSetup  # noqa: E402
from grpo.policy.flops import PolicyFlops, peak_flops  # noqa: E402

# Qwen3's published shapes: hidden size, layers, heads, key-value heads, intermediate size, vocabulary.
SHAPES = {
    "small": (256, 4, 4, 2, 768, 4096),
    "0.6b": (1024, 28, 16, 8, 3072, 151_936),
    "1.7b": (2048, 28, 16, 8, 6144, 151_936),
}
GIB = 1 << 30


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--shape", choices=SHAPES, default="0.6b" if on_gpu else "small")
    parser.add_argument("--zero-stage", type=int, choices=(1, 2, 3), default=2)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16" if on_gpu else "float32")
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations in the backward pass")
    parser.add_argument("--microbatch-tokens", type=int, default=16_384 if on_gpu else 2048)
    parser.add_argument("--groups", type=int, default=16 if on_gpu else 4)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=200 if on_gpu else 64)
    parser.add_argument("--completion-tokens", type=int, default=1200 if on_gpu else 120, help="mean length")
    parser.add_argument("--longest", type=int, default=8192 if on_gpu else 1024)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    return parser.parse_args()


def make_random_policy(shape: str, dtype: str, longest: int, folder: Path) -> Qwen3Config:
    hidden, layers, heads, key_value_heads, intermediate, vocabulary = SHAPES[shape]
    settings = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        head_dim=128 if shape != "small" else hidden // heads,
        max_position_embeddings=2 * longest,
        tie_word_embeddings=True,
        dtype=dtype,
    )
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = Qwen3ForCausalLM(settings).to(getattr(torch, dtype))
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({"<end>": 0, "<unknown>": 1}, unk_token="<unknown>"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)
    return settings


def make_batch(options: argparse.Namespace, vocabulary: int) -> TrainBatch:
    """Groups whose lengths are log-normal with the given mean and a tail of about five times that."""
    drawn = random.Random(0)
    spread = 0.8
    sequences = []
    for _ in range(options.groups):
        prompt = tuple(drawn.randrange(vocabulary) for _ in range(options.prompt_tokens))
        for member in range(options.group_size):
            length = int(drawn.lognormvariate(math.log(options.completion_tokens) - spread**2 / 2, spread))
            length = max(2, min(length, options.longest - options.prompt_tokens))
            sampled = tuple(drawn.randrange(vocabulary) for _ in range(length))
            old = (-math.log(vocabulary),) * length
            sequences.append(TrainingSequence((*prompt, *sampled), len(prompt), old, 1.0 if member % 2 else -1.0))
    return batch(
        sequences,
        denominator=sum(one.trained_tokens for one in sequences),
        ranks=1,
        microbatch_tokens=options.microbatch_tokens,
    )


def matrix_flops(dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product here, the best of several."""
    size = 2048
    left, right = torch.randn(size, size, dtype=dtype), torch.randn(size, size, dtype=dtype)
    seconds = []
    for _ in range(8):
        started = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - started)
    return float(2 * size**3 / min(seconds))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    options = arguments()
    on_gpu = torch.cuda.is_available()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        shape = make_random_policy(options.shape, options.dtype, options.longest, Path(folder))
        from grpo.learner.rank import LearnerRank

        setup = LearnerSetup(
            policy_path=folder,
            reference_path=folder,
            dtype=options.dtype,
            algorithm=config.AlgorithmConfig(),
            learner=config.LearnerConfig(
                zero_stage=options.zero_stage,
                microbatch_tokens=options.microbatch_tokens,
                gradient_checkpointing=options.checkpointing,
                threads=options.threads,
            ),
            temperature=1.0,
            total_steps=options.warm_up + options.steps,
            seed=0,
            rank=0,
            world_size=1,
            device="cuda" if on_gpu else "cpu",
            skipped_folder=folder,
        )
        learner = LearnerRank(setup, "127.0.0.1", free_port())
    made = make_batch(options, shape.vocab_size)
    (part,) = made.ranks
    if on_gpu:
        # The model that was saved is gone; what the learner needs is what is measured.
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    seconds, metrics = [], {}
    for step in range(options.warm_up + options.steps):
        started = time.perf_counter()
        metrics = learner.step(part)
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
        print(f"step {step}: {seconds[-1]:.3f} s, loss {metrics['loss']:.4f}", flush=True)
    measured = seconds[options.warm_up :]
    sizes = PolicyFlops.of(shape)
    flops = sum(sizes.training(one) for one in part.microbatches)
    peak = peak_flops(torch.cuda.get_device_name()) if on_gpu else matrix_flops(getattr(torch, options.dtype))
    computed = sum(len(one.input_ids_N) for one in part.microbatches)
    whole = round(computed / (1.0 - made.shared_share))
    median = statistics.median(measured)
    figures = {
        "device": torch.cuda.get_device_name()
        if on_gpu
        else f"{platform.processor() or platform.machine()}, {options.threads} thread(s)",
        "shape": options.shape,
        "dtype": options.dtype,
        "zero_stage": options.zero_stage,
        "checkpointing": options.checkpointing,
        "microbatches": len(part.microbatches),
        "tokens_of_sequences": whole,
        "tokens_computed": computed,
        "padding_share": made.padding_share,
        "step_s": {"median": median, "least": min(measured), "most": max(measured)},
        "sequence_tokens_per_s": whole / median,
        "computed_tokens_per_s": computed / median,
        "tflops_per_s": flops / median / 1e12,
        "mfu": flops / median / peak if peak else None,
        "mfu_against": "the maker's bfloat16 figure" if on_gpu else "a 2048 x 2048 matrix product in this process",
        "peak_memory_gib": (
            torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        )
        / GIB,
    }
    print(json.dumps(figures, indent=2))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2), encoding="utf-8")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
