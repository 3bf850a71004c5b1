"""The names of the files and folders in a run's folder, each in one place."""

from __future__ import annotations

CONFIG = "config.yaml"
# The files of the functions that the config names, as they were at the last start.
FUNCTIONS = "functions"
METRICS = "metrics.jsonl"
REPORT = "report.html"
LEDGER = "ledger.jsonl"
TIMELINE = "timeline.jsonl"
AUDIT = "audit.jsonl"
FAULTS = "faults.log"
FIGURES = "figures"
ROLLOUTS = "rollouts"
EVALUATIONS = "evaluations"
CHECKPOINTS = "checkpoints"
SKIPPED = "skipped"
# A policy in Hugging Face format: of a whole run, or of a checkpoint.
POLICY = "policy"
