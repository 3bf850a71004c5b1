"""The tests of a dataset row, in the formats of HumanEval, BigCodeBench, MBPP, APPS, LiveCodeBench and SYNTHETIC-1."""

from __future__ import annotations

import base64
import json
import pickletools
import zlib
from collections.abc import Mapping
from typing import Any

from rewards.programs.assert_tests import as_setup, readable_prompt, tests_of_code
from rewards.written_values import value_of
from sandbox import CallTest, StdinTest, Test

# Columns with a list of tests, each an object with `input` and `output`: two of LiveCodeBench, one of SYNTHETIC-1.
_CASES = ("public_test_cases", "private_test_cases", "test_cases")
_PAIR = {"input", "output"}
# Operations of a pickled text: those that hold the text, and those that only mark its begin, its end, or a name for it.
_TEXT = ("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8")
_FRAMING = ("PROTO", "FRAME", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "STOP")
_MAX_UNPACKED = 1 << 28  # bytes of one row's private tests; the largest published row needs a tenth of this


def read_tests(reference: Any, row: Mapping[str, Any], tolerance: float | None = None) -> list[Test]:
    """Read the tests of a dataset row.

    The reference may itself be the mapping, JSON text or list that holds the tests. Known formats, in this order:
    HumanEval and BigCodeBench (`test`, `entry_point`, `prompt`), MBPP (`test_list` or EvalPlus's `test`, with
    `test_setup_code` or `test_imports`), APPS and TACO (`input_output` with `inputs`, `outputs` and perhaps `fn_name`),
    LiveCodeBench (`public_test_cases`, `private_test_cases`, `metadata`), SYNTHETIC-1 (`test_cases`; a list of such
    objects is read alike).

    Args:
        reference: the row's reference answer.
        row: the row's other columns.
        tolerance: tolerance of every test that compares numbers.

    Raises:
        ValueError: no format fits, the row has no test, or its test code tests nothing or needs the program's
            process.
    """
    merged = dict(row)
    value = value_of(reference)
    if isinstance(value, Mapping):
        merged.update({"input_output": value} if "inputs" in value else value)
    elif isinstance(value, list):
        merged["test_cases" if any(isinstance(each, Mapping) for each in value) else "test_list"] = value
    elif isinstance(value, str) and "test" not in row and ("entry_point" in row or "assert" in value):
        merged["test"] = value
    tests: list[Test] = []
    if _has_test_code(merged):
        tests = [*tests_of_code(merged["test"], entry_point(merged), _setup(merged))]
    elif merged.get("test_list"):
        tests = _mbpp(merged)
    elif merged.get("input_output"):
        tests = _apps(value_of(merged["input_output"]), tolerance)
    elif any(column in merged for column in _CASES):
        tests = _of_cases(merged, tolerance)
    if not tests:
        raise ValueError(
            f"no code tests in this row: expected columns of HumanEval (test, entry_point), MBPP (test_list), APPS "
            f"or TACO (input_output), LiveCodeBench (public_test_cases) or SYNTHETIC-1 (test_cases), got "
            f"{sorted(merged)} and reference a {type(reference).__name__}; name the column with the tests by "
            "data.reference, or use another verifier"
        )
    return tests


def _has_test_code(row: Mapping[str, Any]) -> bool:
    """Whether the column `test` holds the tests. HumanEval also has an entry point, EvalPlus's MBPP a `test_list`."""
    code = row.get("test")
    if not isinstance(code, str) or row.get("input_output"):
        return False
    return entry_point(row) is not None or ("assert" in code if row.get("test_list") else True)


def entry_point(row: Mapping[str, Any]) -> str | None:
    """The function under test that a row names; if it names `Solution().name`, as LeetCode does, return `name`."""
    entry = row.get("entry_point")
    return entry.removeprefix("Solution().") if isinstance(entry, str) and entry else None


def _setup(row: Mapping[str, Any]) -> str:
    """Trusted code that the tests of a row may use: the row's imports, and the row's stub, which may define helpers."""
    imports = row.get("test_imports") or []
    before = imports if isinstance(imports, list) else [str(imports)]
    return "\n".join([*before, row.get("test_setup_code") or ""]).strip("\n") or as_setup(readable_prompt(row))


