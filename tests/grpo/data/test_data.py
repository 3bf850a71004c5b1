"""From sources to prompts and supervised rows, and the cursor that resumes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_policy import make_tiny_policy
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from grpo.config import DatasetConfig, NewPolicyConfig
from grpo.config.evaluation import TaskConfig
from grpo.config.inputs import dataset_problems
from grpo.data.chat import conversation, render
from grpo.data.drawing.cursor import Cursor
from grpo.data.prompts import load_prompts
from grpo.data.rows import HubUnreachable, load_rows
from grpo.data.supervised import load_supervised
from grpo.evaluation.problems import load_problems
from grpo.policy.new import END

ROWS = [{"prompt": "1+1=?", "answer": 2, "level": "easy"}, {"prompt": "12+34=?", "answer": 46, "level": "hard"}]
CHAT = (
    "{{ '<s>' }}{% for one in messages %}[{{ one['role'] }}:{{ one['content'] }}]{% endfor %}"
    "{% if add_generation_prompt %}[bot:{% endif %}"
)
GSM8K = Path(__file__).parents[3].parent / "shared" / "data" / "gsm8k_train.jsonl"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    new = NewPolicyConfig(hidden_size=8, layers=1, heads=2, key_value_heads=1, intermediate_size=8)
    made: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(make_tiny_policy(tmp_path_factory.mktemp("p"), new))
    return made


@pytest.fixture
def chatty(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> PreTrainedTokenizerBase:
    """A tokenizer with a chat template and a beginning-of-sequence token that it puts before plain text."""
    from tokenizers.processors import TemplateProcessing

    tokenizer.save_pretrained(tmp_path / "chatty")
    made = AutoTokenizer.from_pretrained(tmp_path / "chatty")
    made.add_special_tokens({"bos_token": "<s>"})
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", made.bos_token_id)]
    )
    made.chat_template = CHAT
    return made


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> DatasetConfig:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return DatasetConfig(path=str(path))


def count_up(count: int, offset: int = 0) -> Iterator[dict[str, Any]]:
    """A generator of rows, named in a test's configuration."""
    for number in range(count):
        yield {"prompt": f"{number}", "answer": number + offset} | ({"note": "odd"} if number % 2 else {})


