"""Test code of rows: what pays nobody, what is run as its runner would, and what is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from row_shapes.programs import PLUS

from rewards.programs.tests import read_tests
from rewards.verdict import Status
from rewards.verifiers.code import CodeVerifier
from sandbox import AssertTest


def fenced(code: str) -> str:
    return f"```python\n{code}\n```"


def row(test: str, **columns: Any) -> dict[str, Any]:
    return {"entry_point": "add", "test": test, **columns}


NO_PYTHON = fenced("this is not even python")
UNITTEST = """
import unittest
from unittest import TestCase
class TestCases(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.one = 1
    def setUp(self):
        self.two = 2
    def test_sum(self):
        self.assertEqual(add(self.one, self.two), 3)
    def test_each(self):
        for number in range(3):
            with self.subTest(number=number):
                self.assertEqual(add(number, 1), number + 1)
    def test_text(self):
        with self.assertRaisesRegex(ValueError, "text"):
            add("a", 1)
    @unittest.skip("never")
    def test_skipped(self):
        self.assertEqual(add(1, 1), 3)
    @unittest.expectedFailure
    def test_broken(self):
        self.assertEqual(add(1, 1), 3)
if __name__ == "__main__":
    unittest.main()
"""
PYTEST = """
import pytest
@pytest.fixture
def three():
    yield 3
@pytest.mark.parametrize("a, b, total", [(1, 2, 3), (2, 2, 4)])
def test_sums(a, b, total):
    assert add(a, b) == total
def test_fixture(three):
    assert add(three, 0.1) == pytest.approx(3.1)
class TestText:
    def test_text(self):
        with pytest.raises(ValueError, match="text"):
            add("a", 1)
"""
LOOP = """
inputs = [[1, 2], [0.1, 0.2]]
results = [3, 0.30000001]
for i, (inp, exp) in enumerate(zip(inputs, results)):
    assertion(CALLED(*inp), exp, 0)
"""
CHECKED = PLUS + "def check(candidate):" + LOOP.replace("\n", "\n    ").replace("CALLED", "candidate")
RIGHT = "class Text(ValueError): pass\ndef add(a, b):\n    if a == 'a': raise Text('a text')\n    return a + b"
WRONG_SUM = RIGHT.replace("return a + b", "return a - b")
NO_ERROR = "def add(a, b): return a + b if a != 'a' else 0"


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        (row(""), "does nothing"),
        (row("# a comment"), "does nothing"),
        (row('"""text"""\npass'), "does nothing"),
        (row("METADATA = {}"), "never mentions the program"),
        (row("if __name__ == '__main__':\n    assert add(1, 2) == 3"), "which is not run"),
        (row("def test():\n    pass"), "never mentions the program"),
        (row("def run():\n    assert add(1, 2) == 3"), "nobody calls"),
        (row("def check(candidate):\n    print(candidate(1, 2))"), "asserts nothing"),
        (row("assert add(1, 2) =="), "is not Python"),
        ({"test_list": ["", "  "]}, "does nothing|no code tests"),
        ({"test_list": ["def check(f):\n    assert f(1) == 2"]}, "never mentions the program"),
        (row("from unittest.mock import patch\n@patch('a.b')\ndef test_a(m):\n    assert add(1, 2)"), "unittest.mock"),
        (row("def test_a():\n    result = add(1, 2)\n    assert result.shape == (1,)"), r"`\.shape` of a result"),
        (row("import numpy as np\ndef test_a():\n    assert isinstance(add(1, 2), np.ndarray)"), "type ndarray"),
        (row("def test_a():\n    with open('a', 'w') as f: f.write('1')\n    assert add('a', 1)"), "`open`"),
        (
            row("from solution import add, Bad\ntry:\n    assert add(1, 2)\nexcept Bad:\n    pass"),
            "own exception `Bad`",
        ),
        (row("def test_a(self):\n    with self.assertRaises(Bad):\n        add(1, 2)"), "own exception `Bad`"),
        (row("import tempfile\nd = tempfile.mkdtemp()\nassert add(d, 1)"), "`tempfile`"),
        (row(UNITTEST, libs="['pandas', 'random']"), "pandas.*preload"),
        (row("import pandas as pd\nassert add(pd.NA, 2) == 3"), "pandas.*preload"),
    ],
)
def test_tests_that_could_pay_nobody_are_refused(columns: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        CodeVerifier()(NO_PYTHON, columns.get("test"), columns)
    assert CodeVerifier().reference_problem(columns.get("test"), columns)


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        (row("def check(candidate):\n    assert True"), "never called"),
        (row("def test_a():\n    import no_module\n    assert add(1, 2) == 3"), "No module named 'no_module'"),
        (row("def test_a(tmp_path):\n    assert add(1, 2) == 3"), "fixture 'tmp_path'"),
        (row("import pytest\n@pytest.mark.asyncio\ndef test_a():\n    assert add(1, 2) == 3"), "pytest.mark.asyncio"),
        (row("def check(candidate):\n    assert candidate(lambda: 1, 2) == 3"), "passes a function"),
    ],
)
def test_a_test_that_never_called_the_program_is_an_error(columns: dict[str, Any], why: str) -> None:
    for completion in (NO_PYTHON, fenced(RIGHT)):
        verdict = CodeVerifier()(completion, None, columns)
        assert verdict.status is Status.ERROR and why in verdict.reason, verdict


@pytest.mark.parametrize(
    ("test", "why"),
    [
        ("def check(candidate):\n    assert True", "no test called"),
        ("def check(candidate):\n    if False:\n        assert candidate(1, 2) == 3", "no test called"),
        ("def run(f):\n    return f\ndef check(candidate):\n    assert run(candidate)(1, 2) == 3", ""),
        ("def run(f):\n    return f\ndef check(candidate):\n    assert run(candidate)(1, 2)", "does nothing passes"),
        ("def check(candidate):\n    f = candidate\n    assert f(lambda: 1, 2) == 3", "passes a function"),
    ],
)
def test_what_the_text_does_not_tell_is_tried(test: str, why: str) -> None:
    problem = CodeVerifier().reference_problem(None, row(test))
    assert why in problem if why else problem == ""


def test_what_the_text_tells_is_not_run() -> None:
    calls = row("def check(candidate):\n    for n in range(3):\n        assert candidate(n, 1) == n + 1")
    nowhere = CodeVerifier(level="full", preload=["no_such_module"])  # type: ignore[arg-type]
    object.__setattr__(nowhere, "level", None)  # a sandbox at no level cannot be made
    for columns in (calls, {"test_list": ["assert add(1, 2) == 3"]}, row(UNITTEST)):
        assert nowhere.reference_problem(None, columns) == ""


def test_tests_that_every_program_passes_are_told() -> None:
    silent = {"inputs": ["1", "2"], "outputs": ["", ""]}
    assert "does nothing passes" in CodeVerifier().reference_problem(silent, {})
    assert CodeVerifier().reference_problem({"inputs": ["1", "2"], "outputs": ["", "1"]}, {}) == ""
    assert "no code tests" in CodeVerifier().reference_problem("42", {"question": "?"})
    assert "only Python" in CodeVerifier(language="cpp").reference_problem("", row(UNITTEST))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("test", "tests", "no_error_passes"),
    [(UNITTEST, 5, 2), (PYTEST, 3, 2)],
    ids=["unittest", "pytest"],
)
def test_test_methods_and_functions_are_run(test: str, tests: int, no_error_passes: int) -> None:
    columns = row(test, libs="['unittest']", code_prompt="def add(a, b):\n")
    assert len(read_tests(test, columns)) == tests
    whole, part = CodeVerifier(), CodeVerifier(partial_credit=True)
    assert whole.reference_problem(test, columns) == ""
    assert whole(fenced(RIGHT), test, columns).status is Status.CORRECT
    assert part(fenced(RIGHT), test, columns).score == 1.0
    assert part(fenced(NO_ERROR), test, columns).score == pytest.approx(
        no_error_passes / 3
    )  # what is left out counts not
    for program in (
        WRONG_SUM,
        NO_ERROR,
        "this is not even python",
        "import unittest\ndef add(a, b): raise unittest.SkipTest",
    ):
        verdict = whole(fenced(program), test, columns)
        assert (verdict.status, verdict.score) == (Status.WRONG, 0.0), (program, verdict)


@pytest.mark.parametrize(
    "columns",
    [
        row(CHECKED, prompt="def add(a, b):\n"),
        {"test": "from solution import add\n" + PLUS + LOOP.replace("CALLED", "add")},
        {"test": PLUS + LOOP.replace("CALLED", "add"), "test_list": ["assert add(1, 2) == 3"], "test_imports": []},
    ],
    ids=["HumanEval+", "an import of the program", "MBPP+"],
)
def test_modules_are_chosen_by_the_tests_text_too(columns: dict[str, Any]) -> None:
    verify = CodeVerifier()
    for comment in ("", "# numpy\n"):
        assert verify(fenced(comment + RIGHT), None, columns).status is Status.CORRECT
        assert verify(fenced(comment + WRONG_SUM), None, columns).status is Status.WRONG


def test_leetcodes_entry_point_is_a_method() -> None:
    columns = {
        "entry_point": "Solution().total",
        "test": "def check(candidate):\n    assert candidate(nums=[1, 2]) == 3",
        "prompt": "from typing import *\n",
    }
    solution = "class Solution:\n    def total(self, nums): return sum(nums)"
    assert CodeVerifier()(fenced(solution), None, columns).status is Status.CORRECT
    assert CodeVerifier()(fenced(solution.replace("sum", "len")), None, columns).status is Status.WRONG


def test_every_case_of_test_code_is_one_test() -> None:
    tests = read_tests(None, row(UNITTEST))
    assert [test.case for test in tests if isinstance(test, AssertTest)] == [
        f"TestCases.test_{name}" for name in ("sum", "each", "text", "skipped", "broken")
    ]


SKIPPING = """
import unittest
class TestCases(unittest.TestCase):
    def test_sum(self):
        try:
            total = add(1, 2)
        except NotImplementedError:
            self.skipTest("not there")
        self.assertEqual(total, 3)
"""
INHERITED = "import unittest\nclass A(unittest.TestCase):\n    def test_a(self): self.assertEqual(add(1, 1), 2)\n"
CONDITIONAL = "def test_a():\n    assert add(1, 1) == 2\nif True:\n    def test_b():\n        assert add(1, 2) == 3\n"


@pytest.mark.parametrize(
    "test",
    [
        INHERITED + "class B(A):\n    def test_b(self): self.assertEqual(add(1, 2), 3)\n",
        INHERITED + "setattr(A, 'test_b', lambda self: self.assertEqual(add(1, 2), 3))\n",
        CONDITIONAL,
        CONDITIONAL.replace("if True:\n    def test_b():", "def b():\n    if True:") + "test_b = b\n",
        INHERITED + "assert add(1, 2) == 3\n",
        INHERITED + "unittest.main()\ndef test_b():\n    assert add(1, 2) == 3\n",
        "def test_a():\n    assert add(1, 1) == 2 and add(1, 2) == 3\nif __name__ == '__main__':\n    test_a()\n",
    ],
)
def test_no_test_is_passed_over(test: str) -> None:
    for verify in (CodeVerifier(), CodeVerifier(partial_credit=True)):
        assert verify(fenced("def add(a, b): return a + b"), None, {"test": test}).status is Status.CORRECT
        wrong = verify(fenced("def add(a, b): return 2"), None, {"test": test})
        assert wrong.status in (Status.WRONG, Status.SCORED) and wrong.score in (0.0, 0.5), wrong


HOSTILE = {
    "a key of 5000 digits": "def add(a, b): return {10**5000: 1}",
    "a complex number": "def add(a, b): return 1j",
    "a quiet end of a loop": "def add(a, b): raise StopIteration",
    "a skip": "import unittest\ndef add(a, b): raise unittest.SkipTest('x')",
    "an error that tests skip by": "def add(a, b): raise NotImplementedError",
    "an exception with an odd name": "E = type('\\ud800' * 9999, (Exception,), {})\ndef add(a, b): raise E('\\ud800')",
    "an exception without a name": "class M(type):\n __name__ = property(lambda s: 5)\n"
    "class E(Exception, metaclass=M): pass\ndef add(a, b): raise E",
    "a deep reply": "import os\ndef add(a, b): os.write(4, b'{\"ok\": ' + b'[' * 900 + b']' * 900 + b'}\\n')",
    "a long number": "import os\ndef add(a, b): os.write(4, b'{\"ok\": ' + b'9' * 5000 + b'}\\n')",
    "no channel": "import os\nos.closerange(0, 99)\ndef add(a, b): return 3",
}  # fmt: skip


@pytest.mark.parametrize(
    ("reference", "columns"),
    [
        (json.dumps({"fn_name": "add", "inputs": [[1, 2]], "outputs": [[{"a": 1}]]}), {}),
        (json.dumps({"fn_name": "add", "inputs": [[1, 2]], "outputs": [[10**400]]}), {}),
        (None, row("def check(candidate):\n    assert all(map(lambda n: candidate(n, 1) == n + 1, range(3)))")),
        (None, row(SKIPPING)),
    ],
)  # fmt: skip
def test_no_program_chooses_to_be_an_error(reference: Any, columns: dict[str, Any]) -> None:
    verify = CodeVerifier(wall_s=2.0)
    for name, program in HOSTILE.items():
        verdict = verify(fenced(program), reference, columns)
        assert (verdict.status, verdict.score) == (Status.WRONG, 0.0), (name, verdict)


ADDED = "def add(a, b): return a + b"
CAUGHT = "    try:\n        add('a', 1)\n        pytest.fail('no error')\n    except Exception:\n        pass\n"


@pytest.mark.parametrize(
    "body",
    [
        CAUGHT,
        "    with pytest.raises(Exception):\n        with pytest.raises(ValueError):\n            add('a', 1)\n",
        "    with pytest.raises(ValueError):\n        add(1, 1)\n        add(lambda: 1, 2)\n",
    ],
)
def test_test_code_does_not_catch_its_own_failure(body: str) -> None:
    columns = {"test": "import pytest\ndef test_a():\n" + body}
    assert CodeVerifier()(fenced("def add(a, b): return 0"), None, columns).status is Status.WRONG


def test_no_program_uses_up_the_time_in_which_test_code_starts() -> None:
    slow = "import time\ntime.sleep(0.8)\nassert add({}, 1) == 2"
    columns = {"test_list": [slow.format(1), slow.format("1.0")]}
    verify = CodeVerifier(wall_s=3.0, program_s=4.0)
    assert verify(fenced(ADDED), None, columns).status is Status.CORRECT
    verdict = verify(fenced("import time\ntime.sleep(2.8)\n" + ADDED), None, columns)
    assert verdict.status is Status.WRONG, verdict
