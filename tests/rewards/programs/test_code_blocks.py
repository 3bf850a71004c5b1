"""Which block of a completion is the program, and what of it is kept."""

from __future__ import annotations

import time

import pytest

from rewards.answers.thinking import thinking_tags
from rewards.programs.blocks import complete_program, extract_code
from sandbox import Language


def fenced(code: str, tag: str = "python") -> str:
    return f"Here it is:\n```{tag}\n{code}\n```\nDone."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (fenced("x = 1"), "x = 1\n"),
        (fenced("x = 1") + fenced("x = 2"), "x = 2\n"),
        (fenced("x = 1") + fenced("let x", "javascript"), "x = 1\n"),
        (fenced("x = 1", ""), "x = 1\n"),
        (fenced("x = 1") + fenced("x = 2", ""), "x = 1\n"),
        (fenced("x = 1", "Python"), "x = 1\n"),
        ("~~~py\nx = 1\n~~~", "x = 1\n"),
        ("````python\ns = '''\n```\n'''\n````", "s = '''\n```\n'''\n"),
        ("```python\nx = 1", None),
        ("x = 1", None),
        ("", None),
        (fenced("x = 1", "cpp"), None),
        ('```python title="a"\nx = 1\n```', "x = 1\n"),
        ("```python\n```", "\n"),
        ("```python\r\nx = 1\r\ny = 2\r\n```\r\n", "x = 1\ny = 2\n"),
        ("say ```python x``` so", None),
    ],
)
def test_the_last_block_of_the_right_language(text: str, expected: str | None) -> None:
    assert extract_code(text, Language.PYTHON) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1. so\n   ```python\n   if 1:\n       a = 1\n   ```", "if 1:\n    a = 1\n"),
        ("   1. so\n\n      ```python\n      a = 1\n      ```", "a = 1\n"),
        ("10. ```python\n    if 1:\n        a = 1\n    ```", "if 1:\n    a = 1\n"),
        ("- ~~~py\n  a = 1\n  ~~~", "a = 1\n"),
        ("\t```python\n\ta = 1\n\t```", "a = 1\n"),
        ("  ```python\na = 1\n  ```", "a = 1\n"),
        ('```python\ndef f():\n    """\n    ```\n    """\n```', 'def f():\n    """\n    ```\n    """\n'),
        ("```python\na = 'x\x0cy'\n```", "a = 'x\x0cy'\n"),
        ("```python\na = 'x\x85y\u2028z\x1c'\n```", "a = 'x\x85y\u2028z\x1c'\n"),
    ],
)  # fmt: skip
def test_code_keeps_its_lines_and_loses_the_fences_indentation(text: str, expected: str) -> None:
    assert extract_code(text, Language.PYTHON) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>" + fenced("x = 1") + "</think>no code", None),
        ("<think>" + fenced("x = 1") + "</think>" + fenced("x = 2"), "x = 2\n"),
        ("<think>" + fenced("x = 1"), None),
        ("<think>a</think>b<think>" + fenced("x = 1"), None),
        ("a</think>" + fenced("x = 1"), "x = 1\n"),
        (fenced("x = 1") + "\n</think>\nno code", None),
        ("so\n```python\nx = 1\n</think>\n" + fenced("x = 2"), "x = 2\n"),
        ("<think>\n```python\nx = 1\n</think>\n" + fenced("x = 2"), "x = 2\n"),
        (fenced("s = '</think>'"), "s = '</think>'\n"),
        (fenced("s = '<think>a'"), "s = '<think>a'\n"),
        (fenced("s = '''\n<think>\na\n</think>\n'''"), "s = '''\n<think>\na\n</think>\n'''\n"),
        ("<think>a</think>" + fenced("s = '<think>a</think>'"), "s = '<think>a</think>'\n"),
        (fenced("x = 1") + "\nIt looks for `</think>`.", "x = 1\n"),
        ("<think>I print '</think>'. " + fenced("x = 1") + "\n</think>\n" + fenced("x = 2"), "x = 2\n"),
    ],
)
def test_only_tags_of_reasoning_end_it(text: str, expected: str | None) -> None:
    assert extract_code(text, Language.PYTHON) == expected


def test_reasoning_tags_of_ones_own_and_of_known_models() -> None:
    text = "<plan>" + fenced("x = 1") + "</plan>" + "no code"
    assert extract_code(text, Language.PYTHON) == "x = 1\n"
    assert extract_code(text, Language.PYTHON, tags=thinking_tags(["plan"])) is None
    assert extract_code(text.replace("plan", "reasoning"), Language.PYTHON) is None


def test_an_example_behind_the_solution_is_not_the_program() -> None:
    solution = "def f(x):\n    return x\n"
    usage = fenced("from solution import f\nprint(f(1))")
    assert extract_code(fenced(solution) + usage, Language.PYTHON, ["f"]) == solution + "\n"
    assert extract_code(fenced("class f:\n    pass") + usage, Language.PYTHON, ["f"]) == "class f:\n    pass\n"
    later = fenced("def f(x):\n    return 2")
    assert extract_code(fenced(solution) + later + usage, Language.PYTHON, ["f"]) == "def f(x):\n    return 2\n"
    both = fenced("def f(x): return g(x)\ndef g(x): return 1")
    assert "g(x)" in (extract_code(both + fenced("def g(x): return 2"), Language.PYTHON, ["f", "g"]) or "")
    assert extract_code(fenced("x = 1") + usage, Language.PYTHON, ["f"]) == "from solution import f\nprint(f(1))\n"


@pytest.mark.parametrize(
    "unit",
    [
        "`",
        "```",
        "```a`",
        "~~~\n",
        "```python\n",
        " ",
        "\t```\n",
        "</think>",
        "```python\n</think>\n",
        "1. ",
        "- ",
        "def ",
    ],
)
@pytest.mark.parametrize("before", ["", "```", "```python\n", "<think>", "```python\nx = 1\n```\n"])
def test_any_text_takes_milliseconds(unit: str, before: str) -> None:
    for text in (before + unit * (100_000 // len(unit)), before + "a" * 50_000 + unit * (50_000 // len(unit)) + "`\nx"):
        started = time.process_time()
        extract_code(text, Language.PYTHON, ["def", "f"])
        assert time.process_time() - started < 0.5, (before, unit)


def test_a_prompt_that_is_no_python_is_not_put_before_the_program() -> None:
    row = {"prompt": "Complete this:\n```python\nimport math\ndef f(x):\n```", "entry_point": "f"}
    assert complete_program("def f(x): return x\n", row) == "def f(x): return x\n"
    stub = {"code_prompt": "import math\ndef f(x):\n", "entry_point": "f", "prompt": "Write f."}
    assert complete_program("    return math.pi\n", stub) == "import math\ndef f(x):\n    return math.pi\n"
    assert complete_program("def f(x): return 1\n", stub) == "import math\n\ndef f(x): return 1\n"
