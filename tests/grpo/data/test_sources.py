"""Several sources in one run: their shares, their order, a resume; and questions that are held out of the training."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_policy import make_tiny_policy
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from grpo.config import NewPolicyConfig, RolloutConfig, TrainingDataConfig
from grpo.data.drawing.cursor import Cursor, Mixture
from grpo.data.prompts import check_prompt_count, load_prompts
from grpo.data.sources import SourcePrompts, load_sources, split_lines


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    new = NewPolicyConfig(hidden_size=8, layers=1, heads=2, key_value_heads=1, intermediate_size=8)
    made: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(make_tiny_policy(tmp_path_factory.mktemp("p"), new))
    return made


def mixture(sizes: dict[str, int], ratios: dict[str, float], seed: int = 3) -> Mixture[tuple[str, int]]:
    cursors = {
        name: Cursor([(name, number) for number in range(size)], seed, source=name) for name, size in sizes.items()
    }
    return Mixture(cursors, ratios)


RATIOS = st.lists(st.sampled_from((0.1, 0.2, 0.7, 1.0, 1.5, 2.0, 3.0, 10.0)), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(RATIOS)
def test_after_any_number_of_prompts_each_source_has_given_its_share(ratios: list[float]) -> None:
    named = {f"s{at}": ratio for at, ratio in enumerate(ratios)}
    drawn = Counter[str]()
    cursor = mixture(dict.fromkeys(named, 4), named)
    for count in range(1, 150):
        drawn[cursor.next(1)[0][0]] += 1
        for name, ratio in named.items():
            assert abs(drawn[name] - count * ratio / sum(ratios)) < 1 - 1e-9


def test_two_to_one_is_two_to_one_in_every_three() -> None:
    names = [name for name, _ in mixture({"a": 9, "b": 9}, {"a": 2, "b": 1}).next(9)]
    assert names == ["a", "a", "b"] * 3


def test_the_order_within_a_source_does_not_depend_on_the_others() -> None:
    two = mixture({"a": 20, "b": 20}, {"a": 1, "b": 1}).next(80)
    three = mixture({"a": 20, "b": 20, "c": 5}, {"a": 1, "b": 3, "c": 1}).next(200)
    alone = {name: Cursor(range(20), 3, source=name).next(40) for name in "ab"}
    for drawn in (two, three):
        for name, order in alone.items():
            assert [number for each, number in drawn if each == name][:40] == order
    # Sources of the same size do not walk in step.
    assert alone["a"] != alone["b"]


def test_a_small_source_starts_over_while_a_large_one_goes_on() -> None:
    drawn = mixture({"small": 3, "large": 50}, {"small": 1, "large": 1}).next(60)
    small = [number for name, number in drawn if name == "small"]
    assert [sorted(small[at : at + 3]) for at in range(0, 30, 3)] == [[0, 1, 2]] * 10
    assert len({number for name, number in drawn if name == "large"}) == 30


@settings(max_examples=40, deadline=None)
@given(RATIOS, st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 6))
def test_a_resumed_mixture_draws_what_an_uninterrupted_one_draws(
    ratios: list[float], takes: list[int], stop: int
) -> None:
    named = {f"s{at}": ratio for at, ratio in enumerate(ratios)}
    sizes = {name: at + 2 for at, name in enumerate(named)}
    uninterrupted, first, second = (mixture(sizes, named) for _ in range(3))
    expected = [uninterrupted.next(count) for count in takes]
    drawn = [first.next(count) for count in takes[:stop]]
    second.load_state_dict(first.state_dict())
    assert drawn + [second.next(count) for count in takes[stop:]] == expected


def test_the_state_of_a_mixture_survives_a_checkpoint_file(tmp_path: Path) -> None:
    sizes, ratios = {"a": 7, "b": 4}, {"a": 2.0, "b": 1.0}
    cursor, resumed = mixture(sizes, ratios), mixture(sizes, ratios)
    cursor.next(10)
    torch.save(cursor.state_dict(), tmp_path / "state.pt")
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert resumed.next(9) == cursor.next(9)


def test_a_new_ratio_counts_from_the_resume_on() -> None:
    sizes = {"a": 50, "b": 50}
    cursor = mixture(sizes, {"a": 9, "b": 1})
    seen = cursor.next(20)
    resumed = mixture(sizes, {"a": 1, "b": 1})
    resumed.load_state_dict(cursor.state_dict())
    later = resumed.next(20)
    # Source b does not make up for the 16 prompts that it is behind, and no prompt comes a second time.
    assert Counter(name for name, _ in later) == {"a": 10, "b": 10}
    assert not set(seen) & set(later)


def test_a_resume_with_other_sources_is_refused() -> None:
    one, two = Cursor(range(5), 3), mixture({"a": 5, "b": 5}, {"a": 1, "b": 1})
    renamed, smaller = mixture({"a": 5, "c": 5}, {"a": 1, "c": 1}), mixture({"a": 5, "b": 4}, {"a": 1, "b": 1})
    for cursor, state, told in (
        (one, two.state_dict(), "data.sources: 'a', 'b'; now there are: none"),
        (two, one.state_dict(), "data.sources: none; now there are: 'a', 'b'"),
        (renamed, two.state_dict(), "data.sources: 'a', 'b'; now there are: 'a', 'c'"),
        (smaller, two.state_dict(), "5 rows of the source 'b', but the data has 4 now"),
    ):
        with pytest.raises(ValueError, match=told):
            cursor.load_state_dict(state)


def test_rows_without_a_usable_reference_do_not_change_the_shares() -> None:
    names = {"a": Cursor(["a"] * 6, 0, frozenset({0, 2, 4}), "a"), "b": Cursor(["b"] * 6, 0, source="b")}
    assert Counter(Mixture(names, {"a": 1, "b": 1}).next(40)) == {"a": 20, "b": 20}


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def sums(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"prompt": f"{number}+1=?", "answer": str(number + 1)} for number in range(start, start + count)]


@pytest.fixture
def two(tmp_path: Path) -> dict[str, Any]:
    """Two sources in the shapes of GSM8K and MATH."""
    worked = [{"question": f"{number}*2=?", "answer": f"twice #### {2 * number}"} for number in range(6)]
    boxed = [{"problem": f"{number}-1=?", "solution": f"so \\boxed{{{number - 1}}}"} for number in range(4)]
    gsm8k = {"name": "gsm8k", "path": write(tmp_path / "g.jsonl", worked), "prompt": "question", "ratio": 2}
    math = {"name": "math", "path": write(tmp_path / "m.jsonl", boxed), "prompt": "problem", "reference": "solution"}
    return {"sources": [{**gsm8k, "reference_after": "####"}, {**math, "reference_boxed": True}]}


def load(data: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, SourcePrompts]:
    return load_sources(TrainingDataConfig.model_validate(data), tokenizer, max_tokens=30)


def test_each_source_has_a_description_of_its_own(
    two: dict[str, Any], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    sources = load({**two, "template": "Q {prompt}"}, tokenizer)
    gsm8k, math = (sources[name].training.prompts for name in ("gsm8k", "math"))
    assert (gsm8k[1].text, gsm8k[1].reference, gsm8k[1].source) == ("Q 1*2=?", "2", "gsm8k")
    assert (math[1].text, math[1].reference, math[1].source) == ("Q 1-1=?", "0", "math")
    assert gsm8k[1].id == f"gsm8k:{tmp_path / 'g.jsonl'}:1"
    assert {prompt.row["data_source"] for prompt in math} == {"math"}


def test_a_column_of_the_data_is_not_replaced_by_the_source(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    path = write(tmp_path / "verl.jsonl", [{**row, "data_source": "lab/sums"} for row in sums(3)])
    prompts = load({"sources": [{"name": "verl", "path": path}]}, tokenizer)["verl"].training.prompts
    assert {prompt.row["data_source"] for prompt in prompts} == {"lab/sums"}


def test_a_single_source_is_read_as_before(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    data = {"path": write(tmp_path / "rows.jsonl", sums(5))}
    single = load(data, tokenizer)
    plain = load_prompts(TrainingDataConfig.model_validate(data), tokenizer, max_tokens=30)
    assert single == {"": SourcePrompts(plain)}
    assert [prompt.id for prompt in plain.prompts][:1] == [f"{tmp_path / 'rows.jsonl'}:0"]
    assert "data_source" not in plain.prompts[0].row


def test_the_problems_of_all_sources_are_told_with_their_sources(
    two: dict[str, Any], tokenizer: PreTrainedTokenizerBase
) -> None:
    two["sources"][0]["prompt"], two["sources"][1]["path"] = "questoin", "/nowhere/m.jsonl"
    with pytest.raises(ValueError) as failure:
        load(two, tokenizer)
    first, second = str(failure.value).splitlines()
    assert first.startswith("data.sources.gsm8k: data.sources.gsm8k.prompt='questoin' is not a column of the data")
    assert second.startswith("data.sources.math: there is no file /nowhere/m.jsonl")


def test_a_source_too_small_for_its_part_of_a_step_is_refused(
    two: dict[str, Any], tokenizer: PreTrainedTokenizerBase
) -> None:
    prompts = load(two, tokenizer)["math"].training
    shares = TrainingDataConfig.model_validate(two).shares
    assert shares == {"gsm8k": pytest.approx(2 / 3), "math": pytest.approx(1 / 3)}
    check_prompt_count(prompts, RolloutConfig(prompts_per_step=12), name="math", share=shares["math"])
    with pytest.raises(ValueError, match=r"the source 'math' has 4 prompts that fit, fewer than its 5 of rollout\."):
        check_prompt_count(prompts, RolloutConfig(prompts_per_step=13), name="math", share=shares["math"])


def texts(source: SourcePrompts) -> tuple[set[str], set[str]]:
    assert source.held_out is not None
    return {each.text for each in source.training.prompts}, {each.text for each in source.held_out.prompts}


@pytest.mark.parametrize(("part", "count"), [(4, 4), (0.25, 5), (0.001, 1)])
def test_a_part_of_the_questions_is_held_out(
    part: float, count: int, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    data = {"path": write(tmp_path / "rows.jsonl", sums(20)), "validation": part}
    training, held_out = texts(load(data, tokenizer)[""])
    assert len(held_out) == count and len(training) == 20 - count and not training & held_out
    # The order of the rows does not choose: neither the first questions nor the last, and the same if rows are added
    # that are not chosen.
    assert held_out != {row["prompt"] for row in sums(count)}
    backwards = {**data, "path": write(tmp_path / "back.jsonl", sums(20)[::-1])}
    assert texts(load(backwards, tokenizer)[""]) == (training, held_out)


def test_a_held_out_question_does_not_stay_in_the_training(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    # Each question stands three times in the first source, and once in the second, which holds out none.
    sources = [
        {"name": "thrice", "path": write(tmp_path / "3.jsonl", sums(10) * 3), "validation": 4},
        {"name": "once", "path": write(tmp_path / "1.jsonl", sums(15))},
    ]
    loaded = load({"sources": sources}, tokenizer)
    training, held_out = texts(loaded["thrice"])
    assert len(held_out) == 4 and loaded["thrice"].held_out is not None
    assert len(loaded["thrice"].held_out.prompts) == 4
    assert not training & held_out and len(loaded["thrice"].training.prompts) == 18
    assert loaded["once"].held_out is None
    assert {each.text for each in loaded["once"].training.prompts} == {row["prompt"] for row in sums(15)} - held_out
    assert [line for name, source in loaded.items() for line in split_lines(name, source)] == [
        "thrice training: 4 questions are held out for the evaluation (data.validation); 8 rows repeat a held-out "
        "question and are left out",
        "once training: 0 questions are held out for the evaluation (data.validation); 4 rows repeat a held-out "
        "question and are left out",
    ]


def test_sources_take_the_part_from_the_section(two: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    two["sources"][1]["validation"] = None
    loaded = load({**two, "validation": 2}, tokenizer)
    assert len(texts(loaded["gsm8k"])[1]) == 2
    assert loaded["math"].held_out is None


@pytest.mark.parametrize("part", [20, 40, 0.99])
def test_a_part_that_leaves_nothing_to_train_on_is_refused(
    part: float, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    data = {"path": write(tmp_path / "rows.jsonl", sums(20) * 2), "validation": part}
    with pytest.raises(ValueError, match=rf"data.validation={part} leaves no question for training, of 20 different"):
        load(data, tokenizer)


def test_a_source_of_which_all_questions_are_held_out_elsewhere_is_refused(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    held_out = texts(load({"path": write(tmp_path / "a.jsonl", sums(10)), "validation": 3}, tokenizer)[""])[1]
    copies = [row for row in sums(10) if row["prompt"] in held_out]
    sources = [
        {"name": "a", "path": str(tmp_path / "a.jsonl"), "validation": 3},
        {"name": "b", "path": write(tmp_path / "b.jsonl", copies)},
    ]
    with pytest.raises(ValueError, match=r"all 3 prompts of data\.sources\.b repeat questions that are held out"):
        load({"sources": sources}, tokenizer)


def test_a_generator_is_a_source_too(tokenizer: PreTrainedTokenizerBase) -> None:
    sources = [{"name": "made", "generator": f"{__name__}:made", "options": {"count": 3}}]
    assert [each.id for each in load({"sources": sources}, tokenizer)["made"].training.prompts] == [
        f"made:{__name__}:made:{number}" for number in range(3)
    ]


def made(count: int) -> Iterator[dict[str, Any]]:
    yield from sums(count)
