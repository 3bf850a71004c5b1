"""What the flags of a run looked at, and what they could not look at, because the run has too few data for it."""

from __future__ import annotations

import shlex

from grpo.report import run_files
from grpo.report.rollout_store import stored_steps
from grpo.view.flags import FEWEST_EVALUATIONS, FEWEST_POINTS
from grpo.view.runs import RunData


def checks(run: RunData) -> dict[str, list[str]]:
    """Return the checks that `hacking_flags` made (`made`), and the other checks with what they need (`not_made`)."""
    history = run.history

    def has(name: str, points: int = FEWEST_POINTS) -> bool:
        return len(history.curve(name).finite().values) >= points

    is_audited = (run.run_dir / run_files.AUDIT).is_file()
    has_reward, has_texts = has("reward/mean"), bool(stored_steps(run.run_dir))
    has_verdicts = any(name.startswith("verdict/") for name in history.names())
    steps, texts = f"needs {FEWEST_POINTS} steps", "needs stored completions"
    every = (
        (
            "reward against held-out accuracy",
            has_reward and has("eval/accuracy", FEWEST_EVALUATIONS),
            f"{steps} and {FEWEST_EVALUATIONS} evaluations",
        ),
        ("reward against the share of correct completions", has_reward and has("rollout/accuracy"), steps),
        ("verdicts against the audit's", is_audited, f"needs `grpo audit {shlex.quote(str(run.run_dir))}`"),
        ("length of completions against reward", has_reward and has("rollout/completion_tokens_mean"), steps),
        ("the same text rewarded for different prompts", has_texts, texts),
        ("rewarded completions that repeat themselves", has_texts, texts),
        ("verdicts that fail more often (timeout, error)", has_verdicts, "needs verdicts"),
    )
    return {
        "made": [check for check, is_made, _ in every if is_made],
        "not_made": [f"{check}: {need}" for check, is_made, need in every if not is_made],
    }
