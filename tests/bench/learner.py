"""The learner alone, without Ray and vLLM: tokens per second, model FLOPs utilisation and peak memory.

    python tests/bench/learner.py                          a small shape, on a CPU
    python tests/bench/learner.py --shape 1.7b --checkpointing 0.5
    git worktree add --detach before COMMIT
    python tests/bench/learner.py --against before         the learner of COMMIT and this one, in turns

It needs torch, transformers and deepspeed, and no other package that these three do not need. The weights are random.
Each step has a batch of its own, like one that GRPO trains on: groups of completions with long-tailed lengths
(log-normal) behind one prompt each. A step is one optimizer step on all of the batch. MFU is against the maker's
bfloat16 figure on a GPU, and against what a large matrix product reaches in this very process on a CPU;
`grpo.policy.flops` says what is counted.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import platform
import random
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# The project whose learner is measured; `--against` sets the variable for the other one.
PROJECT = Path(os.environ.get("LEARNER_BENCH_PROJECT") or Path(__file__).resolve().parents[2])
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
    parser.add_argument("--checkpointing", type=float, default=0.0, help="share of the layers that are recomputed")
    parser.add_argument("--attention", choices=("auto", "sdpa", "varlen"), default="auto")
    parser.add_argument("--kernels", choices=("auto", "eager", "liger"), default="auto")
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
    parser.add_argument("--against", type=Path, help="checkout of another commit, which is measured in turns with this")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side, with --against")
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


def make_batch(options: argparse.Namespace, vocabulary: int, seed: int) -> TrainBatch:
    """Groups whose lengths are log-normal with the given mean and a tail of about five times that."""
    drawn = random.Random(seed)
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


def learner_settings(options: argparse.Namespace) -> config.LearnerConfig:
    """The learner's section. An older project does not know each key or `auto`, and then takes its default."""
    keys = {
        "zero_stage": options.zero_stage,
        "microbatch_tokens": options.microbatch_tokens,
        "gradient_checkpointing": options.checkpointing,
        "attention": options.attention,
        "kernels": options.kernels,
        "threads": options.threads,
    }
    return config.LearnerConfig.model_validate(
        {key: value for key, value in keys.items() if key in config.LearnerConfig.model_fields and value != "auto"}
    )


def learner_setup(**settings: Any) -> LearnerSetup:
    """The learner's setup, without the settings that an older project does not know."""
    known = {field.name for field in dataclasses.fields(LearnerSetup)}
    return LearnerSetup(**{name: value for name, value in settings.items() if name in known})


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Train for a few steps in this process; return the figures."""
    on_gpu = torch.cuda.is_available()
    torch.set_num_threads(options.threads)
    steps = options.warm_up + options.steps
    with tempfile.TemporaryDirectory() as folder:
        shape = make_random_policy(options.shape, options.dtype, options.longest, Path(folder))
        from grpo.learner.rank import LearnerRank

        setup = learner_setup(
            policy_path=folder,
            reference_path=folder,
            dtype=options.dtype,
            algorithm=config.AlgorithmConfig(),
            learner=learner_settings(options),
            temperature=1.0,
            total_steps=steps,
            seed=0,
            rank=0,
            world_size=1,
            device="cuda" if on_gpu else "cpu",
            collective_deadline_s=600.0,
            skipped_folder=folder,
        )
        learner = LearnerRank(setup, "127.0.0.1", free_port())
    batches = [make_batch(options, shape.vocab_size, seed) for seed in range(steps)]
    if on_gpu:
        # The model that was saved is gone; what the learner needs is what is measured.
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    seconds, processor_s = [], []
    for step, made in enumerate(batches):
        started, used = time.perf_counter(), time.process_time()
        metrics = learner.step(made.ranks[0])
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
        processor_s.append(time.process_time() - used)
        print(f"step {step}: {seconds[-1]:.3f} s, loss {metrics['loss']:.4f}", file=sys.stderr, flush=True)
    measured = batches[options.warm_up :]
    sizes = PolicyFlops.of(shape)
    microbatches = [one for made in measured for one in made.ranks[0].microbatches]
    flops = sum(sizes.training(one) for one in microbatches)
    peak = peak_flops(torch.cuda.get_device_name()) if on_gpu else matrix_flops(getattr(torch, options.dtype))
    computed = sum(len(one.input_ids_N) for one in microbatches)
    whole = sum(
        sum(len(one.input_ids_N) for one in made.ranks[0].microbatches) / (1.0 - made.shared_share) for made in measured
    )
    total_s = sum(seconds[options.warm_up :])
    torch.distributed.destroy_process_group()
    return {
        "device": torch.cuda.get_device_name()
        if on_gpu
        else f"{platform.processor() or platform.machine()}, {options.threads} thread(s)",
        "shape": options.shape,
        "dtype": options.dtype,
        "zero_stage": options.zero_stage,
        "checkpointing": options.checkpointing,
        "microbatches": len(microbatches),
        "tokens_of_sequences": round(whole),
        "tokens_computed": computed,
        "padding_share": statistics.mean(made.padding_share for made in measured),
        "step_s": {
            "median": statistics.median(seconds[options.warm_up :]),
            "least": min(seconds[options.warm_up :]),
            "most": max(seconds[options.warm_up :]),
        },
        "processor_s_a_step": sum(processor_s[options.warm_up :]) / options.steps,
        "sequence_tokens_per_s": whole / total_s,
        "computed_tokens_per_s": computed / total_s,
        "tflops_per_s": flops / total_s / 1e12,
        "mfu": flops / total_s / peak if peak else None,
        "mfu_against": "the maker's bfloat16 figure" if on_gpu else "a 2048 x 2048 matrix product in this process",
        "peak_memory_gib": (
            torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        )
        / GIB,
        "loss": metrics["loss"],
    }


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the other checkout and this one in turns, each in processes of its own; return medians of both."""
    sides = {"before": options.against.resolve(), "after": PROJECT}
    command = [sys.executable, __file__, *_without(sys.argv[1:], "--against", "--rounds", "--json")]
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for _ in range(options.rounds):
        for side, project in sides.items():
            environment = {**os.environ, "LEARNER_BENCH_PROJECT": str(project), "PYTHONPATH": str(project)}
            # Libraries print to the standard output, so the figures come in a file.
            with tempfile.NamedTemporaryFile(suffix=".json") as file:
                subprocess.run([*command, "--json", file.name], env=environment, stdout=sys.stderr, check=True)
                runs[side].append(json.loads(Path(file.name).read_text(encoding="utf-8")))
    names = ("sequence_tokens_per_s", "processor_s_a_step", "mfu", "peak_memory_gib", "loss")
    table = {
        side: {name: statistics.median(found[name] for found in runs[side]) for name in names if runs[side][0][name]}
        for side in sides
    }
    ratios = {name: after / table["before"][name] for name, after in table["after"].items()}
    return {**table, "after / before": ratios, "rounds": runs}


def _without(arguments: list[str], *options: str) -> list[str]:
    """The arguments without these options and their values."""
    kept, skip = [], False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if not skip and name not in options:
            kept.append(argument)
        skip = not skip and name in options and not equals
    return kept


def main() -> None:
    options = arguments()
    figures = compare(options) if options.against else measure(options)
    print(json.dumps({name: value for name, value in figures.items() if name != "rounds"}, indent=2))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
