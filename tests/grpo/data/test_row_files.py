"""Which files a path names, and what is said of a file or a row that cannot be read."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from tiny_policy import make_tiny_policy
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from grpo.config import DatasetConfig, NewPolicyConfig
from grpo.data.prompts import load_prompts
from grpo.data.rows import load_rows, load_source

ROWS = [{"prompt": f"{number}?", "answer": f"{number}"} for number in range(4)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    new = NewPolicyConfig(hidden_size=8, layers=1, heads=2, key_value_heads=1, intermediate_size=8)
    made: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(make_tiny_policy(tmp_path_factory.mktemp("p"), new))
    return made


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Rows in every form, each form in a folder, besides a file that holds no rows."""
    for form in ("jsonl", "csv", "gz"):
        (tmp_path / form).mkdir()
        (tmp_path / form / "README.md").write_text("no rows")
    (tmp_path / "jsonl" / "a.jsonl").write_text(lines(ROWS[:2]))
    (tmp_path / "jsonl" / "b.jsonl").write_text("\n" + lines(ROWS[2:]))
    (tmp_path / "csv" / "a.csv").write_text("prompt,answer\n0?,0\n1?,1\n2?,2\n3?,3\n")
    with gzip.open(tmp_path / "gz" / "a.jsonl.gz", "wt") as file:
        file.write(lines(ROWS))
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"test": datasets.Dataset.from_list(ROWS)}).save_to_disk(str(tmp_path / "splits"))
    return tmp_path


@pytest.mark.parametrize(
    "path",
    [
        "jsonl",
        "jsonl/*.jsonl",
        "**/?.jsonl",
        "csv",
        "csv/a.csv",
        "gz",
        "gz/a.jsonl.gz",
        "saved",
        "~/jsonl",
        "~/*/?.csv",
    ],
)
def test_a_path_names_a_file_a_folder_or_a_pattern(folder: Path, path: str) -> None:
    source = DatasetConfig(path=path if path.startswith("~") else str(folder / path))
    assert load_rows(source).to_list() == ROWS


def test_a_split_of_a_saved_folder_is_named(folder: Path) -> None:
    source = DatasetConfig(path=str(folder / "splits"))
    with pytest.raises(ValueError, match="has no split 'train'; it has test"):
        load_rows(source)
    assert load_rows(source.model_copy(update={"split": "test"})).to_list() == ROWS


def test_values_of_a_table_are_text_and_an_empty_cell_is_none(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_bytes(b'\xef\xbb\xbfprompt\tanswer\n"two\nlines"\t007\nNA\t\nx\t1.50\n')
    found = load_source(DatasetConfig(path=str(tmp_path / "t.tsv")))
    assert found.rows.to_list() == [
        {"prompt": "two\nlines", "answer": "007"}, {"prompt": "NA", "answer": None}, {"prompt": "x", "answer": "1.50"},
    ]  # fmt: skip
    assert [found.places[index].rpartition(":")[2] for index in range(3)] == ["2)", "4)", "5)"]


def test_rows_of_several_files_are_named_after_their_file(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    source = DatasetConfig(path=(str(folder / "jsonl/a.jsonl"), str(folder / "jsonl/b.jsonl")))
    ids = [prompt.id for prompt in load_prompts(source, tokenizer, max_tokens=9).prompts]
    assert ids == [f"{folder}/jsonl/{name}" for name in ("a.jsonl:0", "a.jsonl:1", "b.jsonl:0", "b.jsonl:1")]
    assert load_source(source).places[3] == f"row 1 ({folder}/jsonl/b.jsonl:3)"


# Without a time in its header, so that all workers of the tests make the same bytes.
_SHORT_GZIP = gzip.compress(b'{"a": 1}\n{"a": 2}\n' * 99, mtime=0)[:-20]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("x.jsonl", b'{"a": 1}\n\n{"a": \n{"a": 2}\n[3]\n', ["x.jsonl:3: the line is not a JSON", "x.jsonl:5: "]),
        ("x.jsonl", '{"a": "caf\u00e9"}\n'.encode("latin-1"), ["x.jsonl:1: the file is not UTF-8", "0xe9", "iconv -f"]),
        ("x.jsonl", '{"a": "caf\u00e9'.encode()[:-1], ["x.jsonl:1: the file is not UTF-8", "0xc3"]),
        ("x.csv", b'a,b\n1,2\n"3"x,4\n', ["x.csv:3: "]),
        ("x.json", b'[{"a": 1},\n {"a": }]', ["x.json:2: the file is not JSON"]),
        ("x.jsonl.gz", _SHORT_GZIP, ["cannot be unpacked", "download it again"]),
        ("x.csv", b'a,b\n1,2\n3\n4,5,6\n', ["x.csv:3: the row has fewer values", "x.csv:4: the row has more values"]),
        ("x.csv", "a\ncaf\u00e9\n".encode("latin-1"), ["x.csv:2: the file is not UTF-8 text"]),
        ("x.txt", b"1\n", ["x.txt should end in one of .jsonl, .json, .parquet, .csv, .tsv"]),
    ],
)  # fmt: skip
def test_the_lines_of_a_damaged_file_are_named(tmp_path: Path, name: str, content: bytes, told: list[str]) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as caught:
        load_rows(DatasetConfig(path=str(tmp_path / name)))
    assert all(each in str(caught.value) for each in told), caught.value


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("jsonl/aa.jsonl", "did you mean {}/jsonl/a.jsonl?"),
        ("jsonl/*.parquet", "no file matches {}/jsonl/*.parquet"),
        (".cache", "the folder {}/.cache has no file that ends in"),
        ("nowhere", "there is no file {}/nowhere"),
    ],
)
def test_a_path_that_names_nothing_is_refused(folder: Path, path: str, told: str) -> None:
    (folder / ".cache").mkdir()
    with pytest.raises(ValueError) as caught:
        load_rows(DatasetConfig(path=str(folder / path)))
    assert told.format(folder) in str(caught.value)


