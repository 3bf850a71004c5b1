"""Task files, and the problems that they make of rows."""

from __future__ import annotations

import base64
import json
import pickle
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from grpo.config.evaluation import EvalConfig
from grpo.config.file import resolve
from grpo.evaluation.problems import FOLDER, Problem, load_problems, load_task, repeats_line, task_names, with_shots
from grpo.evaluation.votes import answers_of
from rewards.build import build_verifier
from rewards.verdict import Status

PROMISED = [
    "aime24", "aime25", "aime26", "amc23", "bbh_deduction", "beyond_aime", "brumo25", "gpqa_diamond", "gsm8k",
    "gsm8k_5shot", "hle_exact", "hmmt_feb25", "hmmt_nov25", "humaneval", "humaneval_plus", "ifeval", "livecodebench",
    "livecodebench_2408_2501", "livecodebench_2408_2505", "livecodebench_2410_2502", "math", "math500", "mbpp",
    "mbpp_plus", "minerva_math", "mmlu_pro", "olympiadbench", "supergpqa",
]  # fmt: skip


def local(tmp_path: Path, name: str, rows: list[dict[str, Any]], *overrides: str) -> list[Any]:
    """The problems of a task, made of rows of ours."""
    path = tmp_path / f"{name}.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return load_problems(load_task(name, [f"data.path={path}", *overrides]))


def status(name: str, problem: Any, completion: str) -> Status:
    verifier = load_task(name).verifier
    return build_verifier(verifier.use, verifier.options)(completion, problem.reference, problem.row).status


def test_every_promised_task_is_there_and_says_where_it_is_from() -> None:
    assert task_names() == PROMISED
    assert f" on {len(PROMISED)} tasks " in (Path(__file__).parents[3] / "README.md").read_text()
    for name in PROMISED:
        task = load_task(name)
        assert task.name == name and task.data.hub and task.sampling.max_tokens >= 512
        assert task.comparable.endswith(".") and task.source.endswith(".")
        assert len((FOLDER / f"{name}.yaml").read_text().splitlines()) <= 25


def test_wrong_names_and_keys_are_told_with_the_nearest_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no task 'gsm8'; did you mean 'gsm8k'"):
        load_task("gsm8")
    with pytest.raises(ValueError, match=r"got 'gsm8k,math500'; repeat it: --task gsm8k --task math500"):
        load_task("gsm8k,math500")
    with pytest.raises(ValueError, match=r"data\.promt is not a known key; did you mean data\.prompt"):
        load_task("gsm8k", ["data.promt=question"])
    with pytest.raises(
        ValueError, match=r"data\.prompt='question' is not a column of the data; it has problem, answer"
    ):
        local(tmp_path, "gsm8k", [{"problem": "1+1?", "answer": "#### 2"}])
    with pytest.raises(ValueError, match=r"gsm8k\.jsonl:2\): no text after '####'.*in column 'answer'"):
        local(tmp_path, "gsm8k", [{"question": "1?", "answer": "#### 2"}, {"question": "1?", "answer": "no mark"}])
    (tmp_path / "mine.yaml").write_text("name: mine\nsource: here\nverifier: {use: math}\ndata: {template: hi}\n")
    with pytest.raises(
        ValueError, match=r"2 problems in .*mine.yaml(.|\n)*data needs a hub(.|\n)*must contain {prompt}"
    ):
        load_task(str(tmp_path / "mine.yaml"))
    with pytest.raises(ValueError, match=r"deadline_s=1 could end the verifier 'humaneval'"):
        load_task("humaneval", ["verifier.deadline_s=1"])


def test_a_digest_is_of_what_is_asked_and_what_is_right(tmp_path: Path) -> None:
    row = {"question": "1+1?", "answer": "#### 2", "note": "a"}
    (first,) = local(tmp_path, "gsm8k", [row])
    assert first.question == "1+1?\nPlease reason step by step, and put your final answer within \\boxed{}."
    assert first.reference == "2"
    same, other = local(tmp_path, "gsm8k", [row | {"note": "b"}, row | {"answer": "#### 3"}])
    assert first.digest == same.digest != other.digest


