"""Stands in for the Hugging Face hub: policies and data sets under their names there, without a network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
import transformers
from gpu_sizes import write_shape
from tiny_policy import PRINTABLE, make_tiny_policy

from grpo.policy.hub import name_of

LONG = PRINTABLE.model_copy(update={"max_position": 4096, "alphabet": f"{PRINTABLE.alphabet}\n"})
# Names of policies on the hub. A size says that the policy's `config.json` is Qwen3's, for the memory plan.
POLICIES = {
    "Qwen/Qwen2.5-1.5B-Instruct": None,
    "Qwen/Qwen3-1.7B-Base": "1.7B",
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": None,
}


def gsm8k_rows(count: int) -> list[dict[str, str]]:
    """Rows with the columns of openai/gsm8k; the answers are sums."""
    return [{"question": f"{n} and {n}?", "answer": f"They are {2 * n}.\n#### {2 * n}"} for n in range(count)]


def stand_in(patched: pytest.MonkeyPatch, folder: Path, sets: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Answer for the hub from now on.

    Args:
        patched: takes the patches back.
        folder: for the files of the policies.
        sets: name of a data set on the hub -> its rows, for every split.
    """
    policies = {name: _make(folder / name, size) for name, size in POLICIES.items()}
    load_dataset = datasets.load_dataset
    patched.setattr(
        "grpo.data.rows.datasets.load_dataset",
        lambda name, *words, **named: (
            datasets.Dataset.from_list(list(sets[name])) if name in sets else load_dataset(name, *words, **named)
        ),
    )
    for kind in (transformers.AutoConfig, transformers.AutoTokenizer):
        patched.setattr(kind, "from_pretrained", staticmethod(_answering(kind.from_pretrained, policies)))


def _make(folder: Path, size: str | None) -> Path:
    make_tiny_policy(folder, LONG)
    return write_shape(size, folder) if size else folder


def _answering(load: Any, policies: Mapping[str, Path]) -> Any:
    def from_pretrained(name: Any, *words: Any, **named: Any) -> Any:
        folder = policies.get(name_of(str(name)))
        if folder is None:
            return load(name, *words, **named)
        loaded = load(str(folder))
        loaded._commit_hash = "0" * 40
        return loaded

    return from_pretrained


def fill_cache(home: Path, policy: str, data: str, subset: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Fill `home` (HF_HOME) as `hf download POLICY` and a first `datasets.load_dataset(DATA, SUBSET)` fill it.

    The rows are those of the splits `train` and `test`.
    """
    owner, _, name = data.partition("/")
    lines = home / "rows.jsonl"
    lines.parent.mkdir(parents=True, exist_ok=True)
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made, commit = home / "made", "a" * 40
    datasets.load_dataset("json", data_files=dict.fromkeys(("train", "test"), str(lines)), cache_dir=str(made))
    (info_file,) = made.glob("json/*/*/*/dataset_info.json")
    prepared = home / "datasets" / f"{owner}___{name}" / subset / "0.0.0" / commit
    shutil.copytree(info_file.parent, prepared)
    for file in prepared.glob("json-*.arrow"):
        file.rename(prepared / file.name.replace("json-", f"{name}-"))
    info = json.loads(info_file.read_text()) | {"dataset_name": name, "config_name": subset, "builder_name": "parquet"}
    (prepared / "dataset_info.json").write_text(json.dumps(info))
    repository = home / "hub" / f"models--{policy.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots").mkdir()
    make_tiny_policy(repository / "snapshots" / commit, LONG)
