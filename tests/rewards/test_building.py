from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pool_verifiers
import pytest

from rewards.adapt import Adapted, as_verdict
from rewards.build import VerifierSpec, build_verifier
from rewards.compose import combine
from rewards.verdict import Status, Verdict, correct, error, timeout, wrong

HERE = Path(__file__).parent


def test_importing_the_package_is_light() -> None:
    heavy = "('torch', 'ray', 'vllm', 'sympy', 'mpmath', 'numpy', 'math_verify', 'reasoning_gym', 'grpo')"
    program = f"import sys, rewards; print([name for name in {heavy} if name in sys.modules])"
    root = str(HERE.parents[1])
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert done.stdout.strip() == "[]", done


@pytest.mark.parametrize(
    "use", ["pool_verifiers:right", "pool_verifiers.right", f"{HERE}/pool_verifiers.py:right", "numeric"]
)
def test_every_way_to_name_a_verifier(use) -> None:
    verifier = build_verifier(use)
    assert verifier("42", "42", {}).status is Status.CORRECT
    assert verifier("42", "43", {}).status is Status.WRONG


def test_an_entry_point_is_found(monkeypatch) -> None:
    entry = importlib.metadata.EntryPoint("from_elsewhere", "pool_verifiers:right", "grpo.verifiers")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [entry] if group == "grpo.verifiers" else [])
    assert build_verifier("from_elsewhere")("a", "a", {}).status is Status.CORRECT
    with pytest.raises(ValueError, match="did you mean 'from_elsewhere'"):
        build_verifier("from_elsewhere_")


@pytest.mark.parametrize(
    ("use", "options", "told"),
    [
        ("formt", {}, "did you mean 'format'"),
        ("pool_verifiers:rihgt", {}, "did you mean 'right'"),
        ("no_such_module:right", {}, "PYTHONPATH"),
        ("no/such/file.py:right", {}, "does not exist"),
        ("numeric", {"fnid": ["hash"]}, "does not take the options"),
        ("numeric", {"find": ["hsah"]}, "hsah"),
        ("pool_verifiers:right", {"strict": True}, "does not take the options"),
        ("numeric", {"bounds": 3}, "bounds must be"),
        ("pool_verifiers:HERE", {}, "has no 'HERE'"),
    ],
)
def test_mistakes_in_the_config_are_told(use, options, told) -> None:
    with pytest.raises(ValueError, match=told):
        build_verifier(use, options)


@pytest.mark.parametrize(
    "use",
    [
        "subprocess:getoutput",
        "subprocess.getoutput",
        "builtins:eval",
        "os:system",
        "importlib.util:spec_from_file_location",
        # Under a name that another module has it by, alone or with arguments bound.
        "pool_verifiers:subprocess.run",
        "standard:shell",
        "standard:bound",
        "standard:method",
        f"{subprocess.__file__}:getoutput",
    ],
)
def test_a_config_calls_nothing_of_the_standard_library(use: str, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "standard.py").write_text(
        "import functools, os\nfrom pathlib import Path\nfrom subprocess import getoutput as shell\n"
        "bound = functools.partial(functools.partial(os.system), 'id')\nmethod = Path('/').rglob\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"standard library|has no"):
        build_verifier(use)


def test_options_reach_classes_and_functions() -> None:
    assert build_verifier("numeric", {"find": ["hash"]})("#### 5", "5", {}).status is Status.CORRECT
    assert build_verifier("numeric", {"find": ["hash"]})("\\boxed{5}", "5", {}).status is Status.UNPARSEABLE
    wide = build_verifier("pool_verifiers:huge", {"bounds": [0, 1e10]})
    assert wide("", "", {}).score == 10**9
    assert build_verifier("pool_verifiers:huge")("", "", {}).status is Status.ERROR


@pytest.mark.parametrize(
    ("value", "status", "score"),
    [
        (True, Status.CORRECT, 1.0),
        (False, Status.WRONG, 0.0),
        (0.25, Status.CORRECT, 0.25),
        (0, Status.WRONG, 0.0),
        (-1.5, Status.WRONG, -1.5),
        (wrong("no", 0.5), Status.WRONG, 0.5),
        (float("inf"), Status.ERROR, None),
        (None, Status.ERROR, None),
        ("1.0", Status.ERROR, None),
        ([1.0], Status.ERROR, None),
        (10**400, Status.ERROR, None),
        (correct("far too good", 1e6), Status.ERROR, None),
    ],
)
def test_what_a_function_may_return(value, status, score) -> None:
    verdict = as_verdict(value)
    assert (verdict.status, verdict.score) == (status, score)


def test_what_a_function_raises_is_told_with_its_place() -> None:
    verdict = Adapted(pool_verifiers.raises)("", "", {})
    assert verdict.status is Status.ERROR
    assert "LookupError: no such gene" in verdict.reason and "pool_verifiers.py" in verdict.reason


def test_async_functions_run_with_and_without_a_loop() -> None:
    import asyncio

    verifier = Adapted(pool_verifiers.eventually)
    assert verifier("a", "a", {}).status is Status.CORRECT

    async def inside() -> Verdict:
        return verifier("a", "b", {})

    assert asyncio.run(inside()).status is Status.WRONG


def test_the_signature_is_checked_when_it_is_built() -> None:
    with pytest.raises(ValueError, match="must take"):
        Adapted(lambda completion: True)


SPECS = [
    VerifierSpec("format", "format", weight=0.2, gate=True),
    VerifierSpec("answer", "math", weight=1.0),
    VerifierSpec("length", "length", weight=0.5),
]


def test_weights_add_up_under_their_names() -> None:
    reward = combine(SPECS, {"format": correct(), "answer": correct(score=0.5), "length": wrong("", -1.0)})
    assert reward.value == pytest.approx(0.2 + 0.5 - 0.5)
    assert reward.parts == {"format": 0.2, "answer": 0.5, "length": -0.5}


def test_a_closed_gate_zeroes_the_others_and_not_itself() -> None:
    reward = combine(SPECS, {"format": wrong("", 0.5), "answer": correct(), "length": wrong("", -1.0)})
    assert reward.closed == ("format",)
    assert reward.parts == {"format": pytest.approx(0.1), "answer": 0.0, "length": 0.0}
    assert reward.value == pytest.approx(0.1)


def test_a_failure_never_becomes_a_score() -> None:
    reward = combine(SPECS, {"format": correct(), "answer": timeout("slow"), "length": correct("", 0.0)})
    assert reward.value is None and reward.failed == ("answer",)
    reward = combine(SPECS, {"format": error("broken"), "answer": correct(), "length": correct("", 0.0)})
    assert reward.value is None and reward.failed == ("format",)


def test_a_failure_behind_a_closed_gate_or_of_no_weight_does_not_matter() -> None:
    reward = combine(SPECS, {"format": wrong(), "answer": timeout("slow"), "length": correct("", 0.0)})
    assert reward.value == 0.0 and not reward.failed
    only_watched = [VerifierSpec("answer", "math"), VerifierSpec("style", "x.y", weight=0.0)]
    assert combine(only_watched, {"answer": correct(), "style": error("broken")}).value == 1.0


def test_every_spec_needs_its_verdict() -> None:
    with pytest.raises(ValueError, match="exactly"):
        combine(SPECS, {"format": correct()})
    with pytest.raises(ValueError, match="finite"):
        combine([VerifierSpec("a", "math", weight=float("nan"))], {"a": correct()})
