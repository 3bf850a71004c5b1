from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import resource
import subprocess
import sys
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pool_verifiers
import pytest
import torch

from rewards import raised
from rewards.adapt import Adapted, as_verdict
from rewards.build import VerifierSpec, build_verifier
from rewards.compose import combine
from rewards.named_code import MOVED
from rewards.pool import VerifierPool
from rewards.raised import describe
from rewards.verdict import Status, Verdict, correct, error, scored, timeout, wrong

HERE = Path(pool_verifiers.__file__).parent


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


@pytest.mark.parametrize("dot", [":", "."])
def test_a_built_in_verifier_answers_to_the_name_that_its_module_had(dot) -> None:
    for use, verifier in (("rewards.code", "CodeVerifier"), ("rewards.math_verify_grader", "MathVerify")):
        assert type(build_verifier(f"{use}{dot}{verifier}").function).__name__ == verifier
    for before, today in MOVED.items():
        assert importlib.util.find_spec(before) is None and importlib.util.find_spec(today) is not None, before


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
        ("no_such_module:right", {}, "No module named 'no_such_module'; is .* PYTHONPATH"),
        ("no/such/file.py:right", {}, "does not exist"),
        ("numeric", {"fnid": ["hash"]}, "does not take the options .*'fnid'; it takes find, "),
        ("numeric", {"find": ["hsah"]}, "hsah"),
        ("pool_verifiers:right", {"strict": True}, "does not take the options .*'strict'; it takes no options"),
        ("numeric", {"bounds": 3}, "bounds must be"),
        ("numeric", {"bounds": ["a", "b"]}, "bounds must be two numbers"),
        ("pool_verifiers:right", {"conversational": True}, "right has another signature; remove the option"),
        ("pool_verifiers:HERE", {}, "has no 'HERE'"),
        (f"{HERE}/pool_verifiers.py", {}, r"write .*pool_verifiers.py:function \(it has right, slow, "),
        (f"{HERE}/pool_verifiers.py:", {}, "no function in it"),
        (f"{HERE}/pool_verifiers", {}, "pool_verifiers.py:function"),
        (f"{HERE}/pool_verifiers.py:rihgt", {}, r"pool_verifiers.py has no 'rihgt'; did you mean 'right'"),
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
        (0.25, Status.SCORED, 0.25),
        (1, Status.CORRECT, 1.0),
        (1.5, Status.CORRECT, 1.5),
        (0.7 + 0.2 + 0.1, Status.CORRECT, 1.0),
        (0, Status.WRONG, 0.0),
        (np.isclose(1.0, 1.0), Status.CORRECT, 1.0),
        (np.isclose(1.0, 2.0), Status.WRONG, 0.0),
        (np.float32(0.5), Status.SCORED, 0.5),
        (np.float64(1), Status.CORRECT, 1.0),
        (np.int8(1), Status.CORRECT, 1.0),
        (np.longdouble(0.5), Status.SCORED, 0.5),
        (np.array(1.0), Status.CORRECT, 1.0),
        (np.array(False), Status.WRONG, 0.0),
        (torch.tensor(0.5), Status.SCORED, 0.5),
        (torch.tensor(True), Status.CORRECT, 1.0),
        (torch.tensor(1.0, requires_grad=True), Status.CORRECT, 1.0),
        (Fraction(1, 2), Status.SCORED, 0.5),
        (Decimal("1.0"), Status.CORRECT, 1.0),
        (scored(0.9), Status.SCORED, 0.9),
        (correct(score=np.float32(0.25)), Status.CORRECT, 0.25),
        (np.float32("nan"), Status.ERROR, None),
        (Decimal("Infinity"), Status.ERROR, None),
        (torch.tensor(float("nan")), Status.ERROR, None),
        (np.array([1.0]), Status.ERROR, None),
        (torch.zeros(2, 2), Status.ERROR, None),
        (np.str_("1.0"), Status.ERROR, None),
        (np.array("1.0"), Status.ERROR, None),
        (np.complex128(1), Status.ERROR, None),
        (np.datetime64("2020-01-01"), Status.ERROR, None),
        (b"1", Status.ERROR, None),
        (1j, Status.ERROR, None),
        (float, Status.ERROR, None),
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
    assert (verdict.status, verdict.score) == (status, score if score is None else pytest.approx(score))
    assert score is None or type(verdict.score) is float
    assert score is not None or "expected" in verdict.reason or "outside" in verdict.reason


def test_where_correct_begins_is_the_pass_mark() -> None:
    half = build_verifier("pool_verifiers:half", {"pass_mark": 0.5})
    assert half("", "", {"hard": True}).status is Status.CORRECT
    assert build_verifier("pool_verifiers:half")("", "", {"hard": True}).status is Status.SCORED
    assert as_verdict(0, pass_mark=0).status is Status.CORRECT and as_verdict(-1, pass_mark=0).status is Status.WRONG
    for mark in (True, "1", float("nan")):
        with pytest.raises(ValueError, match="pass_mark must be a finite number"):
            build_verifier("pool_verifiers:half", {"pass_mark": mark})
    with pytest.raises(ValueError, match="does not take the options"):
        build_verifier("numeric", {"pass_mark": 0.5})


def test_what_a_function_raises_is_told_with_its_place() -> None:
    verdict = Adapted(pool_verifiers.raises)("", "", {})
    assert verdict.status is Status.ERROR
    assert "LookupError: no such gene" in verdict.reason and "pool_verifiers.py" in verdict.reason


