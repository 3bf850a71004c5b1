"""Preferences: the forms of their rows, rows that cannot be used, and what is held out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_policy import make_tiny_policy
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from grpo.algorithm.comparisons import AnswerComparison
from grpo.config import NewPolicyConfig, TrainingRowsConfig
from grpo.data import arithmetic
from grpo.data.preferences import PreferenceSet, load_preferences, ranked_answers

CHAT = (
    "{% for one in messages %}[{{ one['role'] }}:{{ one['content'] }}]{% endfor %}"
    "{% if add_generation_prompt %}[bot:{% endif %}"
)
ASKED = {"role": "user", "content": "1+1"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    alphabet = "0123456789+=?abcdefghijklmnopqrstuvwxyz[]:"
    new = NewPolicyConfig(hidden_size=8, layers=1, heads=2, key_value_heads=1, intermediate_size=8, alphabet=alphabet)
    made: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(make_tiny_policy(tmp_path_factory.mktemp("p"), new))
    return made


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def source(folder: Path, rows: list[dict[str, Any]], **keys: Any) -> TrainingRowsConfig:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return TrainingRowsConfig.model_validate({"path": str(path), **keys})


def loaded(
    where: TrainingRowsConfig, tokenizer: PreTrainedTokenizerBase, most: int = 50, micro: int = 100
) -> PreferenceSet:
    return load_preferences(where, tokenizer, max_tokens=most, microbatch_tokens=micro)


def texts(comparison: AnswerComparison, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The prompt, then the answers with their end tokens."""
    length = comparison.answers[0].prompt_length
    parts = [comparison.answers[0].token_ids[:length], *(each.token_ids[length:] for each in comparison.answers)]
    return [str(tokenizer.decode(ids)).replace(" ", "") for ids in parts]


def test_pairs_and_rankings_of_text(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    end = tokenizer.eos_token
    rows = [{"prompt": "1+1=?", "chosen": "2", "rejected": "33", "by": 0.5}]
    (pair,) = loaded(source(tmp_path, rows, margin="by"), tokenizer).training
    assert texts(pair, tokenizer) == ["1+1=?", f"2{end}", f"33{end}"]
    assert pair.margin == 0.5 and pair.pairs == [(0, 1)]
    # The best answer has two tokens, the end token among them.
    assert [answer.weight for answer in pair.answers] == [0.5, 0.0]
    ranked = [{"prompt": "1+1=?", "order": ["2", "3", "44"]}]
    (ranking,) = loaded(source(tmp_path, ranked, ranking="order"), tokenizer).training
    assert texts(ranking, tokenizer) == ["1+1=?", f"2{end}", f"3{end}", f"44{end}"]
    assert ranking.pairs == [(0, 1), (0, 2), (1, 2)]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [ASKED], "chosen": [said("2")], "rejected": [said("3")]},
        {"chosen": [ASKED, said("2")], "rejected": [ASKED, said("3")]},
        # UltraFeedback's form: the prompt is there as text too.
        {"prompt": "1+1", "chosen": [ASKED, said("2")], "rejected": [ASKED, said("3")]},
        {"prompt": "1+1", "chosen": "2", "rejected": "3"},
        {"prompt": "1+1", "chosen": said("2"), "rejected": said("3")},
    ],
    ids=["messages", "whole conversations", "both", "text", "a message"],
)
def test_forms_of_chat_are_read_alike(tmp_path: Path, tokenizer: PreTrainedTokenizerBase, row: dict[str, Any]) -> None:
    chatty = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    chatty.chat_template = CHAT
    end = tokenizer.eos_token
    (pair,) = loaded(source(tmp_path, [row]), chatty).training
    assert texts(pair, chatty) == ["[user:1+1][bot:", f"2{end}", f"3{end}"]


GOOD = {"prompt": "1+1=?", "chosen": "2", "rejected": "3"}


