"""The names of the files and folders in a run's folder, each in one place."""

from __future__ import annotations

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
REPORT = "report.html"
LEDGER = "ledger.jsonl"
TIMELINE = "timeline.jsonl"
AUDIT = "audit.jsonl"
FAULTS = "faults.log"
LOGS = "logs"
# In `logs/`: the files of all processes that ever were, beside links to the newest.
LOG_HISTORY = "history"
FIGURES = "figures"
ROLLOUTS = "rollouts"
EVALUATIONS = "evaluations"
CHECKPOINTS = "checkpoints"
SKIPPED = "skipped"
# A policy in Hugging Face format: of a whole run, or of a checkpoint.
POLICY = "policy"


def log_of(actor: str) -> str:
    """The name in `logs/` of the newest log of an actor: `learner-0.log` for `learner rank 0`."""
    return f"{'-'.join(word for word in actor.split() if word != 'rank')}.log"