@pytest.mark.parametrize(
    ("problem", "limit", "said"),
    [
        (
            MemoryError(),
            512 << 20,
            "MemoryError: this process has 512 MiB of address space (the setting memory_mib)",
        ),
        (MemoryError(), resource.RLIM_INFINITY, "MemoryError"),
        (KeyError("gene"), 512 << 20, "KeyError: 'gene'"),
    ],
)
def test_memory_that_ran_out_names_the_limit(problem, limit, said, monkeypatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limit, limit))
    assert describe(problem) == said


@pytest.mark.parametrize(("files", "told"), [("o", True), ("uo", True), ("ou", False), ("oou", False), ("", False)])
def test_only_a_value_error_that_this_package_raised_is_told_without_its_place(files, told) -> None:
    """Each letter is a frame: `o` in a file of ours, `u` in another file; the last frame raises."""
    ours = str(Path(raised.__file__).with_name("made.py"))
    space: dict = {}
    for number, letter in enumerate(files):
        last = number == len(files) - 1
        text = f"def frame{number}():\n    {'raise ValueError(1)' if last else f'frame{number + 1}()'}\n"
        exec(compile(text, ours if letter == "o" else "/other/file.py", "exec"), space)
    problem = ValueError(1)
    if files:
        with pytest.raises(ValueError) as caught:
            space["frame0"]()
        problem = caught.value.with_traceback(caught.value.__traceback__.tb_next)
    assert raised.is_from_here(problem) == told


def test_the_place_is_the_users_and_not_a_librarys(tmp_path) -> None:
    (tmp_path / "deep.py").write_text(
        "import json\n\n\ndef helper(text):\n    return json.loads(text)\n\n\n"
        "def check(completion, reference):\n    return helper(completion)\n"
    )
    verdict = build_verifier(f"{tmp_path}/deep.py:check")("{", "", {})
    assert verdict.reason.startswith("json.decoder.JSONDecodeError") and verdict.reason.endswith("deep.py:5)")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("def check(completion, reference)\n    return 1\n", r"SyntaxError: .*mine.py:1: def check\(completion, refer"),
        ("def check(completion, reference):\n  if 1:\n  return 1\n", "IndentationError: .*mine.py:3: return 1"),
        ("import json\nX = json.loads('{')\n", r"JSONDecodeError: .*mine.py:2\)"),
        ("import no_such_thing_at_all\n", r"No module named 'no_such_thing_at_all' \(.*mine.py:1\); is its package"),
        ("from .beside import x\n", r"relative import .*mine.py:1\); .*`from helpers import"),
        ("raise SystemExit('no key')\n", r"could not be loaded: SystemExit: no key \(.*mine.py:1\)"),
        ("raise ValueError('no key')\n", r"could not be loaded: ValueError: no key \(.*mine.py:1\)"),
        ("def check(prompt, completion):\n    return 1\n", "mine.py:check': check takes"),
    ],
)
def test_a_file_that_cannot_be_loaded_is_told_with_its_place(tmp_path, text, told) -> None:
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(ValueError, match=told):
        build_verifier(f"{tmp_path}/mine.py:check")


def test_files_beside_a_verifiers_are_imported_and_hide_nobodys(tmp_path, monkeypatch) -> None:
    for folder in ("one", "two", "three"):
        (tmp_path / folder).mkdir()
    (tmp_path / "one" / "checks_beside.py").write_text("from more_beside import GOLD\n")
    (tmp_path / "one" / "more_beside.py").write_text("GOLD = '1'\n")
    (tmp_path / "one" / "late_beside.py").write_text("LATE = True\n")
    (tmp_path / "one" / "rewards.py").write_text(
        "from checks_beside import GOLD\nfrom rewards.verdict import correct, wrong\n\n\n"
        "def check(completion, reference):\n    from late_beside import LATE\n\n"
        "    return correct() if completion == GOLD and LATE else wrong()\n"
    )
    path = list(sys.path)
    use = f"{tmp_path}/one/rewards.py:check"
    assert build_verifier(use)("1", "", {}).status is Status.CORRECT
    assert sys.path == path
    with VerifierPool([VerifierSpec("it", use)], workers=1) as pool:
        assert pool.submit("it", "1", "", {}).result(30).status is Status.CORRECT
    # The same name in another folder would be the first one's module.
    (tmp_path / "two" / "checks_beside.py").write_text("GOLD = '2'\n")
    (tmp_path / "two" / "mine.py").write_text("from checks_beside import GOLD\n\n\ndef check(c, r):\n    return 1\n")
    with pytest.raises(ValueError, match=r"two/checks_beside.py' lies beside it, but .* load '.*one/checks_beside.py'"):
        build_verifier(f"{tmp_path}/two/mine.py:check")
    # And so would that of an installed package.
    (tmp_path / "three" / "yaml.py").write_text("")
    (tmp_path / "three" / "mine.py").write_text("import yaml\n\n\ndef check(c, r):\n    return 1\n")
    with pytest.raises(ValueError, match=r"three/yaml.py' lies beside it, but .* load '.*yaml/__init__.py'.*rename"):
        build_verifier(f"{tmp_path}/three/mine.py:check")


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


def test_a_grade_opens_no_gate() -> None:
    reward = combine(SPECS, {"format": scored(0.9), "answer": correct(), "length": correct("", 0.0)})
    assert reward.closed == ("format",) and reward.value == pytest.approx(0.18)
    reward = combine(SPECS, {"format": correct(), "answer": scored(0.5), "length": scored(-0.5)})
    assert reward.value == pytest.approx(0.2 + 0.5 - 0.25)


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