def test_jsonl_parquet_and_generator_give_the_same_prompts(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    monkeypatch.setattr("grpo.data.arithmetic.rows_of_a_test", lambda: ROWS, raising=False)
    sources = [
        write_jsonl(tmp_path / "rows.jsonl", ROWS),
        DatasetConfig(path=str(tmp_path / "rows.parquet")),
        DatasetConfig(generator="grpo.data.arithmetic:rows_of_a_test"),
    ]
    for source in sources:
        prompts = load_prompts(source, tokenizer, max_tokens=20).prompts
        assert [(one.text, one.reference) for one in prompts] == [("1+1=?", 2), ("12+34=?", 46)]
        assert [dict(one.row)["level"] for one in prompts] == ["easy", "hard"]
        assert tokenizer.decode(prompts[1].token_ids) == "12+34=?"
        assert len({one.id for one in prompts}) == 2


def test_a_generator_that_moved_answers_to_its_first_name_and_names_its_prompts_alike(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    for module in ("arithmetic", "expressions"):
        sources = [
            DatasetConfig(generator=f"{name}:questions", options={"count": 3})
            for name in (f"grpo.{module}", f"grpo.data.{module}")
        ]
        before, today = (load_prompts(source, tokenizer, max_tokens=200).prompts for source in sources)
        # The seeds of sampling come from these names.
        assert before == today and before[0].id == f"grpo.{module}:questions:0"


def test_columns_are_mapped_and_rows_limited(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [{"question": f"{number}?", "solution": str(number)} for number in range(9)]
    source = write_jsonl(tmp_path / "rows.jsonl", rows).model_copy(
        update={"prompt": "question", "reference": "solution", "limit": 4}
    )
    found = load_prompts(source, tokenizer, max_tokens=20).prompts
    assert [one.reference for one in found] == ["0", "1", "2", "3"]
    assert len(load_rows(source.model_copy(update={"limit": 100}))) == 9


def test_the_generator_gets_its_options_and_may_leave_columns_out() -> None:
    rows = load_rows(DatasetConfig(generator=f"{__name__}:count_up", options={"count": 3, "offset": 5}))
    assert rows[:] == {"prompt": ["0", "1", "2"], "answer": [5, 6, 7], "note": [None, "odd", None]}


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ({"generator": "nowhere.at_all:rows"}, "No module named 'nowhere'"),
        ({"generator": "subprocess:getoutput", "options": {"cmd": "exit 1"}}, "names the module 'subprocess'"),
        ({"generator": "datasets.config:importlib.import_module"}, "has no 'importlib.import_module'"),
        ({"generator": "grpo.data.prompts:dataclass"}, "'dataclasses' of Python's standard library"),
        ({"generator": "grpo.data.arithmetic:nothing"}, "has no 'nothing'"),
        ({"generator": "grpo.data.arithmetic"}, "package.module:function"),
        ({"generator": "grpo.data.arithmetic:questions", "options": {"cuont": 3}}, "does not take data.options"),
        ({"generator": "grpo.data.arithmetic:questions", "options": {"count": 0}}, "has no rows"),
        ({"path": "absent.jsonl"}, "there is no file"),
        ({"path": "rows.txt"}, "there is no file"),
    ],
)
def test_a_source_that_cannot_be_read_is_told(source: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError) as caught:
        load_rows(DatasetConfig(**source))
    assert told in str(caught.value)


def test_a_revision_of_the_hub_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(name: str, subset: str | None = None, **options: Any) -> Any:
        asked.append((name, options.get("revision"), options.get("data_files")))
        raise ConnectionError("no hub here")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(HubUnreachable):
        load_rows(DatasetConfig(hub="lab/rows", revision="abc123"))
    task = {"name": "x", "source": "a test", "verifier": {"use": "exact"}}
    with pytest.raises(HubUnreachable):
        load_problems(
            TaskConfig(data=DatasetConfig(hub="lab/rows", revision="refs/pr/1", files=("rows.jsonl",)), **task)
        )
    assert asked == [("lab/rows", "abc123", None), ("json", None, ["hf://datasets/lab/rows@refs%2Fpr%2F1/rows.jsonl"])]
    (problem,) = dataset_problems("data", DatasetConfig(path="rows.jsonl", revision="abc123"))
    assert "data.revision is a revision on the hub" in problem


def test_the_section_of_a_source_is_named() -> None:
    with pytest.raises(ValueError, match=r"does not take evaluation\.data\.options="):
        load_rows(DatasetConfig(generator="grpo.data.arithmetic:questions", options={"cuont": 3}), "evaluation.data")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("empty.jsonl", b"", "is empty"),
        ("blank.jsonl", b"\n \n", "is empty"),
        ("none.json", b"[]\n", "is empty"),
        ("broken.jsonl", b'{"prompt": "1"}\n{oops\n', "broken.jsonl:2: the line is not a JSON object"),
        ("broken.parquet", b"PAR1 is not all of it", "cannot be read as parquet"),
    ],
)
def test_a_file_that_cannot_be_read_is_told(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as caught:
        load_rows(DatasetConfig(path=str(tmp_path / name)))
    assert told in str(caught.value) and name in str(caught.value)


def test_a_missing_column_is_told_with_those_there_are(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    source = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(ValueError, match=r"data\.reference='solution' is not .* it has prompt, answer, level"):
        load_prompts(source.model_copy(update={"reference": "solution"}), tokenizer, max_tokens=20)
    with pytest.raises(ValueError, match=r"data\.response='response' is not a column"):
        load_supervised(source, tokenizer, max_tokens=20)


@pytest.mark.parametrize("empty", [None, "", " \n"])
def test_an_empty_cell_is_told_with_its_row(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, empty: str | None
) -> None:
    source = write_jsonl(tmp_path / "rows.jsonl", [*ROWS, {"prompt": "3", "answer": empty, "level": "x"}])
    with pytest.raises(ValueError, match=r"row 2 \(.*rows\.jsonl:3\): no value in column 'answer'"):
        load_prompts(source, tokenizer, max_tokens=20)


def test_prompts_that_do_not_fit_are_left_out_and_counted(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [{"prompt": "1" * length, "answer": length} for length in (3, 4, 5, 9)]
    source = write_jsonl(tmp_path / "rows.jsonl", rows)
    found = load_prompts(source, tokenizer, max_tokens=4)
    assert [one.reference for one in found.prompts] == [3, 4]
    assert found.dropped == 2
    # A prompt keeps its id whatever else is left out.
    ids = {one.reference: one.id for one in load_prompts(source, tokenizer, max_tokens=100).prompts}
    assert ids[9] == f"{source.path}:3"
    assert {one.reference: one.id for one in found.prompts} == {3: ids[3], 4: ids[4]}


def test_where_no_prompt_fits_the_shortest_is_told(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    source = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(ValueError, match=r"none of the 2 prompts .*rollout\.max_prompt_tokens=4.* the shortest has 5"):
        load_prompts(source, tokenizer, max_tokens=4)


def test_the_template_is_filled_once(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    source = DatasetConfig(path="x", template="{prompt};{x}")
    asked = [conversation(source, question, {"y": "3"}) for question in ("1 {prompt}{y}", "2")]
    assert render(source, tokenizer, asked) == ["1 {prompt}{y};{x}", "2;{x}"]


def test_a_chat_template_is_used_where_there_is_one(tmp_path: Path, chatty: PreTrainedTokenizerBase) -> None:
    source = write_jsonl(tmp_path / "rows.jsonl", ROWS).model_copy(update={"system": "0", "template": "{prompt}!"})
    prompt = load_prompts(source, chatty, max_tokens=100).prompts[0]
    assert prompt.text == "<s>[system:0][user:1+1=?!][bot:"
    # The template wrote the first token itself; the tokenizer must not write another.
    assert list(prompt.token_ids).count(chatty.bos_token_id) == 1
    without = source.model_copy(update={"chat_template": "never"})
    with pytest.raises(
        ValueError, match=r"data\.system needs the policy's chat template, but data.chat_template=never"
    ):
        load_prompts(without, chatty, max_tokens=100)
    plain = load_prompts(without.model_copy(update={"system": None}), chatty, max_tokens=100).prompts[0]
    assert plain.text == "1+1=?!"
    assert list(plain.token_ids).count(chatty.bos_token_id) == 1
    assert plain.token_ids[0] == chatty.bos_token_id


ASKED = [{"role": "system", "content": "0", "name": None}, {"role": "user", "content": "1+1=?"}]
# As verl and TRL lay out their rows.
VERL = {"prompt": ASKED, "reward_model": {"style": "rule", "ground_truth": "2"}, "extra_info": {"index": 7}}
TRL = {"prompt": ASKED[1:], "completion": [{"role": "assistant", "content": "2"}], "answer": "2"}


def test_chat_messages_go_through_the_chat_template(tmp_path: Path, chatty: PreTrainedTokenizerBase) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([VERL, VERL]), tmp_path / "rows.parquet")
    source = DatasetConfig(
        path=str(tmp_path / "rows.parquet"), reference="reward_model.ground_truth", template="{prompt}!"
    )
    prompt = load_prompts(source, chatty, max_tokens=100).prompts[1]
    assert prompt.text == "<s>[system:0][user:1+1=?!][bot:"
    assert prompt.reference == "2" and prompt.row["extra_info"]["index"] == 7
    assert list(prompt.token_ids).count(chatty.bos_token_id) == 1
    plain = load_prompts(
        write_jsonl(tmp_path / "rows.jsonl", [TRL]).model_copy(update={"system": "0"}), chatty, max_tokens=100
    )
    assert plain.prompts[0].text == "<s>[system:0][user:1+1=?][bot:"


def test_chat_messages_of_supervised_rows(tmp_path: Path, chatty: PreTrainedTokenizerBase) -> None:
    source = write_jsonl(tmp_path / "rows.jsonl", [TRL]).model_copy(update={"response": "completion"})
    (row,) = load_supervised(source, chatty, max_tokens=100).sequences
    assert chatty.decode(row.token_ids[: row.prompt_length]).endswith(":")
    assert "1+1=?" in chatty.decode(row.token_ids[: row.prompt_length])
    assert chatty.decode(row.token_ids[row.prompt_length :]) == f"2{chatty.eos_token}"
    with pytest.raises(ValueError, match=r"column 'prompt' \(data\.response\) has 2 message.*a single message"):
        load_supervised(
            write_jsonl(tmp_path / "two.jsonl", [VERL]).model_copy(update={"response": "prompt"}), chatty, max_tokens=99
        )


@pytest.mark.parametrize(
    ("prompt", "keys", "told"),
    [
        (ASKED, {"chat_template": "never"}, "need the policy's chat template, but held.chat_template=never"),
        (ASKED, {"system": "be kind"}, "already has a system message, and held.system is set"),
        ([*ASKED, {"role": "assistant", "content": "2"}], {}, "ends with a message of 'assistant'"),
        ([{"role": "user", "content": [{"type": "image"}]}], {}, "a part of type 'image'"),
        (["1+1=?"], {}, "rows.jsonl:1): column 'prompt' (held.prompt) is a list, but not of chat messages"),
        (7, {}, "rows.jsonl:1): column 'prompt' (held.prompt) is int; expected text, or a list of chat messages"),
        ({"text": "1+1=?"}, {}, "is dict"),
    ],
)
def test_a_question_that_cannot_be_asked_is_refused(
    tmp_path: Path, chatty: PreTrainedTokenizerBase, prompt: object, keys: dict[str, Any], told: str
) -> None:
    source = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": prompt, "answer": "2"}]).model_copy(update=keys)
    with pytest.raises(ValueError) as caught:
        load_prompts(source, chatty, max_tokens=100, where="held")
    assert told in str(caught.value)


def test_chat_messages_without_a_chat_template_are_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match="its tokenizer has none; take a policy with a chat template"):
        load_prompts(write_jsonl(tmp_path / "rows.jsonl", [TRL]), tokenizer, max_tokens=100)


def test_nested_columns_are_named_with_dots(tmp_path: Path, chatty: PreTrainedTokenizerBase) -> None:
    source = write_jsonl(tmp_path / "rows.jsonl", [VERL])
    with pytest.raises(ValueError, match=r"held\.reference='truth' .*it has .*reward_model\.ground_truth"):
        load_prompts(source.model_copy(update={"reference": "truth"}), chatty, max_tokens=100, where="held")
    empty = write_jsonl(tmp_path / "empty.jsonl", [VERL, VERL | {"reward_model": None}])
    with pytest.raises(ValueError, match=r"empty\.jsonl:2\): no value in column 'reward_model\.ground_truth'"):
        load_prompts(empty.model_copy(update={"reference": "reward_model.ground_truth"}), chatty, max_tokens=100)


def test_several_files_are_one_source(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    for name, row in zip("ab", ROWS, strict=True):
        write_jsonl(tmp_path / f"{name}.jsonl", [row])
    paths = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    found = load_prompts(DatasetConfig.model_validate({"path": paths}), tokenizer, max_tokens=20).prompts
    assert [one.reference for one in found] == [2, 46] and len({one.id for one in found}) == 2
    with pytest.raises(ValueError, match=r"there is no file .*c\.jsonl"):
        load_rows(DatasetConfig.model_validate({"path": [*paths, str(tmp_path / "c.jsonl")]}))
    with pytest.raises(ValueError, match="expected a file, or a list of files"):
        DatasetConfig.model_validate({"path": [3]})
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "c.parquet")
    with pytest.raises(ValueError, match="different formats"):
        load_rows(DatasetConfig.model_validate({"path": [*paths, str(tmp_path / "c.parquet")]}))


def test_supervised_rows_have_loss_on_response_and_end_only(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [{"prompt": "1+1=?", "response": "<answer>2</answer>"}, {"prompt": "7", "response": ""}]
    found = load_supervised(write_jsonl(tmp_path / "rows.jsonl", rows), tokenizer, max_tokens=50)
    first, second = found.sequences
    assert found.dropped == 0
    assert tokenizer.decode(first.token_ids[: first.prompt_length]) == "1+1=?"
    assert tokenizer.decode(first.token_ids[first.prompt_length :]) == f"<answer>2</answer>{END}"
    assert first.trained_tokens == 4
    # Where there is nothing to say, the end is what is learned.
    assert second.token_ids[second.prompt_length :] == (tokenizer.eos_token_id,)


def test_supervised_rows_carry_no_second_first_token(tmp_path: Path, chatty: PreTrainedTokenizerBase) -> None:
    source = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "1", "response": "2"}])
    for chat_template in ("auto", "never"):
        (row,) = load_supervised(
            source.model_copy(update={"chat_template": chat_template}), chatty, max_tokens=99
        ).sequences
        assert row.token_ids.count(chatty.bos_token_id) == 1
        assert row.token_ids[0] == chatty.bos_token_id


def test_supervised_rows_that_do_not_fit_are_left_out_and_counted(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = [{"prompt": "1" * length, "response": "22"} for length in (1, 2, 3)]
    source = write_jsonl(tmp_path / "rows.jsonl", rows)
    # The end token counts.
    found = load_supervised(source, tokenizer, max_tokens=5)
    assert [row.prompt_length for row in found.sequences] == [1, 2] and found.dropped == 1
    with pytest.raises(ValueError, match=r"none of the 3 rows fits sft\.max_tokens=3; the shortest has 4 tokens"):
        load_supervised(source, tokenizer, max_tokens=3)


def test_a_tokenizer_without_an_end_cannot_be_trained(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.save_pretrained(tmp_path / "endless")
    endless = AutoTokenizer.from_pretrained(tmp_path / "endless")
    endless.eos_token = None
    with pytest.raises(ValueError, match="no end-of-sequence token"):
        load_supervised(write_jsonl(tmp_path / "rows.jsonl", ROWS), endless, max_tokens=99)


@pytest.mark.skipif(not GSM8K.is_file(), reason=f"{GSM8K.name} is not here; it is no part of the repository")
def test_gsm8k_loads(tokenizer: PreTrainedTokenizerBase) -> None:
    source = DatasetConfig(path=os.fspath(GSM8K), prompt="question", template="Question: {prompt}\nAnswer: ")
    assert len(load_rows(source)) == 7473
    found = load_prompts(source.model_copy(update={"limit": 500}), tokenizer, max_tokens=400)
    assert len(found.prompts) + found.dropped == 500
    assert found.dropped < 50
    assert all("####" in one.reference for one in found.prompts)
    assert found.prompts[0].text.startswith("Question: Natalia sold clips")
    assert found.prompts[0].row["answer"] == found.prompts[0].reference


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(0, 8), st.integers(0, 99))
def test_resuming_anywhere_equals_never_having_stopped(items: int, takes: list[int], stop: int, seed: int) -> None:
    uninterrupted = Cursor(range(items), seed)
    expected = [uninterrupted.next(count) for count in takes]
    first = Cursor(range(items), seed)
    found = [first.next(count) for count in takes[:stop]]
    second = Cursor(range(items), seed)
    second.load_state_dict(first.state_dict())
    found += [second.next(count) for count in takes[stop:]]
    assert found == expected


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 20), st.integers(0, 99))
def test_each_epoch_walks_over_everything_once(items: int, seed: int) -> None:
    cursor = Cursor(range(items), seed)
    assert [sorted(cursor.next(items)) for _ in range(3)] == [list(range(items))] * 3


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    def epochs(seed: int) -> list[list[int]]:
        cursor = Cursor(range(50), seed)
        return [cursor.next(50), cursor.next(50)]

    assert epochs(1) == epochs(1)
    orders = [*epochs(1), *epochs(2), list(range(50))]
    assert len({tuple(order) for order in orders}) == 5


