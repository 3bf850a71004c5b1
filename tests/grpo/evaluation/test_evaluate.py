"""The job of `grpo eval`, with a server that answers as it is told: stored, resumed, refused, exported, traced."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click import unstyle
from fake_sampler import FakeSampler, Stopped, evaluate
from tiny_policy import make_tiny_policy
from typer.testing import CliRunner

from grpo.cli.app import app
from grpo.config.evaluation import EvalConfig, TaskConfig
from grpo.config.file import resolve
from grpo.evaluation.engine_sampler import EngineSampler, Room, room_of
from grpo.evaluation.metrics import TaskMetrics, task_metrics
from grpo.evaluation.model import Model, default_folder, find_policy, folder_digest, open_model
from grpo.evaluation.problems import load_task
from grpo.evaluation.questions import Question, Sample, length_warning
from grpo.evaluation.store import LINES, TABLE, file_digest, read_table
from grpo.types import Completion, Prompt, SamplingParams, VersionSpan
from rewards.verdict import Status

SETTINGS: dict[str, Any] = {"k": 4, "temperature": 1.0}
ROWS = [{"prompt": f"{n}+{n}=?", "answer": str(2 * n)} for n in range(6)]


@pytest.fixture
def task_file(tmp_path: Path) -> Path:
    data, path = tmp_path / "sums.jsonl", tmp_path / "sums.yaml"
    data.write_text("\n".join(map(json.dumps, ROWS)))
    path.write_text(f"name: sums\nsource: ours\ndata: {{path: {data}}}\nverifier: {{use: math}}\n")
    return path


@pytest.fixture
def task(task_file: Path) -> TaskConfig:
    return load_task(str(task_file))


def fickle(question: Question) -> str:
    """Right or wrong by the sample's seed, in several ways."""
    right = 2 * int(question.text.partition("+")[0])
    ways = [
        f"\\boxed{{{right}}}",
        f"\\boxed{{{right}.0}}",
        "\\boxed{99}",
        "\\boxed{198/2}",
        "\\boxed{98}",
        "who knows?",
    ]
    return ways[question.seed % len(ways)]


def contents(folder: Path) -> list[Any]:
    return [(row.record, row.answer, row.answer_class) for row in read_table(folder / "sums" / TABLE)]