GPQA = [
    {"Question": f"Which is {n}?", "Correct Answer": f"{n}", **{f"Incorrect Answer {i}": f"{n}.{i}" for i in (1, 2, 3)}}
    for n in range(80)
]


def test_options_are_shuffled_alike_in_every_run(tmp_path: Path) -> None:
    problems = local(tmp_path, "gpqa_diamond", GPQA)
    assert [p.reference for p in problems] == [p.reference for p in local(tmp_path, "gpqa_diamond", GPQA)]
    assert local(tmp_path, "gpqa_diamond", GPQA[5:6])[0].digest == problems[5].digest, "whatever rows stand beside it"
    assert min(Counter(problem.reference for problem in problems)[letter] for letter in "ABCD") >= 10
    for number, problem in enumerate(problems):
        right = problem.row["choices"]["ABCD".index(problem.reference)]
        assert right == f"{number}" and f"{problem.reference}) {number}\n" in problem.question + "\n"
        assert sorted(problem.row["choices"]) == sorted([f"{number}", *(f"{number}.{i}" for i in (1, 2, 3))])
    assert status("gpqa_diamond", problems[0], f"\\boxed{{{problems[0].reference}}}") is Status.CORRECT
    other = "A" if problems[0].reference != "A" else "B"
    assert status("gpqa_diamond", problems[0], f"\\boxed{{{other}}}") is Status.WRONG


def test_ten_options_and_a_letter(tmp_path: Path) -> None:
    row = {"question_id": 70, "question": "Which is 9?", "options": [str(n) for n in range(10)], "answer": "J"}
    row |= {"answer_index": 9, "cot_content": "", "category": "math", "src": "x"}
    three = row | {"options": ["7", "8", "9"], "answer": "C", "answer_index": 2}
    ten, few = local(tmp_path, "mmlu_pro", [row, three])
    assert "\nJ) 9\n" in ten.question and "\nC) 9\n" in few.question and "D)" not in few.question
    assert status("mmlu_pro", ten, "It is \\boxed{J}.") is Status.CORRECT
    assert status("mmlu_pro", ten, "It is \\boxed{9}.") is Status.CORRECT
    assert status("mmlu_pro", ten, "It is \\boxed{A}.") is Status.WRONG
    assert status("mmlu_pro", few, "It is \\boxed{J}.") is Status.UNPARSEABLE


def test_letters_of_supergpqa_and_of_big_bench_hard(tmp_path: Path) -> None:
    row = {"question": "Which is 9?", "options": [str(n) for n in range(10)], "answer": "9", "answer_letter": "J"}
    (problem,) = local(tmp_path, "supergpqa", [row | {"discipline": "Law", "is_calculation": True}])
    assert "\nJ) 9\n" in problem.question
    assert status("supergpqa", problem, "\\boxed{J}") is Status.CORRECT
    assert status("supergpqa", problem, "\\boxed{A}") is Status.WRONG
    asked = "Which is third?\nOptions:\n(A) The gray book\n(B) The red book\n(C) The blue book"
    (problem,) = local(tmp_path, "bbh_deduction", [{"input": asked, "target": "(C)"}])
    assert problem.question.startswith(asked)
    assert status("bbh_deduction", problem, "So it is \\boxed{C}.") is Status.CORRECT
    assert status("bbh_deduction", problem, "So it is \\boxed{(B)}.") is Status.WRONG


