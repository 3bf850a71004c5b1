"""The run card: everything that determines the results. It is stored with them, so that they can be reproduced."""

from __future__ import annotations

import datetime
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grpo.addresses import without_secrets
from grpo.config.evaluation import EvalConfig, TaskConfig, TaskSamplingConfig
from grpo.evaluation.model import versions
from grpo.evaluation.problems import Problem
from grpo.evaluation.store import write_json
from grpo.run.folder import changes

CARD = "card.json"


def identity_of(
    task: TaskConfig, model: str, sampling: TaskSamplingConfig, dtype: str | None, chat_template: str | None
) -> dict[str, Any]:
    """Return the settings that determine completions and verdicts. Another identity means another evaluation."""
    # These two are left out if they are off, so that evaluations from before they existed continue.
    off = {name for name in ("top_k", "min_p") if not getattr(sampling, name)}
    return {
        "model": model,
        "dtype": dtype,
        "sampling": sampling.model_dump(mode="json", exclude={"k", *off}),
        "prompt": {
            "template": task.data.template,
            "system": task.data.system,
            # The template is long, and the policy's folder contains it. So the card stores only its hash.
            "chat_template": None if chat_template is None else hashlib.sha256(chat_template.encode()).hexdigest(),
        },
        "verifier": task.verifier.model_dump(mode="json"),
        **(task.model_dump(mode="json", include={"tools", "environment", "conversation"}) if task.talks else {}),
    }


def open_card(folder: Path, identity: dict[str, Any], settings: EvalConfig, task: TaskConfig, k: int) -> dict[str, Any]:
    """Return the card of a task's folder: the existing card with new entries, or a new card.

    Raises:
        ValueError: the existing card belongs to another evaluation.
    """
    path = folder / CARD
    if path.is_file():
        card: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        # JSON turns tuples into lists. So compare both identities in their JSON form.
        differences = changes(card["identity"], json.loads(json.dumps(identity)))
        if differences:
            raise ValueError(
                f"{folder} holds completions of another evaluation; what differs: {'; '.join(differences)}. Choose "
                "another --out, or restore the old settings"
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
    context: Mapping[str, Any] | None = None,
) -> None:
    """Write the entries that are known at the end.

    Args:
        folder: folder of the task.
        card: card from `open_card`.
        problems: problems in the results.
        first_prompt: first prompt, as the model read it.
        files: file name -> hash of the stored file.
        left_out: excluded problem -> why its reference cannot be used.
        context: room in the policy's context (`engine_sampler.Room`); None if only a server knows it.
    """
    digests = hashlib.sha256("".join(problem.digest for problem in problems).encode()).hexdigest()
    card |= {
        "finished": _now(),
        "problems": {"count": len(problems), "sha256": digests, "left_out": dict(left_out)},
        "context": context,
        "first_prompt": first_prompt,
        "files": files,
    }
    write_json(folder / CARD, card)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
