"""Small rows in the shapes of published data sets whose answers are programs, and the config that describes them."""

from __future__ import annotations

import base64
import json
import pickle
import zlib
from typing import Any

from row_shapes.answers import Shape

CODE = {"use": "code"}


def fenced(code: str) -> str:
    return f"```python\n{code}\n```"


def packed(cases: list[dict[str, Any]]) -> str:
    """Private tests as LiveCodeBench encodes them."""
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(cases)))).decode("utf-8")


TOTAL = "def total(numbers):\n    return sum(numbers)"
NO_TOTAL = "def total(numbers):\n    return max(numbers, default=0)"
PRINTED = "a, b = map(int, input().split())\nprint(a + b)"
NOT_PRINTED = "a, b = map(int, input().split())\nprint(a - b)"
METHOD = "class Solution:\n    def total(self, numbers, start):\n        return start + sum(numbers)"
NO_METHOD = METHOD.replace("start + sum", "start - sum")
FUNCTION, PROGRAM = (fenced(TOTAL), fenced(NO_TOTAL)), (fenced(PRINTED), fenced(NOT_PRINTED))
CALLED = (fenced(METHOD), fenced(NO_METHOD))

STUB = 'def total(numbers: list[int]) -> int:\n    """ Add numbers up.\n    >>> total([1, 2])\n    3\n    """\n'
CHECK = "def check(candidate):\n    assert candidate([1, 2]) == 3\n    assert candidate([]) == 0\n"
# EvalPlus appends many inputs, their results, and a comparison of its own to the tests.
PLUS = """import numpy as np

def is_floats(x) -> bool:
    # check if it is float; List[float]; Tuple[float]
    if isinstance(x, float):
        return True
    if isinstance(x, (list, tuple)):
        return all(isinstance(i, float) for i in x)
    if isinstance(x, np.ndarray):
        return x.dtype == np.float64 or x.dtype == np.float32
    return False


def assertion(out, exp, atol):
    if atol == 0 and is_floats(exp):
        atol = 1e-6
    if out != exp and atol != 0:
        assert np.allclose(out, exp, rtol=1e-07, atol=atol)
    else:
        assert out == exp, f"out: {out}, exp: {exp}"

"""
RESULTS = "inputs = [[[1, 2]], [[]], [[5, -7]]]\nresults = [3, 0, -2]\n"
EACH = "for i, (inp, exp) in enumerate(zip(inputs, results)):\n"
HUMANEVAL = {
    "task_id": "HumanEval/900", "prompt": STUB, "canonical_solution": "    return sum(numbers)\n",
    "test": f"\n\nMETADATA = {{\n    'author': 'jt',\n    'dataset': 'test'\n}}\n\n\n{CHECK}\n", "entry_point": "total",
}  # fmt: skip
ASSERTS = ["assert total([1, 2]) == 3", "assert total([]) == 0", "assert total([5, -7]) == -2"]
SHOWN = "\n".join(ASSERTS)
TESTS_SHOWN = "{prompt} Your code should pass these tests:\n{test_list}"
MBPP = {"task_id": 900, "code": TOTAL.replace("\n", "\r\n"), "test_list": ASSERTS}
ADD = "Add up."
PUBLIC = [{"input": "1 2\n", "output": "3\n", "testtype": "stdin"}]
PRIVATE = [{"input": "5 -7\n", "output": "-2\n", "testtype": "stdin"}]
CALLS = [{"input": "[1, 2]\n3", "output": "6", "testtype": "functional"}]
MORE_CALLS = [{"input": "[]\n7", "output": "7", "testtype": "functional"}]
LIVE_CODE_BENCH = {
    "question_title": "Sum", "question_content": ADD, "platform": "atcoder", "question_id": "abc900_a",
    "contest_id": "abc900", "contest_date": "2025-01-04T00:00:00", "starter_code": "", "difficulty": "easy",
    "public_test_cases": json.dumps(PUBLIC), "private_test_cases": packed(PRIVATE), "metadata": "{}",
}  # fmt: skip
STARTER = "class Solution:\n    def total(self, numbers: List[int], start: int) -> int:\n        "
LIVE_KEYS = {"prompt": "question_content", "reference": "question_id", "template": "{prompt}\n{starter_code}"}
BIG_TEST = """import unittest
class TestCases(unittest.TestCase):
    def test_case_1(self):
        self.assertEqual(task_func([1, 2]), 1.5)

    def test_case_2(self):
        with self.assertRaises(ValueError):
            task_func([])
"""
BIG_STUB = "import statistics\n\ndef task_func(numbers):\n"
BIG_DOC = f'{BIG_STUB}    """\n    The mean of numbers.\n    """\n'
BIG_BODY = "    if not numbers:\n        raise ValueError\n    return statistics.mean(numbers)"
BIG_CODE_BENCH = {
    "task_id": "BigCodeBench/900", "complete_prompt": BIG_DOC, "instruct_prompt": "Write task_func.",
    "canonical_solution": BIG_BODY, "code_prompt": BIG_STUB, "test": BIG_TEST, "entry_point": "task_func",
    "doc_struct": json.dumps({"description": ["The mean of numbers."], "reqs": ["statistics"]}),
    "libs": "['statistics']",
}  # fmt: skip
MEAN = (fenced(BIG_STUB + BIG_BODY), fenced(BIG_STUB + "    return statistics.mean(numbers or [0])"))
PIPED = [
    {"type": "stdin_stdout", "input": "1 2\n", "output": "3\n", "fn_name": None},
    {"type": "stdin_stdout", "input": "5 -7\n", "output": "-2\n", "fn_name": None},
]
METHODS = [
    {"type": "function_call", "input": [[1, 2], 3], "output": 6, "fn_name": "total"},
    {"type": "function_call", "input": [[], 7], "output": 7, "fn_name": "total"},
]
SYNTHETIC = {
    "response_id": "vcp_900_1", "problem_id": "vcp_900", "source": "apps", "in_source_id": "900",
    "hf_dataset_name": "PrimeIntellect/verifiable-coding-problems", "task_type": "verifiable_code", "prompt": ADD,
    "gold_standard_solution": fenced(PRINTED), "llm_response": "", "score": 1.0,
    "verification_info": json.dumps({"language": "python", "test_cases": PIPED}), "metadata": "{'difficulty': 'easy'}",
}  # fmt: skip
IN_VERIFICATION = {"reference": "verification_info"}
MESSAGES = [{"role": "system", "content": "Think."}, {"role": "user", "content": ADD}]
IN_PAIRS = {"inputs": ["1 2\n", "5 -7\n"], "outputs": ["3\n", "-2\n"]}
IN_CALLS = {"fn_name": "total", "inputs": [[[1, 2], 3], [[], 7]], "outputs": [[6], [7]]}
PRIME = {
    "data_source": "taco", "prompt": MESSAGES, "ability": "code",
    "reward_model": {"ground_truth": json.dumps(IN_PAIRS), "style": "rule"},
    "extra_info": {"index": 0, "split": "train"},
}  # fmt: skip
IN_REWARD_MODEL = {"reference": "reward_model.ground_truth"}
APPS = {
    "problem_id": 900, "question": ADD, "solutions": json.dumps([PRINTED]), "input_output": json.dumps(IN_PAIRS),
    "difficulty": "introductory", "url": "https://codeforces.com/problemset/problem/1/A", "starter_code": "",
}  # fmt: skip
APPS_KEYS = {"prompt": "question", "reference": "input_output", "template": "{prompt}\n{starter_code}"}
ASKED = "[user:Add up.][bot:"