def test_rows_are_chosen_by_their_values(tmp_path: Path) -> None:
    row = {"id": "1", "question": "Who?", "image": "", "answer": "Euler", "answer_type": "exactMatch"}
    rows = [row | {"answer_type": "multipleChoice"}, row | {"image": "data:image/png;base64,AA"}, row, row]
    name, path = "hle_exact", tmp_path / "hle_exact.jsonl"
    problems = local(tmp_path, name, rows)
    assert [problem.id for problem in problems] == [f"hle_exact:{n}" for n in (2, 3)]
    assert len(load_problems(load_task(name, [f"data.path={path}"]), limit=1)) == 1, "the limit counts what is chosen"
    assert status(name, problems[0], "\\boxed{euler}") is Status.CORRECT
    assert status(name, problems[0], "\\boxed{Gauss}") is Status.WRONG
    with pytest.raises(ValueError, match=r"task\.when names the column 'kind'.*they have id, question, image"):
        local(tmp_path, name, rows, "when={kind: exactMatch}")
    with pytest.raises(ValueError, match=r"none of the 4 rows has the values of task\.when"):
        local(tmp_path, name, rows, "when.image=other")


def test_instructions_are_rows_of_ifeval(tmp_path: Path) -> None:
    kwargs = [{"num_words": None, "relation": None}, {"num_words": 3, "relation": "at least"}]
    row = {"key": 1, "prompt": "Tell me.", "kwargs": kwargs}
    (problem,) = local(
        tmp_path,
        "ifeval",
        [row | {"instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"]}],
    )
    assert problem.question == "Tell me."
    assert status("ifeval", problem, "one two three") is Status.CORRECT
    assert status("ifeval", problem, "one, two, three") is Status.SCORED
    assert answers_of(load_task("ifeval")) is None


def test_several_answers_are_one_reference(tmp_path: Path) -> None:
    (problem,) = local(tmp_path, "olympiadbench", [{"question": "Roots?", "final_answer": ["$2$", "$-3$"]}])
    assert status("olympiadbench", problem, "\\boxed{-3, 2}") is Status.CORRECT
    assert status("olympiadbench", problem, "\\boxed{2}") is Status.WRONG


# Columns as the data sets' cards list them.
CARDS = {
    "hmmt_feb25": {"problem_idx": 1, "problem": "1/2+1/2?", "answer": "1", "problem_type": ["Algebra"]},
    "hmmt_nov25": {"problem_idx": 1, "problem": "1/2+1/2?", "answer": "1", "problem_type": ["Algebra"]},
    "brumo25": {"problem_idx": 1, "problem": "1/2+1/2?", "answer": "1", "problem_type": ["Algebra"]},
    "aime26": {"problem_idx": 1, "answer": 1, "problem": "1/2+1/2?"},
    "beyond_aime": {"problem": "1/2+1/2?", "answer": 1},
    "math": {
        "problem": "1/2+1/2?",
        "level": "1",
        "type": "A",
        "solution": "\\boxed{1}",
        "id": "1",
        "expected_answer": "1",
    },
}


@pytest.mark.parametrize("name", CARDS)
def test_competitions_are_asked_and_graded(name: str, tmp_path: Path) -> None:
    (problem,) = local(tmp_path, name, [CARDS[name]])
    assert problem.question.startswith("1/2+1/2?\n") and "\\boxed{}" in problem.question
    assert status(name, problem, "It is $\\boxed{1}$.") is Status.CORRECT
    assert status(name, problem, "It is $\\boxed{2}$.") is Status.WRONG