@pytest.mark.parametrize(
    ("row", "keys", "said_of_it"),
    [
        ({"prompt": "1+1=?", "order": ["2"]}, {"ranking": "order"}, "ranks 1 answer(s); a ranking needs two or more"),
        ({"prompt": "1+1=?", "order": "2"}, {"ranking": "order"}, "is str; expected a list of answers, the best first"),
        (
            {"prompt": "1+1=?", "order": ["2", "3", "2"]},
            {"ranking": "order"},
            "answer 1 of column 'order' (data.ranking) and answer 3 of column 'order' (data.ranking) hold the same",
        ),
        ({**GOOD, "rejected": "2"}, {}, "hold the same answer, so neither is better"),
        ({**GOOD, "chosen": " "}, {}, "column 'chosen' (data.chosen) is empty"),
        ({**GOOD, "rejected": None}, {}, "no answer in column 'rejected' (data.rejected)"),
        ({**GOOD, "prompt": ""}, {}, "no question in column 'prompt'"),
        ({**GOOD, "by": -1.0}, {"margin": "by"}, "needs a number of 0 or more, got: -1.0"),
        (
            {"prompt": "", "chosen": [ASKED, said("2")], "rejected": [{**ASKED, "content": "2+2"}, said("3")]},
            {},
            "differ before their last message",
        ),
    ],
)
def test_bad_rows_are_sentences_and_may_be_left_out(
    tmp_path: Path, row: dict[str, Any], keys: dict[str, Any], said_of_it: str
) -> None:
    good = {"prompt": "1+1=?", "order": ["2", "3"]} if "ranking" in keys else {**GOOD, "by": 1.0}
    if isinstance(row.get("chosen"), list):
        good = {**good, "chosen": [ASKED, said("2")], "rejected": [ASKED, said("3")]}
    with pytest.raises(ValueError, match=r"1 of \d rows of data cannot be used") as refused:
        # A column of a file has values of one type, so a text stands alone.
        ranked_answers(source(tmp_path, [row] if row.get("order") == "2" else [good, row], **keys))
    assert said_of_it in str(refused.value)
    if row.get("order") != "2":
        kept, left_out = ranked_answers(source(tmp_path, [good, row], on_bad_row="drop", **keys))
        assert len(kept) == 1 and left_out.total() == 1


def test_missing_columns_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.chosen='chosen' is not a column") as refused:
        ranked_answers(source(tmp_path, [{"prompt": "1", "better": "2", "rejected": "3"}]))
    assert "data.rejected" not in str(refused.value)
    with pytest.raises(ValueError, match=r"data\.prompt='prompt' is not a column"):
        ranked_answers(source(tmp_path, [{"chosen": "2", "rejected": "3"}]))


def test_long_rows_are_dropped_and_long_rankings_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    where = source(tmp_path, [GOOD, {**GOOD, "rejected": "3333333"}])
    found = loaded(where, tokenizer, 12)
    assert (len(found.training), found.dropped) == (1, 1)
    # A prompt of 5 tokens, with answers of 2 and 8 tokens.
    assert len(loaded(where, tokenizer, 13).training) == 2
    with pytest.raises(ValueError, match=r"none of the 2 rows fits dpo\.max_tokens=6; the shortest needs 7 tokens"):
        loaded(where, tokenizer, 6)
    with pytest.raises(ValueError, match=r"a ranking of 2 answers has 13 tokens, more than learner\.microbatch_tokens"):
        loaded(where, tokenizer, 13, 12)


def test_all_rows_of_a_held_out_question_are_held_out(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [{**GOOD, "prompt": f"{number % 4}+1=?", "rejected": f"{number}9"} for number in range(8)]
    found = loaded(source(tmp_path, rows, validation=1), tokenizer)
    assert (len(found.training), len(found.held_out)) == (6, 2)
    held_out = {texts(each, tokenizer)[0] for each in found.held_out}
    assert len(held_out) == 1 and not held_out & {texts(each, tokenizer)[0] for each in found.training}
    with pytest.raises(ValueError, match=r"data\.validation=4 leaves no question for training, of 4"):
        loaded(source(tmp_path, rows, validation=4), tokenizer)


def test_the_made_up_rater_errs_as_often_as_he_says() -> None:
    def is_right(question: str, answer: str) -> bool:
        return f"<answer>{eval(question.removesuffix('=?'))}</answer>" in answer

    rows = list(arithmetic.preferences(2000, noise=0.2))
    right = [(is_right(row["prompt"], row["chosen"]), is_right(row["prompt"], row["rejected"])) for row in rows]
    assert all(chosen != rejected for chosen, rejected in right)
    assert sum(chosen for chosen, _ in right) / len(rows) == pytest.approx(0.8, abs=0.03)
    assert not any(arithmetic.is_held_out(row["prompt"]) for row in rows)
    assert {row["prompt"] for row in rows}.isdisjoint(row["prompt"] for row in arithmetic.questions(200, held_out=True))
