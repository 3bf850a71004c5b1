"""A run made up from nothing: what a real one would report, written through Report itself."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path

from rich.console import Console

from grpo.report.closing_table import ClosingTable
from grpo.report.progress import Progress, open_progress
from grpo.report.recorder import RunRecorder
from grpo.types import Completion, FinishReason, Group, Prompt, Rollout, VersionSpan
from grpo.view.page import write_report
from rewards import verdict
from rewards.verdict import Verdict

HOSTILE = (
    "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    "</pre></template><!-- {{ 7 * 7 }} {% raw %} \u202egnirts\x1b[31m\x00 \ud800 & <b>bold</b> ]]>"
)
CONFIG = """\
run:
  folder: runs/quickstart
  seed: 1
policy:
  path: runs/quickstart/cold-start
  dtype: float32
data:
  generator: grpo.data.arithmetic:chains
verifiers:
- name: exact
  use: numeric
- name: format
  use: "</script><script>document.title='owned'</script>"
  weight: 0.2
rollout:
  prompts_per_step: 32
  group_size: 8
  max_completion_tokens: 64
  temperature: 1.0
algorithm:
  clip_low: 0.2
  clip_high: 0.28
learner:
  learning_rate: 0.0001
"""


def silent_progress() -> Progress:
    """A display that nobody sees."""
    return open_progress("GRPO", console=Console(file=StringIO(), width=80))


def make_rollout(
    text: str, verdicts: Mapping[str, Verdict], *, version: int = 0, finish: FinishReason = "stop"
) -> Rollout:
    """A rollout whose reward is the mean score of its verdicts, None where one failed."""
    tokens = tuple(ord(character) % 1000 for character in text)
    half = len(tokens) // 2
    spans = (VersionSpan(0, half, version), VersionSpan(half, len(tokens), version + 1))
    scores = [one.score for one in verdicts.values()]
    reward = None if None in scores else sum(score for score in scores if score is not None) / len(scores)
    return Rollout(Completion(tokens, tuple(-0.1 for _ in tokens), text, finish, spans), dict(verdicts), reward)


def make_groups(generator: random.Random, step: int, skill: float, groups: int = 4, size: int = 8) -> list[Group]:
    """Groups of an arithmetic policy that thinks before it answers the more often, the greater its skill."""
    return [_make_group(generator, step, index, skill, size) for index in range(groups)]


def make_advantages(groups: Sequence[Group]) -> list[list[float | None]]:
    """Group-normalised rewards; None for a rollout without a reward."""
    rows: list[list[float | None]] = []
    for group in groups:
        known = [rollout.reward for rollout in group.rollouts if rollout.reward is not None]
        mean = sum(known) / max(1, len(known))
        deviation = math.sqrt(sum((one - mean) ** 2 for one in known) / max(1, len(known)))
        rows.append(
            [None if one.reward is None else (one.reward - mean) / (deviation + 1e-4) for one in group.rollouts]
        )
    return rows


def write_fake_run(run_dir: Path, *, steps: int = 40, seed: int = 1, eval_every: int = 5) -> ClosingTable:
    """Write a whole run folder and return its closing table."""
    generator = random.Random(seed)
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.yaml").write_text(CONFIG, encoding="utf-8")
    with RunRecorder(run_dir, progress=silent_progress(), rollouts_every=10, total_steps=steps) as report:
        report.step(0, {"eval/accuracy": 0.45, "eval/completion_tokens_mean": 18.2, "time/eval_s": 1.4})
        for step in range(1, steps + 1):
            skill = 0.3 + 0.6 / (1 + math.exp(-(step - 0.4 * steps) / (0.12 * steps))) + generator.gauss(0, 0.02)
            groups = make_groups(generator, step, skill)
            metrics = make_metrics(generator, step, skill)
            if step % eval_every == 0 or step == steps:
                metrics |= {"eval/accuracy": min(1.0, 0.12 + skill * 0.92), "time/eval_s": 1.5}
                metrics |= {"eval/completion_tokens_mean": 17 + 14 * skill}
            report.step(step, metrics, groups, make_advantages(groups))
        return report.finish(write_report)


def make_metrics(generator: random.Random, step: int, skill: float) -> dict[str, float]:
    """The metrics that a step of the loop reports."""
    times = {
        "time/generate_s": 0.6 + 0.4 * skill + generator.uniform(-0.05, 0.05),
        "time/verify_s": 0.03,
        "time/learn_s": 0.45 + generator.uniform(-0.03, 0.03),
        "time/sync_s": 0.06,
        "time/checkpoint_s": 0.2 if step % 10 == 0 else 0.0,
    }
    length = 15 + 14 * skill + generator.uniform(-0.5, 0.5)
    step_s = times["time/generate_s"] + times["time/learn_s"] + 0.16 + (20.0 if step == 1 else 0.0)
    return {
        "reward/mean": skill,
        "reward/std": 0.4 - 0.2 * skill,
        "reward/exact": skill,
        "reward/format": 0.9,
        "rollout/accuracy": skill,
        "rollout/completion_tokens_mean": length,
        "rollout/completion_tokens_max": 64.0,
        "rollout/truncated_share": 0.02 * (1 - skill),
        "rollout/groups": 32.0,
        "rollout/zero_variance_share": skill**4,
        "rollout/failed_verdicts": float(step % 13 == 0),
        "verdict/exact/correct": skill,
        "verdict/exact/wrong": 0.9 * (1 - skill),
        "verdict/exact/unparseable": 0.1 * (1 - skill),
        "verifier/exact/p50_s": 2e-5,
        "verifier/exact/p99_s": 3e-4 if step % 13 else 5.0,
        "verifier/exact/cache_hit_share": 0.25,
        **times,
        "time/step_s": step_s,
        "throughput/completions_per_s": 256 / step_s,
        "throughput/tokens_per_s": 256 * length / step_s,
        "learner/loss": generator.gauss(0, 0.01),
        "learner/gradient_norm": 0.4 + generator.uniform(0, 0.1),
        "learner/learning_rate": 1e-4,
        "learner/clip_low_share": 0.004,
        "learner/clip_high_share": 0.011,
        "learner/entropy": 0.6 - 0.3 * skill,
        "learner/ratio_max": 1.7,
        "learner/mismatch_kl": 2e-5,
        "learner/mismatch_kl_first": 1e-5,
        "learner/compute_s": 0.4,
        "learner/tokens_per_s": 9000.0,
        "learner/tflops_per_s": 0.02,
        "learner/mfu": 0.3,
        "learner/peak_memory_gib": 0.5,
        "learner/padding_share": 0.03,
        "sync/probe_mean_difference": 4e-6,
    }


def _make_group(generator: random.Random, step: int, index: int, skill: float, size: int) -> Group:
    terms = [generator.randint(2, 9) for _ in range(generator.randint(3, 5))]
    answer = sum(terms)
    problem = "+".join(map(str, terms)) + "=?"
    prompt = Prompt(f"chain-{step}-{index}", problem, (1, 2, 3), str(answer), {"terms": len(terms)})
    return Group(prompt, tuple(_make_rollout(generator, step, terms, skill) for _ in range(size)))


def _make_rollout(generator: random.Random, step: int, terms: Sequence[int], skill: float) -> Rollout:
    answer = sum(terms)
    chance = generator.random()
    if chance < skill:
        partial = [f"{sum(terms[:i])}+{terms[i]}={sum(terms[: i + 1])}" for i in range(1, len(terms))]
        text = f"<think>{'; '.join(partial)}</think><answer>{answer}</answer>"
        verdicts = {"exact": verdict.correct(f"{answer} = {answer}"), "format": verdict.correct(tags=1.0, order=1.0)}
        return make_rollout(text, verdicts, version=step - 1)
    if chance > 0.985:
        verdicts = {"exact": verdict.timeout("no answer within 5 s"), "format": verdict.correct(tags=1.0, order=1.0)}
        return make_rollout("<answer>9**9**9**9</answer>", verdicts, version=step - 1)
    if chance > 0.96:
        verdicts = {"exact": verdict.unparseable("no <answer> tag"), "format": verdict.wrong(tags=0.0, order=0.0)}
        return make_rollout(HOSTILE, verdicts, version=step - 1, finish="length")
    guess = answer + generator.choice([-3, -1, 1, 2, 7])
    verdicts = {"exact": verdict.wrong(f"{guess} is not {answer}"), "format": verdict.correct(tags=1.0, order=1.0)}
    return make_rollout(f"<answer>{guess}</answer>", verdicts, version=step - 1)