def test_the_global_random_state_does_not_matter() -> None:
    torch.manual_seed(1)
    first = Cursor(range(30), 5).next(30)
    torch.manual_seed(2)
    assert Cursor(range(30), 5).next(30) == first


def test_other_data_is_refused() -> None:
    state = Cursor(range(10), 0).state_dict()
    with pytest.raises(ValueError, match="10 rows of data, but the data has 9 now"):
        Cursor(range(9), 0).load_state_dict(state)


def test_a_state_survives_a_checkpoint_file(tmp_path: Path) -> None:
    cursor = Cursor(range(7), 3)
    cursor.next(4)
    torch.save(cursor.state_dict(), tmp_path / "state.pt")
    resumed = Cursor(range(7), 3)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert resumed.next(9) == cursor.next(9)


def test_a_checkpoint_of_torchdata_s_loader_goes_on_in_the_same_order() -> None:
    # What torchdata 0.11 wrote of range(10) with seed 3 after 14 items, and what it drew next.
    old = {"items": 10, "epoch": 1, "loader": {"_num_yielded": 4, "_sampler_iter_yielded": 4}}
    cursor = Cursor(range(10), 3)
    cursor.load_state_dict(old)
    assert cursor.next(8) == [0, 8, 9, 6, 5, 2, 3, 4]


def test_a_walk_passes_over_items_and_keeps_the_order_of_the_others() -> None:
    all_items, without = Cursor(range(10), 3).next(30), frozenset({2, 5})
    cursor = Cursor(range(10), 3, without)
    expected = [item for item in all_items if item not in without]
    assert cursor.next(11) == expected[:11]
    # Whatever is passed over, a walk goes on where another was.
    resumed = Cursor(range(10), 3, without)
    resumed.load_state_dict(cursor.state_dict())
    assert resumed.next(13) == expected[11:24]
