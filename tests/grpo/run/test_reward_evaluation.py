"""`grpo reward CONFIG --evaluate`: a trained model's agreement with rows, by subset."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_policy import make_tiny_policy
from transformers import AutoTokenizer
from typer.testing import CliRunner

from grpo.cli.app import app
from grpo.config import RewardConfig
from grpo.policy.scores import load_scorer, score_tokens
from grpo.reward_evaluation import ALL, evaluate_reward_model


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> RewardConfig:
    folder = tmp_path_factory.mktemp("evaluation")
    policy = make_tiny_policy(folder / "policy")
    model, tokenizer = load_scorer(str(policy), "float32", "sdpa"), AutoTokenizer.from_pretrained(policy)
    model.score.weight.data.normal_()
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = []
    for number in range(12):
        prompt, answers = f"{number}+1=?", [str(number + 1), f"-{number}"]
        ids = [[*tokenizer.encode(prompt), *tokenizer.encode(text), tokenizer.eos_token_id] for text in answers]
        answers.sort(key=dict(zip(answers, score_tokens(model, ids), strict=True)).__getitem__, reverse=True)
        # The model agrees with the rows of one subset, and never with those of the other.
        subset = "right" if number % 3 else "wrong"
        best, worst = answers if subset == "right" else answers[::-1]
        rows.append({"prompt": prompt, "chosen": best, "rejected": worst, "subset": subset})
    rows.append({"prompt": "1" * 40, "chosen": "2", "rejected": "3", "subset": "right"})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return RewardConfig.model_validate(
        {
            "run": {"folder": str(folder / "run")},
            "policy": {"path": str(folder / "model")},
            "data": {"path": str(folder / "rows.jsonl")},
            "reward": {"steps": 1, "max_tokens": 20},
        }
    )


def test_accuracy_by_subset(settings: RewardConfig) -> None:
    found, left_out = evaluate_reward_model(settings, "subset")
    assert left_out == 1
    assert {name: (part.rows, part.statistics["accuracies"]) for name, part in found.items()} == {
        ALL: (12, pytest.approx(8 / 12)),
        "right": (8, 1.0),
        "wrong": (4, 0.0),
    }
    with pytest.raises(ValueError, match="--by kind: the rows have no such column; they have chosen, prompt"):
        evaluate_reward_model(settings, "kind")


def test_the_command_prints_a_table_and_trains_nothing(settings: RewardConfig, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(settings.model_dump(mode="json", exclude_unset=True)))
    done = CliRunner().invoke(app, ["reward", str(path), "--evaluate", "--by", "subset"], env={"COLUMNS": "150"})
    assert done.exit_code == 0 and "0.667" in done.output and "wrong" in done.output, done.output
    assert not Path(settings.run.folder).exists()