def test_an_evaluation_leaves_all_it_promises_and_its_numbers_come_from_its_table(
    tmp_path: Path, task: TaskConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    found = evaluate(monkeypatch, FakeSampler(fickle), folder, [task], seeds=(0, 5), **SETTINGS)["sums"]
    assert (found.problems, found.k, found.seeds, found.completions) == (6, 4, (0, 5), 48)
    rows = read_table(folder / "sums" / TABLE)
    assert task_metrics("sums", rows, votes=True) == found
    stored = json.loads((folder / "sums" / "metrics.json").read_text())
    assert stored.pop("undecided_pairs") == 0 and stored == json.loads(json.dumps(found.as_json()))
    assert {"accuracy", "avg@4", "pass@2", "pass@4", "pass@8", "maj@4", "truncated"} <= set(found.estimates)
    assert len({row.record.key for row in rows}) == 48
    # 99 and 198/2 are the same wrong answer, 98 another, and both ways to be right are one.
    for row in rows:
        if row.answer in ("99", "198/2"):
            others = [one for one in rows if one.record.key[:2] == row.record.key[:2] and one.answer in ("99", "198/2")]
            assert {one.answer_class for one in others} == {row.answer_class}
        assert (row.answer_class == 0) == (row.record.status is Status.CORRECT)
        assert (row.answer_class is None) == (row.record.status is Status.UNPARSEABLE)
    card = json.loads((folder / "sums" / "card.json").read_text())
    assert card["identity"]["model"] == "endpoint:fake"
    assert card["identity"]["sampling"] == {"temperature": 1.0, "top_p": 1.0, "max_tokens": 2048, "stop": []}
    assert card["first_prompt"] == "0+0=?" and card["problems"]["count"] == 6 and "verigrpo" in card["versions"]
    assert card["files"] == {name: file_digest(folder / "sums" / name) for name in (LINES, TABLE)}


@pytest.mark.parametrize(("suffix", "accuracy"), [("", 0.0), ("+0", 1.0)])
def test_a_copy_of_the_question_is_refused_whatever_its_column_is_called(
    tmp_path: Path, task: TaskConfig, monkeypatch: pytest.MonkeyPatch, suffix: str, accuracy: float
) -> None:
    sampler = FakeSampler(lambda question: f"\\boxed{{{question.text.partition('=')[0]}{suffix}}}")
    found = evaluate(monkeypatch, sampler, tmp_path / "out", [task], k=1)["sums"]
    assert found.estimates["accuracy"].value == accuracy


def test_the_export_has_the_shape_of_lm_evaluation_harness(
    tmp_path: Path, task: TaskConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    found = evaluate(monkeypatch, FakeSampler(fickle), folder, [task], **SETTINGS)["sums"]
    evaluate(monkeypatch, FakeSampler(fickle), folder, [task], **SETTINGS)
    (results,) = folder.glob("lm_eval/http__fake__v1/results_*.json")
    (samples,) = folder.glob("lm_eval/http__fake__v1/samples_sums_*.jsonl")
    content = json.loads(results.read_text())
    numbers = content["results"]["sums"]
    assert numbers["exact_match,none"] == found.estimates["accuracy"].value
    assert numbers["exact_match_stderr,none"] == found.estimates["accuracy"].standard_error
    assert content["n-samples"]["sums"] == {"original": 6, "effective": 6}
    assert content["configs"]["sums"]["repeats"] == 4 and content["higher_is_better"]["sums"]["exact_match"]
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    assert [line["doc_id"] for line in lines] == list(range(6))
    assert sum(line["exact_match"] for line in lines) / 6 == pytest.approx(numbers["exact_match,none"])
    assert all(len(line["resps"][0]) == len(line["filtered_resps"]) == 4 for line in lines)
    assert {"doc", "target", "arguments", "filter", "metrics", "doc_hash", "prompt_hash", "target_hash"} <= set(
        lines[0]
    )


def test_stopped_anywhere_it_goes_on_where_it_was(
    tmp_path: Path, task: TaskConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = FakeSampler(fickle), FakeSampler(fickle)
    expected = evaluate(monkeypatch, whole, tmp_path / "whole", [task], **SETTINGS)
    folder = tmp_path / "stopped"
    for stop in (0, 5, 12):
        stopped.stop_after = stop
        with pytest.raises(Stopped):
            evaluate(monkeypatch, stopped, folder, [task], **SETTINGS)
        assert not (folder / "results.json").exists() and not (folder / "sums" / TABLE).exists()
    with (folder / "sums" / LINES).open("ab") as file:
        file.write(b'{"problem": "su')
    stopped.stop_after = None
    assert evaluate(monkeypatch, stopped, folder, [task], **SETTINGS) == expected
    assert contents(folder) == contents(tmp_path / "whole")
    # What was sampled and not yet judged when it stopped is sampled again, from the same seed.
    assert set(stopped.asked) == set(whole.asked) and len(set(whole.asked)) == 24
    again = FakeSampler(fickle)
    assert evaluate(monkeypatch, again, folder, [task], **SETTINGS) == expected
    assert again.asked == []


def test_more_completions_and_seeds_add_to_what_is_there(
    tmp_path: Path, task: TaskConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, more, at_once = FakeSampler(fickle), FakeSampler(fickle), FakeSampler(fickle)
    evaluate(monkeypatch, few, tmp_path / "a", [task], k=2, temperature=1.0)
    evaluate(monkeypatch, more, tmp_path / "a", [task], k=3, temperature=1.0, seeds=(0, 1))
    assert len(few.asked) == 12 and len(more.asked) == 6 * 3 * 2 - 12 and not set(few.asked) & set(more.asked)
    evaluate(monkeypatch, at_once, tmp_path / "b", [task], k=3, temperature=1.0, seeds=(0, 1))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    fewer = evaluate(monkeypatch, FakeSampler(fickle), tmp_path / "a", [task], k=2, temperature=1.0, limit=3)["sums"]
    assert (fewer.problems, fewer.completions) == (3, 6), "what is stored and not asked for does not count"


def test_it_goes_on_at_another_port(tmp_path: Path, task: TaskConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate(monkeypatch, FakeSampler(fickle), tmp_path / "a", [task], **SETTINGS, limit=4)
    rest = FakeSampler(fickle)
    evaluate(monkeypatch, rest, tmp_path / "a", [task], **SETTINGS, model="http://elsewhere:99/v1")
    assert len(rest.asked) == 2 * 4, "of the two problems that the first address did not answer"
    body = {"extra_body": {"top_k": 20}}
    with pytest.raises(ValueError, match=r"what differs: extra_body"):
        evaluate(monkeypatch, FakeSampler(fickle), tmp_path / "a", [task], **SETTINGS, endpoint=body)


def test_another_model_of_the_same_name_is_refused(
    tmp_path: Path, task: TaskConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, other = ({"root": root, "max_model_len": 4096} for root in ("/models/first", "/models/other"))
    evaluate(monkeypatch, FakeSampler(fickle, model="default", said=first), tmp_path / "a", [task], **SETTINGS)
    again = FakeSampler(fickle, model="default", said=first)
    evaluate(monkeypatch, again, tmp_path / "a", [task], **SETTINGS, model="http://elsewhere:99/v1")
    assert again.asked == []
    with pytest.raises(ValueError, match=r"what differs: served\.root: '/models/first' -> '/models/other'. Choose"):
        evaluate(monkeypatch, FakeSampler(fickle, model="default", said=other), tmp_path / "a", [task], **SETTINGS)


def test_a_task_measures_parts_of_its_verdicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two, one = ["punctuation:no_comma", "startend:quotation"], ["punctuation:no_comma"]
    rows = [{"prompt": name, "instruction_id_list": names} for name, names in (("a", two), ("b", two), ("c", one))]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row | {"kwargs": "[]"}) for row in rows))
    task = load_task("ifeval", [f"data.path={tmp_path}/rows.jsonl"])
    said = {"a": '"all"', "b": 'So:\n"all"', "c": "no, none"}
    found = evaluate(monkeypatch, FakeSampler(lambda question: said[question.text]), tmp_path / "out", [task])["ifeval"]
    values = {name: found.estimates[name].value for name in ("accuracy", *task.measures)}
    # Strict: 2, 1 and 0 of 2, 2 and 1 instructions; loose: 2, 2 and 0.
    expected = {"accuracy": 1 / 3, "prompt_loose": 2 / 3, "instruction_strict": 3 / 5, "instruction_loose": 4 / 5}
    assert values == pytest.approx(expected)
    assert all(0 <= found.estimates[name].low <= values[name] <= found.estimates[name].high <= 1 for name in values)
    table = read_table(tmp_path / "out" / "ifeval" / TABLE)
    assert task_metrics("ifeval", table, votes=False, measures=task.measures) == found
    with pytest.raises(ValueError, match=r"ifeval: measures\.odd names the part 'nothing', but the verdicts have all_"):
        task_metrics("ifeval", table, votes=False, measures={"odd": "nothing"})


def test_what_narrows_the_sampling_reaches_the_sampler_and_the_identity(
    tmp_path: Path, task: TaskConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler, narrow = FakeSampler(fickle), {"top_p": 0.9, "top_k": 20, "min_p": 0.1}
    evaluate(monkeypatch, sampler, tmp_path / "a", [task], **SETTINGS, **narrow)
    assert sampler.sampling == SamplingParams(1, 2048, 1.0, (), 0.9, 20, 0.1)
    card = json.loads((tmp_path / "a" / "sums" / "card.json").read_text())
    assert card["identity"]["sampling"].items() >= narrow.items()
    for changed, value in (("top_k", 21), ("min_p", 0.0)):
        with pytest.raises(ValueError, match=rf"what differs: sampling\.{changed}"):
            evaluate(monkeypatch, sampler, tmp_path / "a", [task], **SETTINGS, **(narrow | {changed: value}))


class Refusing(FakeSampler):
    """Refuses some questions, as a server's filter does."""

    refused: tuple[int, ...] = ()

    def sample(self, *arguments: Any) -> Iterator[tuple[int, Sample]]:
        for index, sample in super().sample(*arguments):
            yield index, Sample("", 0, "refused", "content_filter") if index in self.refused else sample


def test_a_refusal_is_a_counted_failure_and_is_asked_again(
    tmp_path: Path, task: TaskConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = Refusing(fickle)
    some.refused = (3, 8)
    with pytest.raises(
        RuntimeError, match=r"2 of 24 completions of sums have no verdict.*no usable.*content_filter\. Repeat"
    ):
        evaluate(monkeypatch, some, tmp_path / "a", [task], **SETTINGS)
    found = evaluate(monkeypatch, some, tmp_path / "a", [task], **SETTINGS, max_failure_share=0.1)["sums"]
    # The resume asks for the two alone; now they are its first and second question, and both come.
    assert len(some.asked) == 26 and found.statuses["error"] == 0
    whole = evaluate(monkeypatch, FakeSampler(fickle), tmp_path / "b", [task], **SETTINGS)["sums"]
    assert found.estimates == whole.estimates and contents(tmp_path / "a") == contents(tmp_path / "b")
    some.refused = (3,)
    found = evaluate(monkeypatch, some, tmp_path / "c", [task], **SETTINGS)["sums"]
    assert found.statuses["error"] == 1 and found.completions == 24


def test_the_last_line_of_the_progress_is_the_number_of_the_table(
    tmp_path: Path, task: TaskConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    monkeypatch.setattr("grpo.evaluation.progress.EvalProgress._line", lambda self: lines.append(self._status()))
    with pytest.raises(Stopped):
        evaluate(monkeypatch, FakeSampler(fickle, stop_after=10), tmp_path / "a", [task], **SETTINGS)
    # Also over the completions that an earlier start stored.
    found = evaluate(monkeypatch, FakeSampler(fickle), tmp_path / "a", [task], **SETTINGS)["sums"]
    assert lines[-1].startswith(f"{found.estimates['accuracy'].value:.2%} correct")


def test_another_evaluation_is_refused(tmp_path: Path, task: TaskConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "out"
    evaluate(monkeypatch, FakeSampler(fickle), folder, [task], **SETTINGS)
    before = (folder / "sums" / LINES).read_bytes()
    with pytest.raises(ValueError, match=r"what differs: sampling\.temperature: 1\.0 -> 0\.5\. Choose another"):
        evaluate(monkeypatch, FakeSampler(fickle), folder, [task], k=4, temperature=0.5)
    with pytest.raises(ValueError, match=r"model: 'endpoint:fake' -> 'endpoint:other'"):
        evaluate(monkeypatch, FakeSampler(fickle, model="other"), folder, [task], **SETTINGS)
    path = Path(task.data.path or "")
    path.write_text(path.read_text().replace('"4"', '"5"'))
    with pytest.raises(ValueError, match=r"other problems under the same names \(1, the first sums:2\)"):
        evaluate(monkeypatch, FakeSampler(fickle), folder, [task], **SETTINGS)
    assert (folder / "sums" / LINES).read_bytes() == before


VERIFIER = """
from pathlib import Path

def judge(completion, reference):
    if Path({flag!r}).exists() and int(reference) >= 4:
        raise OSError("no such server")
    return float(str(reference) in completion)
"""


def test_verdicts_that_failed_are_no_result_and_are_asked_for_again(
    tmp_path: Path, task: TaskConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    flag = tmp_path / "broken"
    flag.touch()
    (tmp_path / "mine.py").write_text(VERIFIER.format(flag=str(flag)))
    mine = task.model_copy(update={"verifier": task.verifier.model_copy(update={"use": f"{tmp_path}/mine.py:judge"})})
    broken = FakeSampler(fickle)
    with pytest.raises(
        RuntimeError, match=r"16 of 24 completions .* no verdict, above max_failure_share=0\.05.*no such"
    ):
        evaluate(monkeypatch, broken, tmp_path / "out", [mine], **SETTINGS)
    assert len(broken.asked) == 24
    partly = evaluate(monkeypatch, FakeSampler(fickle), tmp_path / "out", [mine], max_failure_share=0.9, **SETTINGS)
    assert partly["sums"].statuses["error"] == 16 and partly["sums"].estimates["accuracy"].problems == 2
    flag.unlink()
    mended = FakeSampler(fickle)
    found = evaluate(monkeypatch, mended, tmp_path / "out", [mine], **SETTINGS)["sums"]
    assert mended.asked == [] and found.statuses["error"] == 0 and found.estimates["accuracy"].problems == 6
    assert not any(name.startswith("maj@") for name in found.estimates), (
        "a verifier of one's own has no answers to vote"
    )


KNOWING = """
from rewards.verifiers.math import Math

class Knowing(Math):
    def reference_problem(self, reference, prompt):
        return f"no answer to {prompt['problem']}" if reference == "4" else ""
"""


def test_problems_that_cannot_be_judged_are_left_out_and_a_task_without_a_right_answer_is_refused(
    tmp_path: Path, task: TaskConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(KNOWING)
    mine = task.model_copy(update={"verifier": task.verifier.model_copy(update={"use": f"{tmp_path}/mine.py:Knowing"})})
    asked, folder = FakeSampler(fickle), tmp_path / "out"
    with pytest.raises(
        ValueError, match=r"(?s)1 of 6 reference answers.*row 2 of sums: '4': no answer to 2\+2=\?.*check_golds=warn"
    ):
        evaluate(monkeypatch, asked, folder, [mine], **SETTINGS)
    assert asked.asked == [] and not folder.exists()
    found = evaluate(monkeypatch, asked, folder, [mine], max_unusable_share=0.2, **SETTINGS)["sums"]
    assert (found.problems, found.completions, len(asked.asked)) == (5, 20, 20)
    assert json.loads((folder / "sums" / "metrics.json").read_text())["left_out"] == 1
    card = json.loads((folder / "sums" / "card.json").read_text())
    assert card["problems"]["left_out"] == {"sums:2": "no answer to 2+2=?"}

    (tmp_path / "blind.py").write_text("def blind(completion, reference):\n    return False\n")
    blind = task.model_copy(update={"verifier": task.verifier.model_copy(update={"use": f"{tmp_path}/blind.py:blind"})})
    blind = blind.model_copy(update={"data": blind.data.model_copy(update={"reference": "prompt"})})
    with pytest.raises(
        ValueError, match=r"sums data, verifier 'sums': none of 6 gold.*'0\+0=\?'.*task\.data\.reference"
    ):
        evaluate(monkeypatch, asked, tmp_path / "blind", [blind], max_unusable_share=1.0, **SETTINGS)
    off = evaluate(monkeypatch, asked, tmp_path / "blind", [blind], check_golds="off", **SETTINGS)["sums"]
    assert off.estimates["accuracy"].value == 0.0
    assert len(asked.asked) == 44


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 4, "temperature": 0.0}, "k=4 completions with 1 seed.s. at temperature 0 would all be the same"),
        ({"seeds": (0, 1)}, "give --temperature above 0"),
        ({"seeds": (1, 1), "temperature": 1.0}, "repeats a seed"),
        ({"limit": 1}, "an interval needs two or more"),
    ],
)
def test_settings_that_do_not_fit_are_told_before_anything_is_made(
    tmp_path: Path, task: TaskConfig, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(monkeypatch, FakeSampler(fickle), tmp_path / "out", [task], **settings)
    assert not (tmp_path / "out").exists()


def test_a_policy_is_found_by_all_its_names_and_known_by_its_contents(tmp_path: Path) -> None:
    plain = make_tiny_policy(tmp_path / "plain")
    for step, seed in ((5, 1), (10, 2)):
        make_tiny_policy(tmp_path / "run" / "checkpoints" / f"step_{step:06d}" / "policy", seed=seed)
    assert find_policy(str(plain)) == str(plain)
    newest = tmp_path / "run" / "checkpoints" / "step_000010"
    assert find_policy(str(tmp_path / "run")) == find_policy(str(newest)) == str(newest / "policy")
    assert find_policy("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"
    with pytest.raises(ValueError, match=r"holds no policy: expected config\.json"):
        find_policy(str(tmp_path))
    model = open_model(str(plain))
    assert model.context == 128 and model.identity == f"sha256:{folder_digest(plain)}"
    assert folder_digest(plain) != folder_digest(newest / "policy")
    (plain / "README.md").write_text("says nothing")
    assert model.identity == f"sha256:{folder_digest(plain)}"
    (plain / "chat_template.jinja").write_text("{{ messages }}")
    assert model.identity != f"sha256:{folder_digest(plain)}"
    assert default_folder("runs/quickstart") == Path("evals/quickstart")
    assert default_folder(str(newest / "policy")) == Path("evals/run-step_000010")
    assert default_folder("http://localhost:8000/v1") == Path("evals/localhost-8000-v1")


def test_the_room_left_in_the_context_is_counted_for_each_problem() -> None:
    model = Model("p", "p", "sha256:0", 128)
    assert room_of(model, "a", [28, 20], 100) == Room(128, 128) and room_of(model, "a", [20], 30).tokens == 50
    assert room_of(model, "a", [28, 20], 100).line("a", 2, 100) is None
    room = room_of(model, "b", [28, 29, 127, 128, 500], 100)
    assert room == Room(128, 128, shortened=2, without=2)
    line = room.line("b", 5, 100)
    assert (
        line
        and "2 of 5 problems leave less room than max_tokens=100" in line
        and "; 2 of 5 problems fill it with" in line
    )
    only = Room(128, 128, without=1).line("b", 5, 100)
    assert only and "128 tokens: 1 of 5 problems fill it" in only
    with pytest.raises(ValueError, match=r"b: the shortest prompt has 128 tokens and fills the policy's context"):
        room_of(model, "b", [128, 130], 1)
    assert room_of(Model("p", "p", "sha256:0", None), "b", [500], 100) == Room(600, None)


def test_a_prompt_that_fills_the_context_gets_an_empty_truncated_completion() -> None:
    class Generators:
        def generate(self, prompts: Any, sampling: Any, seeds: Any) -> Iterator[Any]:
            self.asked = [len(prompt.token_ids) for prompt in prompts], list(seeds)
            for index in range(len(prompts)):
                yield index, (Completion((1, 2), (0.0, 0.0), "ab", "length", (VersionSpan(0, 2, 0),)),)

    sampler = EngineSampler(
        resolve(EvalConfig, {"model": "p", "folder": "f"}, [], "a test"), Model("p", "p", "s", 8), 8
    )
    sampler._generators = generators = Generators()  # type: ignore[assignment]
    prompts = [Prompt(str(size), "", (0,) * size, "", {}) for size in (8, 7, 9, 3)]
    questions = [Question("", None, prompt, seed) for seed, prompt in enumerate(prompts)]
    found = dict(sampler.sample(questions, SamplingParams(1, 4), 1.0))
    assert generators.asked == ([7, 3], [1, 3])
    assert found[0] == found[2] == Sample("", 0, "length") and found[1] == found[3] == Sample("ab", 2, "length")


def invoke(*arguments: object) -> tuple[int, str]:
    result = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"}).invoke(app, [str(one) for one in arguments])
    return result.exit_code, " ".join(unstyle(result.output).split())


def test_the_command_line(tmp_path: Path, task_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(answer: Callable[[Question], str], out: str, *more: str) -> tuple[int, str]:
        monkeypatch.setattr("grpo.evaluation.jobs.EndpointSampler", FakeSampler(answer))
        return invoke("eval", "http://fake/v1", "--task", task_file, "--out", tmp_path / out, *more)

    code, text = run(fickle, "a", "--k", "2", "--temperature", "0.7", "--seeds", "0,3", "workers=1")
    assert code == 0 and "sums" in text and "maj@2" in text and "accuracy by seed" in text
    assert json.loads((tmp_path / "a" / "sums" / "card.json").read_text())["settings"]["workers"] == 1
    code, text = run(lambda question: f"\\boxed{{{2 * int(question.text.partition('+')[0])}}}", "b")
    assert code == 0 and "100.00%" in text
    code, text = invoke("eval", "compare", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "c.json")
    assert code == 0 and "p, paired" in text and "B turned right" in text
    compared = json.loads((tmp_path / "c.json").read_text())["tasks"]["sums"]
    assert compared["second"]["value"] == 1.0 and compared["difference"]["value"] > 0 and compared["worse"] == []
    code, text = invoke("eval", "compare", tmp_path / "a", tmp_path)
    assert code == 2 and "nothing to compare" in text
    code, text = invoke("eval", "tasks")
    assert code == 0 and "livecodebench" in text
    code, text = run(fickle, "d", "--task", "gsm8", "--temperature", "1")
    assert code == 2 and "did you mean 'gsm8k'" in text
    code, text = run(fickle, "d", "endpoint.concurency=3")
    assert code == 2 and "did you mean endpoint.concurrency" in text
    code, text = invoke("eval", "http://fake/v1", "--data", "x.jsonl")
    assert code == 2 and "give one --task with it" in text


def test_several_tasks_share_a_sampler_and_a_name_stands_for_one(
    tmp_path: Path, task: TaskConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = task.model_copy(update={"name": "again"})
    sampler = FakeSampler(fickle)
    found = evaluate(monkeypatch, sampler, tmp_path / "out", [task, other], limit=3, **SETTINGS)
    assert list(found) == ["sums", "again"] and len(set(sampler.asked)) == 2 * 3 * 4, "other seeds for another task"
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(results["tasks"]) == ["sums", "again"]
    (exported,) = (tmp_path / "out" / "lm_eval").glob("*/results_*.json")
    assert set(json.loads(exported.read_text())["results"]) == {"sums", "again"}
    with pytest.raises(ValueError, match="each once, with --task; got sums, sums"):
        evaluate(monkeypatch, sampler, tmp_path / "out", [task, task], **SETTINGS)
    with pytest.raises(ValueError, match="with --task; got none"):
        evaluate(monkeypatch, sampler, tmp_path / "out", [], **SETTINGS)


def test_a_group_verifier_judges_the_completions_of_a_problem_and_seed_together(
    tmp_path: Path, task_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a part of a group is stored already, and where a verdict failed."""
    folder, flag = tmp_path / "out", tmp_path / "fails"
    (tmp_path / "ranks.py").write_text(
        "from pathlib import Path\nfrom rewards import correct, scored\n\n\n"
        "def longest(completions, reference, prompt):\n"
        f"    if Path({str(flag)!r}).exists():\n        raise OSError('not now')\n"
        "    assert len(prompt['completion_tokens']) == len(completions)\n"
        "    most = max(map(len, completions))\n"
        "    return [correct(str(len(completions))) if len(c) == most else scored(0.5) for c in completions]\n"
    )
    text = task_file.read_text().replace("{use: math}", f'{{use: "{tmp_path}/ranks.py:longest"}}')
    task_file.write_text(text)
    ranks = load_task(str(task_file))

    def lengths(question: Question) -> str:
        return "x" * (1 + question.seed % 7)

    def evaluated(asked: int) -> TaskMetrics:
        sampler = FakeSampler(lengths)
        found = evaluate(monkeypatch, sampler, folder, [ranks], seeds=(0, 5), **SETTINGS)["sums"]
        assert len(sampler.asked) == asked
        return found

    evaluated(48)
    lines = (folder / "sums" / LINES).read_text().splitlines(keepends=True)
    (folder / "sums" / LINES).write_text("".join(line.replace('"4"', '"?"') for line in lines[1:]))
    found = evaluated(1)
    rows = read_table(folder / "sums" / TABLE)
    for problem, seed in {(row.record.problem, row.record.seed) for row in rows}:
        group = [row.record for row in rows if (row.record.problem, row.record.seed) == (problem, seed)]
        most = max(len(record.completion) for record in group)
        assert [record.correct for record in group] == [len(record.completion) == most for record in group]
        is_new = json.loads(lines[0])["problem"] == problem and json.loads(lines[0])["seed"] == seed
        assert all(record.reason == ("4" if is_new else "?") for record in group if record.correct)
    assert found.statuses["scored"] == 48 - found.statuses["correct"] > 0
    assert found.estimates["accuracy"].value == found.statuses["correct"] / 48
    # One verdict of a group fails: it is asked again with its group.
    line = json.loads((folder / "sums" / LINES).read_text().splitlines()[0]) | {"status": "error", "score": None}
    with (folder / "sums" / LINES).open("a") as file:
        file.write(json.dumps(line) + "\n")
    flag.touch()
    with pytest.raises(
        RuntimeError, match=r"4 of 48 completions of sums have no verdict.*The verifier failed.*not now"
    ):
        evaluate(monkeypatch, FakeSampler(lengths), folder, [ranks], seeds=(0, 5), **SETTINGS)
    flag.unlink()
    assert evaluated(0) == found


def test_a_task_without_a_chat_template_goes_to_plain_completions(
    tmp_path: Path, task: TaskConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def answer(question: Question) -> str:
        asked.append(question.chat)
        return "\\boxed{0}"

    def with_data(**data: str) -> TaskConfig:
        return task.model_copy(update={"data": task.data.model_copy(update=data)})

    plain = with_data(chat_template="never")
    evaluate(monkeypatch, FakeSampler(answer), tmp_path / "plain", [plain])
    evaluate(monkeypatch, FakeSampler(answer), tmp_path / "chat", [task])
    assert asked == [False] * 6 + [True] * 6
    with pytest.raises(ValueError, match=r"what differs: requests"):
        evaluate(monkeypatch, FakeSampler(answer), tmp_path / "chat", [task], endpoint={"chat": False})
    with pytest.raises(ValueError, match=r"endpoint\.chat=true lets the server apply its chat template, but the task"):
        evaluate(monkeypatch, FakeSampler(answer), tmp_path / "no", [plain], endpoint={"chat": True})
    with pytest.raises(ValueError, match=r"data\.system needs a chat template, but /completions gets plain text"):
        evaluate(monkeypatch, FakeSampler(answer), tmp_path / "no", [with_data(system="x")], endpoint={"chat": False})


def test_the_context_that_a_server_announces_is_respected(
    tmp_path: Path, task: TaskConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = FakeSampler(fickle, said={"max_model_len": 2048})
    with pytest.raises(ValueError, match=r"max_tokens=2,048, but the server announces.*give --max-tokens 2044 or less"):
        evaluate(monkeypatch, sampler, tmp_path / "a", [task])
    assert sampler.asked == [] and not (tmp_path / "a").exists()
    assert length_warning("t", ["x" * 12], 2044, 2048) is None
    assert length_warning("t", ["x" * 400, "x"], 100, 250) is None
    assert length_warning("t", ["x" * 400, "x"], 10**6, None) is None
    line = length_warning("t", ["x" * 400, "x"], 200, 250)
    assert line and "About 1 of 2 prompts leave less room than max_tokens=200" in line and "--max-tokens 125" in line