CODE_SHAPES: dict[str, Shape] = {
    "humaneval": Shape(
        HUMANEVAL, {"reference": "test", "template": "Complete:\n{prompt}"}, CODE,
        f"[user:Complete:\n{STUB}][bot:", *FUNCTION, {"canonical_solution": "    return 0\n"},
    ),
    "humaneval_plus": Shape(
        HUMANEVAL | {"test": f"{PLUS}{RESULTS}\n\ndef check(candidate):\n    {EACH}"
                             "        assertion(candidate(*inp), exp, 0)\n"},
        {"reference": "test", "template": "Complete:\n{prompt}"}, CODE,
        f"[user:Complete:\n{STUB}][bot:", *FUNCTION, {"canonical_solution": "    return 0\n"},
    ),
    "mbpp": Shape(
        MBPP | {"text": ADD, "test_setup_code": "", "challenge_test_list": []},
        {"prompt": "text", "reference": "test_list", "template": TESTS_SHOWN}, CODE,
        f"[user:Add up. Your code should pass these tests:\n{SHOWN}][bot:", *FUNCTION, {"code": NO_TOTAL},
    ),
    "mbpp_sanitized": Shape(
        MBPP | {"source_file": "Benchmark Questions.ipynb", "prompt": ADD, "test_imports": ["import math"]},
        {"reference": "test_list", "template": TESTS_SHOWN}, CODE,
        f"[user:Add up. Your code should pass these tests:\n{SHOWN}][bot:", *FUNCTION, {"code": NO_TOTAL},
    ),
    "mbpp_plus": Shape(
        MBPP | {"source_file": "Benchmark Questions.ipynb", "prompt": ADD, "test_imports": [],
                "test": f"{PLUS}{RESULTS}{EACH}    assertion(total(*inp), exp, 0)\n"},
        {"reference": "test_list", "template": TESTS_SHOWN}, CODE,
        f"[user:Add up. Your code should pass these tests:\n{SHOWN}][bot:", *FUNCTION, {"code": NO_TOTAL},
    ),
    "apps": Shape(
        APPS, APPS_KEYS, CODE, "[user:Add up.\n][bot:", *PROGRAM, {"solutions": json.dumps([NOT_PRINTED])},
    ),
    "apps_calls": Shape(
        APPS | {"input_output": json.dumps(IN_CALLS), "solutions": json.dumps([METHOD]), "starter_code": STARTER},
        APPS_KEYS, CODE, f"[user:Add up.\n{STARTER}][bot:", *CALLED, {"solutions": json.dumps([NO_METHOD])},
    ),
    "live_code_bench": Shape(
        LIVE_CODE_BENCH, LIVE_KEYS, CODE, "[user:Add up.\n][bot:", *PROGRAM, {"private_test_cases": "eJw="}, 0,
    ),
    "live_code_bench_calls": Shape(
        LIVE_CODE_BENCH | {"starter_code": STARTER, "public_test_cases": json.dumps(CALLS),
                           "private_test_cases": packed(MORE_CALLS), "metadata": '{"func_name": "total"}'},
        LIVE_KEYS, CODE, f"[user:Add up.\n{STARTER}][bot:", *CALLED, {"metadata": "{}"}, 0,
    ),
    "big_code_bench": Shape(
        BIG_CODE_BENCH, {"prompt": "instruct_prompt", "reference": "test"}, CODE,
        "[user:Write task_func.][bot:", *MEAN, {"canonical_solution": "    return 0"},
    ),
    "synthetic_1_code": Shape(
        SYNTHETIC, IN_VERIFICATION, CODE, ASKED, *PROGRAM, {"gold_standard_solution": fenced(NOT_PRINTED)},
    ),
    "verifiable_coding_problems": Shape(  # the tasks of SYNTHETIC-1: Python literals instead of JSON
        SYNTHETIC | {"verification_info": str({"language": "python", "test_cases": METHODS}),
                     "gold_standard_solution": fenced(METHOD)},
        IN_VERIFICATION, CODE, ASKED, *CALLED, {"gold_standard_solution": fenced(NO_METHOD)},
    ),
    "open_r1_code": Shape(
        SYNTHETIC | {"verification_info": {"language": "python", "test_cases": PIPED}},
        IN_VERIFICATION, CODE, ASKED, *PROGRAM, {"gold_standard_solution": fenced(NOT_PRINTED)},
    ),
    "prime": Shape(
        PRIME, IN_REWARD_MODEL, CODE, "[system:Think.][user:Add up.][bot:", *PROGRAM,
        {"reward_model": {"ground_truth": '{"inputs": [], "outputs": []}', "style": "rule"}}, 0,
    ),
    "prime_calls": Shape(
        PRIME | {"reward_model": {"ground_truth": json.dumps(IN_CALLS), "style": "rule"}},
        IN_REWARD_MODEL, CODE, "[system:Think.][user:Add up.][bot:", *CALLED,
        {"reward_model": {"ground_truth": '{"fn_name": "total"}', "style": "rule"}}, 0,
    ),
    "deep_coder": Shape(
        {"problem": ADD, "solutions": [fenced(PRINTED)], "tests": json.dumps(PIPED), "starter_code": ""},
        {"prompt": "problem", "reference": "tests"}, CODE, ASKED, *PROGRAM, {"solutions": [fenced(NOT_PRINTED)]},
    ),
}  # fmt: skip
