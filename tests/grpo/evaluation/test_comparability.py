"""Which numbers are comparable with published numbers, and with each other."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from fake_sampler import FakeSampler, evaluate
from rich.console import Console

from grpo.config.evaluation import EvalConfig
from grpo.config.file import resolve
from grpo.evaluation.comparability import Comparability, comparability_of
from grpo.evaluation.compare import compare_folders
from grpo.evaluation.jobs import TaskJob
from grpo.evaluation.problems import Problem, load_task


def comparability(*overrides: str, problems: int = 1319, task: str = "gsm8k", **settings: Any) -> Comparability:
    chosen = load_task(task, overrides)
    config = resolve(EvalConfig, {"model": "p", "folder": "f", **settings}, [], "a test")
    rows = tuple(Problem(str(number), "", "", {}, "") for number in range(problems))
    job = TaskJob(chosen, config.sampling_of(chosen), rows, None, {}, Path("f"))
    return comparability_of(chosen, job, config)


def test_a_task_as_published_is_comparable() -> None:
    line = comparability().line()
    assert line and line.startswith("gsm8k: comparable with zero-shot numbers")
    assert comparability(max_tokens=32768).differs == (), "a longer limit is no difference"
    like = comparability(like="deepseek-r1", task="aime24", problems=30)
    assert like.differs == () and (line := like.line()) and line.endswith("sampled like deepseek-r1")


@pytest.mark.parametrize(
    ("overrides", "settings", "differs"),
    [
        ((), {"problems": 40}, "40 of 1,319 problems"),
        ((), {"temperature": 0.7, "k": 2}, "k 2, not 1; temperature 0.7, not 0"),
        ((), {"max_tokens": 40}, "max_tokens 40, not 2,048"),
        (("data.template='{prompt} Go.'",), {}, "data.template is another"),
        (("data.system=Be brief.",), {}, "data.system: None -> 'Be brief.'"),
        (("verifier.use=numeric", "verifier.options={}"), {}, "verifier.use: 'math' -> 'numeric'"),
        ((), {"endpoint": {"extra_body": {"top_k": 1}}, "model": "http://a/v1"}, 'endpoint.extra_body {"top_k": 1}'),
        ((), {"like": "deepseek-r1", "k": 4, "max_tokens": 40000}, "k 4, not 64; max_tokens 40,000, not 32,768"),
    ],
)
def test_every_difference_is_named(overrides: tuple[str, ...], settings: dict[str, Any], differs: str) -> None:
    line = comparability(*overrides, **settings).line()
    assert line and line.startswith("gsm8k: NOT comparable with published numbers: ") and differs in line


def test_a_local_copy_is_named() -> None:
    names = "data.path=mine.jsonl", "data.prompt=q", "data.subset=null"
    found = comparability(*names)
    assert found.differs == () and (line := found.line()) and "Only if mine.jsonl has the rows of openai/gsm8k" in line
    assert comparability(*names, problems=8).differs == ("8 of 1,319 problems",)
    several = comparability("data.path=[a, b]").copy
    assert several == "a and b has the rows of openai/gsm8k."
    shots = comparability("data.path=a", "shots.path=b", task="gsm8k_5shot")
    assert shots.differs == () and shots.copy == "a and b has the rows of openai/gsm8k."
    assert replace(found, numbers="").line() is None


def test_two_evaluations_under_different_conditions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, path = tmp_path / "sums.jsonl", tmp_path / "sums.yaml"
    data.write_text("\n".join(json.dumps({"prompt": f"{n}+{n}=?", "answer": str(2 * n)}) for n in range(3)))
    path.write_text(f"name: sums\nsource: ours\ndata: {{path: {data}}}\nverifier: {{use: math}}\n")
    task = load_task(str(path))
    for folder, name, settings in (("a", "x", {"k": 2, "temperature": 0.7}), ("b", "y", {}), ("c", "x", {})):
        evaluate(monkeypatch, FakeSampler(lambda _: "\\boxed{0}", model=name), tmp_path / folder, [task], **settings)
    assert json.loads((tmp_path / "a/sums/card.json").read_text())["comparability"] == {
        "numbers": "", "like": None, "only_if": None, "differs": ["k 2, not 1", "temperature 0.7, not 0"],
    }  # fmt: skip

    def compared(first: str, second: str) -> str:
        console = Console(file=(text := StringIO()), width=200)
        compare_folders(tmp_path / first, tmp_path / second, console, show=0, out=tmp_path / "out.json")
        return text.getvalue()

    wanted = "different conditions, not only models: sampling.temperature: 0.7 -> 0.0; k: 2 -> 1"
    assert wanted in compared("a", "b")
    assert json.loads((tmp_path / "out.json").read_text())["tasks"]["sums"]["differs"] == wanted.partition(": ")[
        2
    ].split("; ")
    assert "different conditions" not in compared("b", "c")