def _mbpp(row: Mapping[str, Any]) -> list[Test]:
    codes = [code for code in row["test_list"] if not isinstance(code, str) or code.strip()]
    if not all(isinstance(code, str) for code in codes):
        raise ValueError(f"test_list must hold texts of test code, got {codes!r:.100}")
    setup = _setup(row) if row.get("test_imports") or row.get("test_setup_code") else ""
    return [test for code in codes for test in tests_of_code(code, None, setup)]


def _apps(content: Any, tolerance: float | None) -> list[Test]:
    if not isinstance(content, Mapping):
        return []
    inputs, outputs = list(content.get("inputs", [])), list(content.get("outputs", []))
    if not inputs and not outputs:
        raise ValueError("the row has an empty list of tests: inputs and outputs have no items")
    if len(inputs) != len(outputs):
        raise ValueError(f"input_output has {len(inputs)} inputs and {len(outputs)} outputs; the numbers must be equal")
    function = content.get("fn_name")
    if not function:
        return [
            StdinTest(_joined(given), _joined(expected), tolerance)
            for given, expected in zip(inputs, outputs, strict=True)
        ]
    # Both data sets wrap every expected result in a list.
    wrapped = all(isinstance(expected, list) and len(expected) == 1 for expected in outputs)
    return [
        CallTest(function, given, expected[0] if wrapped else expected, tolerance=tolerance)
        for given, expected in zip(inputs, outputs, strict=True)
    ]


def _joined(lines: Any) -> str:
    return "\n".join(map(str, lines)) if isinstance(lines, list) else str(lines)


def _of_cases(row: Mapping[str, Any], tolerance: float | None) -> list[Test]:
    """The tests of a row that describes each test by an object with `input` and `output`."""
    metadata = value_of(row.get("metadata"))
    function = metadata.get("func_name") if isinstance(metadata, Mapping) else None
    cases = [case for column in _CASES for case in _cases_in(row.get(column), column)]
    functional = [case for case in cases if case.get("testtype") == "functional"]
    tests: list[Test] = []
    for case in functional:
        name = function or _metadata_of(case).get("func_name")
        if not name:
            raise ValueError("a functional LiveCodeBench test needs metadata.func_name, which this row lacks")
        arguments = [json.loads(line) for line in case["input"].splitlines() if line.strip()]
        tests.append(CallTest(name, arguments, json.loads(case["output"]), tolerance=tolerance))
    others = [case for case in cases if case.get("testtype") != "functional"]
    for name in dict.fromkeys(case.get("fn_name") for case in others):
        same = [case for case in others if case.get("fn_name") == name]
        pairs = {"inputs": [case["input"] for case in same], "outputs": [case["output"] for case in same]}
        tests += _apps({"fn_name": name, **pairs}, tolerance)
    return tests


def _metadata_of(case: Mapping[str, Any]) -> Mapping[str, Any]:
    metadata = value_of(case.get("metadata"))
    return metadata if isinstance(metadata, Mapping) else {}


def _cases_in(value: Any, column: str) -> list[Mapping[str, Any]]:
    cases = value_of(value)
    if isinstance(cases, str) and column == "private_test_cases":
        cases = value_of(_unpack(cases))
    if cases is None:
        return []
    if not isinstance(cases, list) or not all(isinstance(case, Mapping) and case.keys() >= _PAIR for case in cases):
        raise ValueError(f"{column} must hold a list of objects with input and output, got {cases!r:.100}")
    return cases


def _unpack(packed: str) -> str:
    """Unpack LiveCodeBench's private tests: a pickled JSON text, compressed with zlib and encoded as base64.

    The pickle is read, not run: besides the text, it may hold only operations that do nothing to the text.
    """
    unpacker = zlib.decompressobj()
    try:
        data = unpacker.decompress(base64.b64decode(packed), _MAX_UNPACKED)
        if unpacker.unconsumed_tail:
            raise ValueError(f"more than {_MAX_UNPACKED} bytes")
        return _pickled_text(data)
    except (ValueError, zlib.error) as problem:
        raise ValueError(f"private_test_cases cannot be unpacked ({problem}); download the row again") from problem


def _pickled_text(data: bytes) -> str:
    texts = []
    for operation, argument, _ in pickletools.genops(data):
        if operation.name in _TEXT:
            texts.append(str(argument))
        elif operation.name not in _FRAMING:
            raise ValueError(f"a pickle with {operation.name}; only a pickled text is read")
    if len(texts) != 1:
        raise ValueError(f"{len(texts)} pickled texts; expected 1")
    return texts[0]
