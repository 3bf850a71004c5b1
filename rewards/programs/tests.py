"""The tests of a dataset row, in the formats of HumanEval, BigCodeBench, MBPP, APPS and TACO, and LiveCodeBench."""

from __future__ import annotations

import base64
import io
import json
import pickle
import zlib
from collections.abc import Mapping
from typing import Any, NoReturn

from rewards.programs.assert_tests import as_setup, readable_prompt, tests_of_code
from sandbox import CallTest, StdinTest, Test

_MAX_UNPACKED = 1 << 28  # bytes of one row's private tests; the largest published row needs a tenth of this


def read_tests(reference: Any, row: Mapping[str, Any], tolerance: float | None = None) -> list[Test]:
    """Read the tests of a dataset row.

    The reference may itself be the mapping, JSON text or list that holds the tests. Known formats, in this order:
    HumanEval and BigCodeBench (`test`, `entry_point`, `prompt`), MBPP (`test_list` or EvalPlus's `test`, with
    `test_setup_code` or `test_imports`), APPS and TACO (`input_output` with `inputs`, `outputs` and perhaps `fn_name`),
    LiveCodeBench (`public_test_cases`, `private_test_cases`, `metadata`).

    Args:
        reference: the row's reference answer.
        row: the row's other columns.
        tolerance: tolerance of every test that compares numbers.

    Raises:
        ValueError: no format fits, the row has no test, or its test code tests nothing or needs the program's
            process.
    """
    merged = dict(row)
    value = _from_json(reference)
    if isinstance(value, Mapping):
        merged.update({"input_output": value} if "inputs" in value else value)
    elif isinstance(value, list):
        merged["test_list"] = value
    elif isinstance(value, str) and "test" not in row and ("entry_point" in row or "assert" in value):
        merged["test"] = value
    tests: list[Test] = []
    if _has_test_code(merged):
        tests = [*tests_of_code(merged["test"], entry_point(merged), _setup(merged))]
    elif merged.get("test_list"):
        tests = _mbpp(merged)
    elif merged.get("input_output"):
        tests = _apps(_from_json(merged["input_output"]), tolerance)
    elif "public_test_cases" in merged or "private_test_cases" in merged:
        tests = _live_code_bench(merged, tolerance)
    if not tests:
        raise ValueError(
            f"no code tests in this row: expected columns of HumanEval (test, entry_point), MBPP (test_list), APPS "
            f"or TACO (input_output) or LiveCodeBench (public_test_cases), got {sorted(merged)} and reference "
            f"a {type(reference).__name__}; name the columns in the data section or use another verifier"
        )
    return tests


def _from_json(value: Any) -> Any:
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


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


def _live_code_bench(row: Mapping[str, Any], tolerance: float | None) -> list[Test]:
    metadata = _from_json(row.get("metadata") or "{}")
    function = metadata.get("func_name") if isinstance(metadata, Mapping) else None
    cases = _from_json(row.get("public_test_cases") or [])
    private = _from_json(row.get("private_test_cases") or [])
    if isinstance(private, str):
        private = _unpack(private)
    tests: list[Test] = []
    for case in [*cases, *private]:
        if case.get("testtype") == "functional":
            if not function:
                raise ValueError("a functional LiveCodeBench test needs metadata.func_name, which this row lacks")
            arguments = [json.loads(line) for line in case["input"].splitlines() if line.strip()]
            tests.append(CallTest(function, arguments, json.loads(case["output"]), tolerance=tolerance))
        else:
            tests.append(StdinTest(case["input"], case["output"], tolerance))
    return tests


class _PlainUnpickler(pickle.Unpickler):
    """Reads pickles of plain data only: LiveCodeBench packs its private tests as a pickled string."""

    def find_class(self, module_name: str, global_name: str) -> NoReturn:
        raise ValueError(f"private_test_cases holds a {module_name}.{global_name}; only plain data is read")


def _unpack(packed: str) -> list[dict[str, Any]]:
    """Unpack LiveCodeBench's private tests: a pickled JSON text, compressed with zlib and encoded as base64."""
    unpacker = zlib.decompressobj()
    data = unpacker.decompress(base64.b64decode(packed), _MAX_UNPACKED)
    if unpacker.unconsumed_tail:
        raise ValueError(f"private_test_cases unpacks to more than {_MAX_UNPACKED} bytes")
    text = _PlainUnpickler(io.BytesIO(data)).load()
    cases = json.loads(text)
    if not isinstance(cases, list):
        raise ValueError(f"private_test_cases must hold a list of tests, got {type(cases).__name__}")
    return cases
