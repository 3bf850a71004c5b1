"""Write results in the format of lm-evaluation-harness: `results_<date>.json` and `samples_<task>_<date>.jsonl`.

The keys are those that the harness writes with `--log_samples`. So programs that read the harness's output can read
these files.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grpo import files
from grpo.evaluation.metrics import TaskMetrics
from grpo.evaluation.store import Judged, write_json

FOLDER = "lm_eval"
_FILTER = "none"
# The harness has another name for accuracy over generated answers. Other estimates keep their names.
_NAMES = {"accuracy": "exact_match"}
_HIGHER_IS_BETTER = ("exact_match", "pass@", "maj@", "avg@")


def export(
    folder: Path, model: str, cards: Mapping[str, Mapping[str, Any]], results: Mapping[str, TaskMetrics],
    tables: Mapping[str, Sequence[Judged]],
) -> Path:  # fmt: skip
    """Write the export of all tasks, and return its folder. Replace an earlier export of the same evaluation.

    Args:
        folder: folder of the evaluation.
        model: name of the model as the user gave it.
        cards: task -> run card.
        results: task -> metrics.
        tables: task -> completions.
    """
    date = min(str(card["created"]) for card in cards.values()).replace(":", "-")
    sanitized = re.sub(r"[\"<>:/|\\?*\[\]]+", "__", model).strip("_")
    place = folder / FOLDER / sanitized
    write_json(place / f"results_{date}.json", _results(model, sanitized, cards, results))
    for task, rows in tables.items():
        with files.whole_file(place / f"samples_{task}_{date}.jsonl") as path, path.open("w", encoding="ascii") as file:
            for index, alike in enumerate(_by_problem(rows)):
                file.write(json.dumps(_sample(index, alike, cards[task])) + "\n")
    return place


def _results(
    model: str, sanitized: str, cards: Mapping[str, Mapping[str, Any]], metrics_of: Mapping[str, TaskMetrics]
) -> dict[str, Any]:
    results: dict[str, dict[str, Any]] = {}
    for task, metrics in metrics_of.items():
        results[task] = {"alias": task}
        for name, estimate in metrics.estimates.items():
            name = _NAMES.get(name, name)
            results[task][f"{name},{_FILTER}"] = estimate.value
            error = "N/A" if estimate.standard_error is None else estimate.standard_error
            results[task][f"{name}_stderr,{_FILTER}"] = error
    first = next(iter(cards.values()))
    return {
        "results": results,
        "group_subtasks": {task: [] for task in metrics_of},
        "configs": {task: _config(task, card) for task, card in cards.items()},
        "versions": {task: 0 for task in metrics_of},
        "n-shot": {task: 0 for task in metrics_of},
        "higher_is_better": {
            task: {
                _NAMES.get(name, name): True
                for name in metrics.estimates
                if _NAMES.get(name, name).startswith(_HIGHER_IS_BETTER)
            }
            for task, metrics in metrics_of.items()
        },
        "n-samples": {
            task: {"original": metrics.problems, "effective": metrics.problems} for task, metrics in metrics_of.items()
        },
        "config": {
            "model": "vllm" if "endpoint:" not in str(first["identity"]["model"]) else "local-chat-completions",
            "model_args": f"pretrained={model},dtype={first['identity']['dtype']}",
            "limit": first["settings"]["limit"],
            "random_seed": first["seeds"][0],
        },
        "date": first["created"],
        "model_source": "verigrpo",
        "model_name": model,
        "model_name_sanitized": sanitized,
        "verigrpo_versions": first["versions"],
    }


def _config(task: str, card: Mapping[str, Any]) -> dict[str, Any]:
    declared, sampling = card["task"], card["identity"]["sampling"]
    data = declared["data"]
    return {
        "task": task,
        "dataset_path": data["path"] or data["hub"] or data["generator"],
        "dataset_name": data["subset"],
        "test_split": data["split"],
        "doc_to_text": data["template"],
        "doc_to_target": data["reference"],
        "description": declared["source"],
        "num_fewshot": 0,
        "output_type": "generate_until",
        "repeats": card["k"] * len(card["seeds"]),
        "generation_kwargs": {
            "temperature": sampling["temperature"],
            "top_p": sampling["top_p"],
            "max_gen_toks": sampling["max_tokens"],
            "until": list(sampling["stop"]),
            "do_sample": sampling["temperature"] > 0,
        },
    }


def _by_problem(rows: Sequence[Judged]) -> list[list[Judged]]:
    groups: dict[str, list[Judged]] = {}
    for row in rows:
        groups.setdefault(row.record.problem, []).append(row)
    return list(groups.values())


def _sample(index: int, alike: Sequence[Judged], card: Mapping[str, Any]) -> dict[str, Any]:
    """Return a problem with all its completions, in the harness's format of a document."""
    reference = json.loads(alike[0].reference)
    target = reference if isinstance(reference, str) else alike[0].reference
    first, known = alike[0], [row.record for row in alike if not row.record.status.failed]
    doc = {"problem": first.record.problem, "question": first.question, "answer": target}
    sampling = card["identity"]["sampling"]
    arguments = {"until": list(sampling["stop"]), "max_gen_toks": sampling["max_tokens"]}
    return {
        "doc_id": index,
        "doc": doc,
        "target": target,
        "arguments": {"gen_args_0": {"arg_0": first.question, "arg_1": arguments}},
        "resps": [[row.record.completion for row in alike]],
        "filtered_resps": [row.answer for row in alike],
        "filter": _FILTER,
        "metrics": ["exact_match"],
        "doc_hash": _hash(json.dumps(doc, sort_keys=True)),
        "prompt_hash": _hash(first.question),
        "target_hash": _hash(target),
        "exact_match": sum(record.correct for record in known) / len(known) if known else None,
        "statuses": [row.record.status.value for row in alike],
    }


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()
