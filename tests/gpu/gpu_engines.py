"""Parts of the GPU check that start vLLM beside the learner: proven pushes of weights, and two steps of a whole run."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Literal

import gpu_policies
from gpu_context import Context, Wrong
from gpu_outcomes import Result

from grpo import config
from grpo.cluster.claim import Plan
from grpo.cluster.cluster import Cluster
from grpo.config import NewPolicyConfig
from grpo.generator.setup import GeneratorSetup
from grpo.policy.new import make_policy
from grpo.weights.sync import TOLERANCES, WeightSync

ROOT = Path(__file__).resolve().parents[2]
# A head size that vLLM's kernels know.
_SHAPE = NewPolicyConfig(
    hidden_size=256, layers=2, heads=4, key_value_heads=2, intermediate_size=384, tie_embeddings=False
)
_LENGTHS = gpu_policies.Lengths(groups=6, group_size=4, prompt=8, completion=30, longest=120, microbatch=512)
_VERSIONS = 2
# Names of the figures that a step of a run leaves, and their names in the table.
_STEP_FIGURES = {"learner/tokens_per_s": "tokens_per_s", "learner/mfu": "mfu", "learner/peak_memory_gib": "peak_gib"}


def push(context: Context) -> Result:
    """Pushes to vLLM on the same GPU by ipc, on a CPU over gloo, each proven by log-probabilities."""
    return _push(context, "ipc" if context.on_gpu else "gloo")


def push_nccl(context: Context) -> Result:
    """Pushes to vLLM on another GPU over nccl, each proven by log-probabilities."""
    return _push(context, "nccl")


def _push(context: Context, transport: Literal["gloo", "ipc", "nccl"]) -> Result:
    folder = context.folder / "engine_policy"
    if not folder.is_dir():
        make_policy(_SHAPE, [], folder, seed=1)
    shared, dtype = transport == "ipc", "bfloat16" if context.on_gpu else "float32"
    settings = config.ClusterConfig.model_validate(
        {"device": "gpu" if context.on_gpu else "cpu", "start_deadline_s": 200, "step_deadline_s": 60}
    ).model_copy(update={"share_gpus": shared})
    learner_setup = gpu_policies.learner_setup(
        folder, "cuda" if context.on_gpu else "cpu", dtype, {"learning_rate": 1e-2, "microbatch_tokens": 512}
    )
    generator_setup = GeneratorSetup(
        policy_path=str(folder),
        dtype=dtype,
        generator=config.GeneratorConfig(engine="own_process", max_sequences=16, gpu_memory_share=0.2, compile=False),
        max_sequence_tokens=128,
        temperature=1.0,
        device="cuda" if context.on_gpu else "cpu",
        replica=0,
        transport=transport,
    )
    probe = [list(one.token_ids) for one in gpu_policies.sequences(_LENGTHS, 20, seed=9)[:3]]
    tolerance, after, unpushed = TOLERANCES[dtype], [], []
    with Cluster(settings, Plan(1, 1, 1, 1, 1, share_gpus=shared)) as cluster:
        learner = cluster.start_learner([learner_setup])()
        generators = cluster.start_generators([generator_setup], 120, 120)()
        learner.connect(generators, transport, 1, 60.0)
        sync = WeightSync(learner, generators, 1 << 20, tolerance)
        same = max(sync.compare(probe))
        if not same <= tolerance:
            raise Wrong(f"before any push, log-probabilities of learner and vLLM differ by {same:.1e}")
        for version in range(_VERSIONS):
            for seed in range(4):
                learner.step(gpu_policies.step_batch(_LENGTHS, 20, seed=4 * version + seed))
            unpushed.append(min(sync.compare(probe)))
            if not unpushed[-1] > tolerance:
                raise Wrong(f"the probe does not see steps that were not pushed: {unpushed[-1]:.1e}")
            differs = sync.push(version, probe)
            if not differs <= tolerance:
                raise Wrong(f"after the push over {transport}, log-probabilities differ by {differs:.1e}")
            after.append(differs)
    return Result(
        f"{_VERSIONS} pushes over {transport} proven; difference {same:.0e} at the start, {min(unpushed):.2f} before "
        f"a push, {max(after):.0e} after it",
        {"difference_at_start": same, "difference_after_push": max(after)},
    )


def gsm8k(context: Context) -> Result:
    """Two steps of configs/gsm8k.yaml with a policy of random weights, and with rows like those of GSM8K."""
    import grpo

    folder = context.folder / "gsm8k"
    rows = [_row(number) for number in range(64)]
    data = context.folder / "gsm8k.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    shape = _SHAPE.model_copy(update={"tokenizer": "bpe", "vocabulary": 600})
    make_policy(shape, [row["question"] + row["answer"] for row in rows], context.folder / "gsm8k_policy", seed=2)
    brief = "{name: brief, use: length, options: {limit: 128, buffer: 128}, weight: 1.0}"
    settings = [
        f"run.folder={folder}",
        f"policy.path={context.folder / 'gsm8k_policy'}",
        f"data.path={data}",
        # A policy of random weights answers nothing, so its rewards differ only by the lengths. A completion ends by
        # chance, about once in 600 tokens: with 64 tokens each, a step in 30 had no completion that ended.
        f"verifiers=[{{name: answer, use: numeric, options: {{find: [boxed]}}}}, {brief}]",
        "evaluation=null",
        "train.steps=2",
        "rollout.prompts_per_step=8",
        "rollout.group_size=4",
        "rollout.max_completion_tokens=128",
        "generator.compile=false",
        "verification.workers=1",
    ]
    if not context.on_gpu:
        settings += ["cluster.device=cpu", "cluster.share_gpus=false", "policy.dtype=float32"]
    grpo.train(grpo.load_config(ROOT / "configs" / "gsm8k.yaml", *settings))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [line for line in lines if "learner/loss" in line]
    if len(steps) != 2 or any(line["learner/skipped_steps"] for line in steps):
        raise Wrong(f"{len(steps)} of 2 steps were taken, or a loss was not finite")
    mismatch = max(line["learner/mismatch_kl_first"] for line in steps)
    if not mismatch < 1e-2:
        raise Wrong(f"learner and generator do not compute the same policy: mismatch_kl_first {mismatch:.1e}")
    figures = {short: steps[-1][name] for name, short in _STEP_FIGURES.items() if name in steps[-1]}
    figures |= {"step_s": steps[-1]["time/step_s"], "mismatch_kl_first": mismatch}
    return Result(f"2 steps, the second {figures['step_s']:.1f} s; mismatch_kl_first {mismatch:.0e}", figures)


def _row(number: int) -> dict[str, str]:
    drawn = random.Random(number)
    first, second = drawn.randrange(10, 90), drawn.randrange(2, 9)
    return {
        "question": f"A box holds {first} apples. Maria has {second} boxes. How many apples does she have?",
        "answer": f"She has {second} * {first} = {first * second} apples.\n#### {first * second}",
    }