def test_the_tests_of_evalplus_are_run(tmp_path: Path) -> None:
    prompt = 'def double(x):\n    """Double it."""\n'
    test = "def check(candidate):\n    for x in (0, 1, -7):\n        assert candidate(x) == 2 * x\n"
    row = {"task_id": "HumanEval/0", "prompt": prompt, "canonical_solution": "    return 2 * x\n"}
    (problem,) = local(tmp_path, "humaneval_plus", [row | {"entry_point": "double", "test": test}])
    assert status("humaneval_plus", problem, f"```python\n{prompt}    return 2 * x\n```") is Status.CORRECT
    assert status("humaneval_plus", problem, f"```python\n{prompt}    return abs(2 * x)\n```") is Status.WRONG
    row = {"task_id": 2, "code": "", "prompt": "Double it.", "source_file": "", "test_imports": []}
    plus = "for x in (0, 1, -7):\n    assert double(x) == 2 * x\n"
    (problem,) = local(tmp_path, "mbpp_plus", [row | {"test_list": ["assert double(2) == 4"], "test": plus}])
    assert "assert double(2) == 4\n```" in problem.question
    assert status("mbpp_plus", problem, "```python\ndef double(x):\n    return 2 * x\n```") is Status.CORRECT
    assert status("mbpp_plus", problem, "```python\ndef double(x):\n    return abs(2 * x)\n```") is Status.WRONG


@pytest.mark.parametrize("at", ["T00:00:00", " 00:00:00", ""])
def test_a_window_takes_the_problems_of_its_days(at: str, tmp_path: Path) -> None:
    days = ["2024-07-31", "2024-08-01", "2024-12-24", "2025-01-31", "2025-02-01"]
    rows = [
        {"question_id": f"q {day}", "question_content": "?", "starter_code": "", "contest_date": day + at}
        for day in days
    ]
    found = local(tmp_path, "livecodebench_2408_2501", rows)
    assert [problem.reference[2:] for problem in found] == days[1:4]
    with pytest.raises(ValueError, match=r"window\.column='day': expected a date such as 2025-01-31"):
        local(tmp_path, "livecodebench_2408_2501", rows, "window.column=day")


def test_solved_examples_stand_before_the_question(tmp_path: Path) -> None:
    train = tmp_path / "train.jsonl"
    solved = [{"question": f"{n}+{n}?", "answer": f"Twice {n}.\n#### {2 * n}"} for n in range(3)]
    train.write_text("\n".join(map(json.dumps, solved)))
    (tmp_path / "test.jsonl").write_text(json.dumps({"question": "7+7?", "answer": "It is so.\n#### 14"}))
    overrides = [f"data.path={tmp_path}/test.jsonl", f"shots.path={train}", "shots.count=2"]
    (problem,) = load_problems(with_shots(load_task("gsm8k_5shot", overrides)))
    assert problem.question == (
        "Question: 0+0?\nAnswer: Twice 0.\n#### 0\n\nQuestion: 1+1?\nAnswer: Twice 1.\n#### 2\n\n"
        "Question: 7+7?\nAnswer:"
    )
    assert status("gsm8k_5shot", problem, " Seven and seven.\n#### 14\n\nQuestion:") is Status.CORRECT
    assert status("gsm8k_5shot", problem, " Seven and seven.\n#### 13\n\nQuestion:") is Status.WRONG
    with pytest.raises(ValueError, match=r"3 rows are too few for task\.shots\.count=5 examples"):
        with_shots(load_task("gsm8k_5shot", [*overrides[:2]]))
    with pytest.raises(ValueError, match=r"shots\.split=test is also the split of the problems"):
        load_task("gsm8k_5shot", ["shots.split=test"])


def test_missing_data_and_missing_examples_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr("grpo.data.rows.datasets.load_dataset", offline)
    task = load_task("gsm8k_5shot", ["data.path=mine.jsonl"])
    with pytest.raises(ValueError, match=r"the 5 solved examples of gsm8k_5shot are.*with task\.shots\.path=FILE"):
        with_shots(task)
    with pytest.raises(ValueError, match=r"give a local copy with task\.data\.path=FILE, or with --data"):
        load_problems(load_task("gsm8k"))


