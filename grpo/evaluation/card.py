"""The run card: all that a number hangs on, written beside it, so that it can be made again."""

from __future__ import annotations

import datetime
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grpo.config.addresses import without_secrets
from grpo.config.evaluation import EvalConfig, TaskConfig, TaskSamplingConfig
from grpo.evaluation.model import versions
from grpo.evaluation.problems import Problem
from grpo.evaluation.store import write_json
from grpo.run.folder import changes

CARD = "card.json"


def identity_of(
    task: TaskConfig, model: str, sampling: TaskSamplingConfig, dtype: str | None, chat_template: str | None
) -> dict[str, Any]:
    """What completions and verdicts hang on: those made under another identity are another evaluation's."""
    return {
        "model": model,
        "dtype": dtype,
        "sampling": sampling.model_dump(mode="json", exclude={"k"}),
        "prompt": {
            "template": task.data.template,
            "system": task.data.system,
            # The template itself is long, and lies in the policy's folder.
            "chat_template": None if chat_template is None else hashlib.sha256(chat_template.encode()).hexdigest(),
        },
        "verifier": task.verifier.model_dump(mode="json"),
    }


def open_card(folder: Path, identity: dict[str, Any], settings: EvalConfig, task: TaskConfig, k: int) -> dict[str, Any]:
    """The card of a task's folder: the one that is there, or a new one.

    Raises:
        ValueError: what is there was made by something else.
    """
    path = folder / CARD
    if path.is_file():
        card: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        # As JSON has it, where a tuple is a list.
        found = changes(card["identity"], json.loads(json.dumps(identity)))
        if found:
            raise ValueError(
                f"{folder} holds completions of another evaluation; what differs: {'; '.join(found)}. Choose another "
                "--out, or give back what was"
            )
    else:
        card = {"created": _now()}
    card |= {
        "identity": identity,
        "k": k,
        "seeds": list(settings.seeds),
        "task": task.model_dump(mode="json"),
        "settings": settings.model_dump(mode="json"),
        "versions": versions(),
        "command": [without_secrets(argument) for argument in sys.argv],
    }
    write_json(path, card)
    return card


def close_card(
    folder: Path,
    card: dict[str, Any],
    problems: Sequence[Problem],
    first_prompt: str,
    files: dict[str, str],
    left_out: Mapping[str, str],
) -> None:
    """Write what is known at the end.

    Args:
        folder: of the task.
        card: as it was opened.
        problems: that the numbers are over.
        first_prompt: as the model read it.
        files: hashes of the stored files.
        left_out: problems whose reference cannot be used -> why.
    """
    digests = hashlib.sha256("".join(problem.digest for problem in problems).encode()).hexdigest()
    card |= {
        "finished": _now(),
        "problems": {"count": len(problems), "sha256": digests, "left_out": dict(left_out)},
        "first_prompt": first_prompt,
        "files": files,
    }
    write_json(folder / CARD, card)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
