"""The names of the files and folders in a run's folder."""

from __future__ import annotations

import re
from pathlib import Path

from rewards.judges import CACHE_FOLDER

CONFIG = "config.yaml"
# The files of the functions that the config names, as they were at the last start.
FUNCTIONS = "functions"
METRICS = "metrics.jsonl"
REPORT = "report.html"
LEDGER = "ledger.jsonl"
TIMELINE = "timeline.jsonl"
AUDIT = "audit.jsonl"
# Differences between verifiers and people, and the answers of judges.
LABEL_AUDIT = "label_audit.jsonl"
JUDGEMENTS = CACHE_FOLDER
FAULTS = "faults.log"
LOGS = "logs"
# Folder in `logs/` with the files of all processes, old and new. `logs/` itself has links to the newest files.
LOG_HISTORY = "history"
FIGURES = "figures"
ROLLOUTS = "rollouts"
EVALUATIONS = "evaluations"
CHECKPOINTS = "checkpoints"
# The policies that `train.keep_best` keeps.
BEST = "best"
SKIPPED = "skipped"
STALLS = "stalls"
TENSORBOARD = "tensorboard"
LEFT_OUT = "left_out.jsonl"
# The random policy that a supervised run starts from, if its config makes a new policy.
RANDOM_POLICY = "random_policy"
# Files with the ids that the trackers give to the run.
WANDB_ID, MLFLOW_ID = "wandb_id", "mlflow_id"
# Folder with a policy in Hugging Face format, in the run's folder or in a checkpoint.
POLICY = "policy"


def step_name(step: int) -> str:
    """The name of a step's file or folder, without the suffix of a file."""
    return f"step_{step:06d}"


def steps_in(folder: Path, ending: str = "") -> list[int]:
    """The steps that have a file or folder in `folder`, in ascending order; empty if `folder` does not exist."""
    names = (path.name.removesuffix(ending) for path in folder.glob(f"step_*{ending}"))
    return sorted(int(name[1]) for each in names if (name := re.fullmatch(r"step_(\d+)", each)))


def log_of(actor: str) -> str:
    """The name of the link in `logs/` to an actor's newest log: `learner-0.log` for `learner rank 0`."""
    return f"{'-'.join(word for word in actor.split() if word not in ('rank', 'on', 'node'))}.log"