BAD = [
    {"prompt": "1?", "answer": "#### 1"},
    {"prompt": " ", "answer": "#### 2"},
    {"prompt": "3?", "answer": None},
    {"prompt": "4?", "answer": "four"},
    {"prompt": "5?", "answer": "five"},
]


def test_bad_rows_are_all_named_or_left_out_and_counted(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    (tmp_path / "rows.jsonl").write_text(lines(BAD))
    source = DatasetConfig(path=str(tmp_path / "rows.jsonl"), reference_after="####")
    with pytest.raises(ValueError) as caught:
        load_prompts(source, tokenizer, max_tokens=9)
    for told in (
        "4 of 5 rows of data cannot be used",
        "data.on_bad_row=drop",
        "rows.jsonl:2): no question in column 'prompt'",
        "rows.jsonl:3): no value in column 'answer'",
        "rows.jsonl:4): no text after '####' (data.reference_after) in column 'answer' (data.reference): 'four'",
    ):
        assert told in str(caught.value)
    dropping = source.model_copy(update={"on_bad_row": "drop"})
    found = load_prompts(dropping, tokenizer, max_tokens=9)
    assert [(prompt.id[-1], prompt.reference) for prompt in found.prompts] == [("0", "1")]
    assert sorted(found.left_out.values()) == [1, 1, 2]
    with pytest.raises(ValueError, match="5 of 5 rows of data cannot be used; check the columns"):
        load_prompts(dropping.model_copy(update={"reference_after": "!!"}), tokenizer, max_tokens=9)


def test_all_missing_columns_are_named_at_once(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [{"question": "1?", "info": '{"ground_truth": "1"}', "reward_model": {"ground_truth": "1"}}]
    (tmp_path / "rows.jsonl").write_text(lines(rows))
    source = DatasetConfig(path=str(tmp_path / "rows.jsonl"), prompt="questions", reference="info.truth")
    with pytest.raises(ValueError) as caught:
        load_prompts(source, tokenizer, max_tokens=9)
    assert "data.prompt='questions' is not a column" in str(caught.value)
    assert "did you mean question?" in str(caught.value)
    assert "data.reference='info.truth' is not a column" in str(caught.value)
    assert "info.ground_truth" in str(caught.value)
    with pytest.raises(
        ValueError, match=r"'reward_model' is a column with .*; did you mean reward_model\.ground_truth"
    ):
        load_prompts(
            source.model_copy(update={"prompt": "question", "reference": "reward_model"}), tokenizer, max_tokens=9
        )


def test_an_answer_is_read_after_the_thinking(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    said = ("<think>Maybe #### 7, or \\boxed{7}.</think>So \\boxed{3}. #### 3", "<think>It is \\boxed{7}. #### 7")
    (tmp_path / "rows.jsonl").write_text(lines([{"prompt": "1?", "answer": text} for text in said]))
    source = DatasetConfig(path=str(tmp_path / "rows.jsonl"), on_bad_row="drop")
    for keys in ({"reference_after": "#### "}, {"reference_boxed": True}):
        prompts = load_prompts(source.model_copy(update=keys), tokenizer, max_tokens=9)
        assert [prompt.reference for prompt in prompts.prompts] == ["3"]
        assert [*prompts.left_out] == ["thinking that does not end in column 'answer' (data.reference), so there is no "
                                       "answer after it"]  # fmt: skip


def test_repeated_and_contradicting_questions_are_counted(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [{"prompt": "1?", "answer": answer} for answer in ("1", "1", "2")] + [{"prompt": "2?", "answer": "2"}]
    (tmp_path / "rows.jsonl").write_text(lines(rows))
    source = DatasetConfig(path=str(tmp_path / "rows.jsonl"))
    prompts = load_prompts(source, tokenizer, max_tokens=9)
    assert prompts.notes == ("2 of 4 rows of data repeat the question of an earlier row",)
    file = tmp_path / "rows.jsonl"
    assert prompts.contradictions.startswith("1 question(s) of data stand in several rows")
    assert f"row 0 ({file}:1) and row 2 ({file}:3) ('1' and '2'). Correct" in prompts.contradictions
    with pytest.raises(ValueError, match=r"data\.template contains \{answer\}, the column of the reference answer"):
        load_prompts(source.model_copy(update={"template": "{prompt} {answer}"}), tokenizer, max_tokens=9)
    (tmp_path / "rows.jsonl").write_text(lines(ROWS))
    prompts = load_prompts(source, tokenizer, max_tokens=9)
    assert prompts.notes == () and not prompts.contradictions


def test_reading_shows_no_bars_of_a_library(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert not datasets.are_progress_bars_disabled()
    assert len(load_rows(DatasetConfig(path=str(folder / "jsonl")))) > 0
    assert capfd.readouterr().err == ""
    assert not datasets.are_progress_bars_disabled()
