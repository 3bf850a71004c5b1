"""The worked examples of docs/verifiers.md, run as they are written."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import yaml

from grpo.config import DatasetConfig, VerificationConfig, VerifierConfig
from grpo.config.verifiers import specs_of
from grpo.data.rows import load_rows
from rewards.build import BUILT_IN, VerifierSpec, build_verifier
from rewards.compose import combine
from rewards.named_code import locate
from rewards.pool import VerifierPool
from rewards.selection import check_rows, choose
from rewards.verdict import Status

PAGE = Path(__file__).resolve().parents[2] / "docs" / "verifiers.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_the_worked_example_of_an_own_verifier(tmp_path, monkeypatch) -> None:
    code, config = blocks("python")[0], blocks("yaml")[0]
    (tmp_path / code.splitlines()[0].removeprefix("# ")).write_text(code)
    monkeypatch.chdir(tmp_path)
    specs = [VerifierSpec(**entry) for entry in yaml.safe_load(config)["verifiers"]]
    prompt = {"related": ["TP53"], "completion_tokens": 896}
    shape = "<think>Looking at the symptoms.</think><answer>{}</answer>"

    def reward(completion: str) -> float | None:
        verdicts = {spec.name: pool.submit(spec.name, completion, "BRCA1", prompt).result(30) for spec in specs}
        return combine(specs, verdicts).value

    with VerifierPool(specs, workers=1) as pool:
        assert reward(shape.format("BRCA1")) == pytest.approx(1.0 + 0.1 - 0.25)
        assert reward(shape.format("TP53")) == pytest.approx(0.2 + 0.1 - 0.25)
        assert reward(shape.format("KRAS")) == pytest.approx(0.1 - 0.25)
        assert reward("BRCA1") == 0.0
        assert pool.submit("gene", "nothing", "BRCA1", prompt).result(30).status is Status.UNPARSEABLE


def test_the_mixed_data_example(tmp_path) -> None:
    specs = specs_of([VerifierConfig.model_validate(entry) for entry in yaml.safe_load(blocks("yaml")[1])["verifiers"]])
    rows = [
        ("algebra", "5/6", "<think>a</think><answer>\\boxed{\\frac{5}{6}}</answer>", {"answer", "form"}, 1.1),
        ("geometry", "7", "\\boxed{7}", {"answer", "form"}, 1.0),
        ("trivia", "Paris", "<think>a</think><answer>paris</answer>", {"place", "form"}, 1.1),
    ]
    with VerifierPool(specs, workers=1) as pool:
        for kind, reference, completion, judges, expected in rows:
            chosen = choose(specs, {"kind": kind})
            verdicts = {one.name: pool.submit(one.name, completion, reference, {}).result(30) for one in chosen}
            assert set(verdicts) == judges
            assert combine(chosen, verdicts).value == pytest.approx(expected)
    with pytest.raises(ValueError, match="kind='history'"):
        check_rows(specs, [("row 3", {"kind": "history"})])


def test_the_reasoning_gym_example() -> None:
    pytest.importorskip("reasoning_gym", reason="the extra `gym` is not installed")
    config = yaml.safe_load(blocks("yaml")[2])
    assert config["data"]["options"]["task"] == "leg_counting"
    source = DatasetConfig.model_validate(config["data"] | {"limit": 20})
    rows = load_rows(source).to_list()
    specs = specs_of([VerifierConfig.model_validate(entry) for entry in config["verifiers"]])
    with VerifierPool(specs, workers=1) as pool:
        for row in rows:
            assert row[source.prompt] and source.template.count("{prompt}") == 1
            right, other = (f"Let me see.\n<answer>{answer}</answer>" for answer in (row["answer"], "many"))
            assert pool.submit("answer", right, row["answer"], row).result(60).status is Status.CORRECT
            assert pool.submit("answer", other, row["answer"], row).result(60).status is Status.WRONG


def test_the_pool_example() -> None:
    names: dict[str, object] = {}
    (example,) = [block for block in blocks("python") if "with VerifierPool(" in block]
    exec(compile(example, str(PAGE), "exec"), names)
    assert names["verdict"].status is Status.CORRECT
    assert names["report"].calls == 1


def test_the_examples_of_groups_of_prepare_and_of_judges(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("synonyms", "shortest", "judge"):
        (example,) = [block for block in blocks("python") if block.startswith(f"# {name}.py")]
        (tmp_path / f"{name}.py").write_text(example)
    (tmp_path / "names.json").write_text('{"TP53": ["TP53", "p53"]}')
    specs = [
        VerifierSpec("synonyms", "synonyms.py:Synonyms", {"table": "names.json"}),
        VerifierSpec("shortest", "shortest.py:shortest"),
        VerifierSpec("judge", "judge.py:judge"),
    ]
    with VerifierPool(specs, workers=1) as pool:
        (tmp_path / "names.json").unlink()  # read once, before there are workers
        assert pool.submit("synonyms", "it is p53", "TP53", {}).result(30).status is Status.CORRECT
        futures = pool.submit_group("shortest", ["aaa", "a", "aa"], "", {}, {"completion_tokens": [3, 1, 2]})
        assert [future.result(30).score for future in futures] == [0.0, 1.0, 0.5]
        assert pool.submit("judge", "", "", {}).result(30).reason.startswith("KeyError: 'JUDGE_URL'")


def test_every_built_in_verifier_is_in_the_table() -> None:
    page = PAGE.read_text(encoding="utf-8")
    table = page[page.index("| name | what it decides | options |") :].partition("\n\n")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\|([^|]*)\|$", table, re.MULTILINE))
    assert set(BUILT_IN) <= set(rows)
    for name in set(BUILT_IN) - {"math_verify", "environment", "judge"}:
        parameters = inspect.signature(locate(BUILT_IN[name], name)).parameters
        assert set(re.findall(r"`(\w+)`", rows[name])) == set(parameters), name


def test_a_runs_reasoning_tags_go_to_the_verifiers_that_look_for_answers() -> None:
    verifiers = [VerifierConfig(name=name, use=name, options=options) for name, options in
                 (("math", {}), ("exact", {"thinking": ["plan"]}), ("length", {}))]  # fmt: skip
    tags = ("think", ("<<", ">>"))
    specs = specs_of(verifiers, VerificationConfig(thinking=tags))
    assert [dict(spec.options) for spec in specs] == [{"thinking": tags}, {"thinking": ["plan"]}, {}]
    assert build_verifier("math", specs[0].options)("<<\\boxed{5}>>\\boxed{6}", "6", {}).status is Status.CORRECT
    assert [dict(spec.options) for spec in specs_of(verifiers)] == [{}, {"thinking": ["plan"]}, {}]


def test_the_page_lists_the_places_where_each_verifier_looks() -> None:
    page = PAGE.read_text(encoding="utf-8")
    table = page[page.index("| verifier | values of `find`") :].partition("\n\n")[0]
    listed = {}
    for line in table.splitlines()[2:]:
        names, *places = (re.findall(r"`(\w+)`", cell) for cell in line.strip("|").split("|"))
        listed.update(dict.fromkeys(names, places))
    classes = {name: locate(dotted, name) for name, dotted in BUILT_IN.items()}
    finding = {name: made for name, made in classes.items() if "find" in inspect.signature(made).parameters}
    assert sorted(listed) == sorted(finding)
    for name, (default, further) in listed.items():
        assert list(inspect.signature(finding[name]).parameters["find"].default) == default
        with pytest.raises(ValueError, match="find must name one or more of") as caught:
            finding[name](find=["nowhere"])
        known = re.findall(r"one or more of (.*); got", str(caught.value))[0].split(", ")
        assert sorted(known) == sorted(default + further)
