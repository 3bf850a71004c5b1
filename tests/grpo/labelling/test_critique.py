"""`grpo critique`: rows of critiques and revisions, that go on after a failure and train with `grpo sft`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
from judges.judge_server import quoted, served
from judges.labelled_run import write_groups
from tiny_policy import PRINTABLE, make_tiny_policy
from transformers import AutoTokenizer
from typer.testing import CliRunner

from grpo.cli.app import app
from grpo.config import TrainingRowsConfig
from grpo.data.supervised import load_supervised
from rewards.judges.rubric import draw_principle

PRINCIPLES = ("Be honest.", "Be brief.")


def run(*words: str) -> Any:
    return CliRunner(env={"COLUMNS": "300", "TERM": "dumb"}).invoke(app, ["critique", *words])


def critic(folder: Path, url: str, **options: Any) -> str:
    (folder / "principles.yaml").write_text("".join(f"- {each}\n" for each in PRINCIPLES))
    given = {"url": url, "model": "m", "principles": str(folder / "principles.yaml"), "patience_s": 1, **options}
    (folder / "critic.yaml").write_text(json.dumps(given))
    return str(folder / "critic.yaml")


def prompts(folder: Path, *rows: dict[str, Any]) -> str:
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "prompts.jsonl")


def says(system: str, user: str) -> str:
    texts = quoted(user)
    principle = next(each for each in PRINCIPLES if each in user)
    return f"{texts['PROMPT']} better, {principle}" if "CRITIQUE" in texts else f"it breaks: {principle}"


def test_rows_go_on_after_a_failure_and_train_with_sft(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{n}", "draft": f"draft {n}"} for n in range(4)]
    source, out = prompts(tmp_path, *rows), tmp_path / "rows.jsonl"

    def fails_once(system: str, user: str) -> str | httpx.Response:
        return httpx.Response(400, text="no") if quoted(user)["PROMPT"] == "q2" else says(system, user)

    with served(fails_once) as url:
        first = run(source, "--critic", critic(tmp_path, url), "--out", str(out), "--draft", "draft")
    assert first.exit_code == 0 and "3 rows; failed: 1; paid: 300 + 42 tokens" in first.output, first.output
    with served(says) as url:
        again = run(source, "--critic", critic(tmp_path, url), "--out", str(out), "--draft", "draft")
    assert again.exit_code == 0 and "4 prompts, 3 of them have a row" in again.output
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert sorted(row["prompt"] for row in written) == ["q0", "q1", "q2", "q3"]
    for row in written:
        principle = draw_principle(PRINCIPLES, 0, row["prompt"])
        assert row["principle"] == principle and row["draft"] == f"draft {row['prompt'][1]}"
        assert (row["critique"], row["revision"]) == (f"it breaks: {principle}", f"{row['prompt']} better, {principle}")
    tokenizer = AutoTokenizer.from_pretrained(make_tiny_policy(tmp_path / "policy", PRINTABLE))
    source_of_rows = TrainingRowsConfig(path=str(out), response="revision")
    learned = load_supervised(source_of_rows, tokenizer, max_tokens=200).sequences
    texts = [tokenizer.decode(each.token_ids[each.prompt_length : -1]) for each in learned]
    assert texts == [row["revision"] for row in written]


def test_a_draft_that_is_missing_is_written_and_a_run_has_drafts(tmp_path: Path) -> None:
    folder, out = write_groups(tmp_path / "run", {"q1": ["first", "second"]}), tmp_path / "own.jsonl"
    with served(lambda system, user="": says(system, user) if user else f"answer to {system}") as url:
        file = critic(tmp_path, url)
        own = run(prompts(tmp_path, {"prompt": "q0"}), "--critic", file, "--out", str(out))
        of_run = run(str(folder), "--critic", file, "--out", str(tmp_path / "run.jsonl"))
    assert own.exit_code == 0 and of_run.exit_code == 0, own.output + of_run.output
    assert json.loads(out.read_text())["draft"] == "answer to q0"
    assert json.loads((tmp_path / "run.jsonl").read_text())["draft"] == "first"


def test_bad_input_is_refused_with_a_sentence(tmp_path: Path) -> None:
    source, out = prompts(tmp_path, {"prompt": "q"}), str(tmp_path / "rows.jsonl")
    file = critic(tmp_path, "http://127.0.0.1:1/v1")
    (tmp_path / "principles.yaml").write_text("principles: []\n")
    empty = run(source, "--critic", file, "--out", out)
    assert empty.exit_code == 2 and "principles.yaml is empty" in empty.output
    file = critic(tmp_path, "http://127.0.0.1:1/v1")
    assert "no text in the column 'text'" in run(source, "--critic", file, "--out", out, "--prompt", "text").output
    assert "no text in the column 'draft'" in run(source, "--critic", file, "--out", out, "--draft", "draft").output
    Path(out).write_text('{"prompt": "q", "chosen": "x"}\n')
    assert "choose another --out" in run(source, "--critic", file, "--out", out).output
    rubric = critic(tmp_path, "http://127.0.0.1:1/v1", rubric="r.yaml")
    assert "a critic has no option 'rubric'" in run(source, "--critic", rubric, "--out", out).output
    with served(lambda *_: "<think>hm</think> ") as url:
        silent = run(
            source, "--critic", critic(tmp_path, url), "--out", str(tmp_path / "silent.jsonl"), "--draft", "prompt"
        )
    assert silent.exit_code == 1 and "1 times: the answer is empty behind its thoughts" in silent.output