def test_published_conditions_replace_those_of_the_task() -> None:
    def sampling(task: str, *overrides: str) -> tuple[int, float, float, int]:
        found = resolve(EvalConfig, {"model": "m", "folder": "f"}, overrides, "a test").sampling_of(load_task(task))
        return found.k, found.temperature, found.top_p, found.max_tokens

    assert sampling("humaneval", "like=deepseek-r1") == (64, 0.6, 0.95, 32768)
    assert sampling("math500", "like=open-r1") == (4, 0.6, 0.95, 32768)
    assert sampling("aime24", "like=qwen3-thinking") == (64, 0.6, 0.95, 38912)
    settings = {"model": "m", "folder": "f", "like": "qwen3-thinking"}
    for overrides, top_k in (((), 20), (("top_k=0",), 0)):
        found = resolve(EvalConfig, settings, overrides, "a test").sampling_of(load_task("math500"))
        assert (found.top_k, found.min_p) == (top_k, 0.0)
    assert sampling("math500", "like=open-r1", "k=2", "max_tokens=99") == (2, 0.6, 0.95, 99)
    with pytest.raises(ValueError, match=r"like='deepseek' is not known; did you mean 'deepseek-r1'\?"):
        sampling("math500", "like=deepseek")


def test_code_rows_are_asked_and_graded(tmp_path: Path) -> None:
    mbpp = {"prompt": "Double a number.", "test_list": ["assert double(2) == 4", "assert double(0) == 0"]}
    (problem,) = local(tmp_path, "mbpp", [mbpp | {"test_imports": []}])
    assert "assert double(2) == 4\nassert double(0) == 0\n```" in problem.question
    assert status("mbpp", problem, "```python\ndef double(x):\n    return 2 * x\n```") is Status.CORRECT
    assert status("mbpp", problem, "```python\ndef double(x):\n    return x + 2\n```") is Status.WRONG
    private = json.dumps([{"input": "7\n", "output": "14\n", "testtype": "stdin"}])
    public = json.dumps([{"input": "2\n", "output": "4\n", "testtype": "stdin"}])
    row = {
        "question_id": "1_A", "question_content": "Double it.", "starter_code": "", "metadata": "{}",
        "public_test_cases": public,
        "private_test_cases": base64.b64encode(zlib.compress(pickle.dumps(private))).decode(),
    }  # fmt: skip
    (problem,) = local(tmp_path, "livecodebench", [row])
    assert status("livecodebench", problem, "```python\nprint(2 * int(input()))\n```") is Status.CORRECT
    assert status("livecodebench", problem, "```python\nprint(4)\n```") is Status.WRONG, "the private test must be run"


@pytest.mark.parametrize(
    ("name", "text", "answer"),
    [
        ("math500", "<think>\\boxed{1}</think> It is $\\boxed{\\frac{1}{2}}$.", "\\frac{1}{2}"),
        ("math500", "<think>for ever", None),
        ("gpqa_diamond", "\\boxed{(C)}", "C"),
        ("gpqa_diamond", "\\boxed{the third one}", "the third one"),
    ],
)
def test_how_completions_vote(name: str, text: str, answer: str | None) -> None:
    voting = answers_of(load_task(name))
    assert voting is not None and voting.find(text) == answer


def test_numbers_vote_by_value_and_programs_not_at_all() -> None:
    numeric = answers_of(load_task("gsm8k", ["verifier.use=numeric", "verifier.options={}"]))
    assert numeric is not None
    assert numeric.find("\\boxed{1,000.50}") == numeric.find("#### 2001/2") == "2001/2"
    assert numeric.find("\\boxed{x}") is None
    assert answers_of(load_task("humaneval")) is None


def test_repeated_questions_are_counted() -> None:
    texts = (("a", "1"), ("a", "1"), ("b", "2"), ("a", "3"), ("b", "2"))
    problems = [Problem(str(number), text, "", {}, text + right) for number, (text, right) in enumerate(texts)]
    line = repeats_line("sums", problems)
    assert line and "sums: 3 of 5 problems repeat the question of an earlier problem; 1 of these questions have" in line
    assert repeats_line("sums", problems[1:3]) is None
