"""Programs that want the reward without the answer. None gets it; all would from a grader that shares their process."""

# ruff: noqa: E501 (programs as literals, one to a line, are easier to compare)

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox import AssertTest, CallTest, IsolationLevel, Limits, ProgramStatus, Sandbox, StdinTest

LIMITS = Limits(wall_s=2.0)
# What the tests know and the program must not find out.
TEST_CODE = """
def check(candidate):
    assert candidate(3) == 14159
    assert candidate(5) == 26535
    assert candidate([8, 9]) == [79, 32]
"""
HONEST = "def f(x): return {3: 14159, 5: 26535}.get(x, [79, 32]) if isinstance(x, int) else [79, 32]"
# In the constants of compiled test code an expected value follows its argument.
_AFTER = """
def after(constants, x):
    if isinstance(x, list):
        start = constants.index(x[0]) + len(x)
        return list(constants[start:start + len(x)])
    return constants[constants.index(x) + 1]
"""
FORGERIES = {
    "equal_to_everything": "class E:\n    def __eq__(self, other): return True\ndef f(x): return E()",
    "int_equal_to_everything": "class E(int):\n    def __eq__(self, other): return True\n    __hash__ = int.__hash__\n"
    "def f(x): return E(1)",
    "list_equal_to_everything": "class E(list):\n    def __eq__(self, other): return True\ndef f(x): return E()",
    "exit_when_loaded": "import sys\nsys.exit(0)",
    "hard_exit_when_loaded": "import os\nos._exit(0)",
    "exit_when_called": "import sys\ndef f(x): sys.exit(0)",
    "hard_exit_when_called": "import os\ndef f(x): os._exit(0)",
    "exit_in_a_thread": "import os, threading, time\nthreading.Timer(0.05, os._exit, (0,)).start()\n"
    "def f(x): time.sleep(0.3)",
    "exit_at_exit": "import atexit, os\natexit.register(os._exit, 0)\ndef f(x): return 0",
    "exit_in_excepthook": "import os, sys\nsys.excepthook = lambda *a: os._exit(0)\ndef f(x): return 0",
    "exit_on_alarm": "import os, signal, time\nsignal.signal(signal.SIGALRM, lambda *a: os._exit(0))\n"
    "signal.setitimer(signal.ITIMER_REAL, 0.05)\ndef f(x): time.sleep(0.3)",
    "exit_in_del": "import os\nclass D:\n    def __del__(self): os._exit(0)\ndef f(x): D()",
    "exit_in_eq": "import os\nclass E:\n    def __eq__(self, other): os._exit(0)\ndef f(x): return E()",
    "printed_mark": "import os, sys\nprint('passed', 'OK', 'all tests passed', flush=True)\nos._exit(0)",
    "parent_leaves": "import os\nif os.fork(): os._exit(0)\ndef f(x): return 0",
    "frame_walk": _AFTER + "import sys\ndef f(x):\n    frame = sys._getframe(1)\n    while frame:\n"
    "        if frame.f_code.co_name == 'check': return after(frame.f_code.co_consts, x)\n"
    "        frame = frame.f_back\n    return 0",
    "gc_walk": _AFTER
    + "import gc\ndef f(x):\n    for o in gc.get_objects():\n        code = getattr(o, '__code__', None)\n"
    "        if getattr(code, 'co_name', '') == 'check': return after(code.co_consts, x)\n    return 0",
    "read_the_test": "import re\ndef f(x):\n    try: text = open(__file__).read()\n    except OSError: return 0\n"
    "    found = re.findall(r'candidate\\((.*?)\\) == (.*)', text)\n    return {a: eval(b) for a, b in found}.get(str(x), 0)",
    "patch_isinstance_and_len": "import builtins\nbuiltins.len = lambda x: 0\nbuiltins.isinstance = lambda *a: True\nimport os\n"
    "def f(x): os._exit(0)",
    "tracing_exit": "import os, sys\ndef trace(frame, event, arg):\n    if frame.f_code.co_name == 'check': os._exit(0)\n"
    "sys.settrace(trace)\ndef f(x): os._exit(0)",
    "quiet_thread_swap": "import os\nclass M(type):\n    def __instancecheck__(c, o): return True\n    def __eq__(c, o): return True\n"
    "    __hash__ = type.__hash__\nclass E(metaclass=M): pass\ndef f(x): return E",
    "replace_exit_codes": "import os, sys\nsys.exit = os._exit = (lambda real: lambda code=0: real(0))(os._exit)\n"
    "sys.excepthook = lambda *a: os._exit(1)\ndef f(x): return 0",
    "kill_the_parent": "import os, signal\ndef f(x):\n    os.kill(os.getppid(), 0)\n    os._exit(0)",
    "exec_true": "import os\ndef f(x): os.execv('/bin/true', ['true'])",
    "close_everything_and_exit": "import os\ndef f(x):\n    os.closerange(0, 100)\n    os._exit(0)",
}
# Without the answers, on the channel itself. The second column is how the trusted side names it.
CHANNEL_FORGERIES = {
    "reply_before_any_request": (
        "import os\nos.write(4, b'{\"ok\": 14159}\\n' * 3)\nimport time; time.sleep(0.3)\ndef f(x): return 14159",
        {ProgramStatus.BAD_REPLY},
    ),
    "two_replies_to_one_request": (
        "import os\ndef f(x):\n    os.write(4, b'{\"ok\": 14159}\\n')\n    return 14159",
        {ProgramStatus.BAD_REPLY},
    ),
    "read_ahead_and_answer_oneself": (
        'import os, json\nline = os.read(3, 1 << 16)\nos.write(4, b\'{"ok": 1}\\n{"ok": 14159}\\n\')',
        {ProgramStatus.BAD_REPLY},
    ),
    "not_json": ("import os\ndef f(x): os.write(4, b'passed\\n')", {ProgramStatus.BAD_REPLY}),
    "not_an_object": ("import os\ndef f(x): os.write(4, b'[true]\\n')", {ProgramStatus.BAD_REPLY}),
    "claims_to_have_passed": ("import os\ndef f(x): os.write(4, b'{\"passed\": true}\\n')", {ProgramStatus.BAD_REPLY}),
    "more_than_asked": (
        'import os\ndef f(x): os.write(4, b\'{"ok": 1, "passed": true}\\n\')',
        {ProgramStatus.BAD_REPLY},
    ),
    "unknown_tag": (
        'import os\ndef f(x): os.write(4, b\'{"ok": {"object": 1}}\\n\')',
        {ProgramStatus.WRONG_ANSWER, ProgramStatus.BAD_REPLY},
    ),
    "very_deep": (
        "import os\ndef f(x): os.write(4, b'{\"ok\": ' + b'[' * 50000 + b']' * 50000 + b'}\\n')",
        {ProgramStatus.BAD_REPLY},
    ),
    "very_long": (
        "import os\ndef f(x):\n    while True: os.write(4, b'x' * 65536)",
        {ProgramStatus.BAD_REPLY, ProgramStatus.WALL_TIME},
    ),
    "not_a_number": (
        "import os\ndef f(x): os.write(4, b'{\"ok\": NaN}\\n')",
        {ProgramStatus.WRONG_ANSWER, ProgramStatus.BAD_REPLY},
    ),
    "half_a_reply": (
        "import os, time\ndef f(x):\n    os.write(4, b'{\"ok\": 141')\n    time.sleep(9)",
        {ProgramStatus.WALL_TIME},
    ),
    "closed_channel": (
        "import os, time\ndef f(x):\n    os.close(4)\n    time.sleep(9)",
        {ProgramStatus.WALL_TIME, ProgramStatus.NONZERO_EXIT},
    ),
    "patched_serialiser": (
        "import json\njson.dumps = lambda x: '{\"ok\": true}'\ndef f(x): return 1",
        {ProgramStatus.WRONG_ANSWER},
    ),
    "own_class": ("class E:\n    def __eq__(self, o): return True\ndef f(x): return E()", {ProgramStatus.EXCEPTION}),
    "subclass_of_int": (
        "class E(int):\n    def __eq__(self, o): return True\ndef f(x): return E(1)",
        {ProgramStatus.EXCEPTION},
    ),
    "true_for_one": ("def f(x): return True", {ProgramStatus.WRONG_ANSWER}),
    "infinite_generator": ("import itertools\ndef f(x): return itertools.chain(itertools.repeat(14159))", None),
}


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(level=IsolationLevel.CONFINED) as made:
        yield made


def naive_grader_rewards(program: str, tmp_path: Path) -> bool:
    """What many trainers do: program and tests in one process, success by its exit code."""
    script = tmp_path / "program.py"
    script.write_text(f"{program}\n{textwrap.dedent(TEST_CODE)}\ncheck(f)\n")
    return subprocess.run([sys.executable, "-I", str(script)], capture_output=True, timeout=20).returncode == 0


def test_the_honest_program_is_rewarded(sandbox: Sandbox) -> None:
    tests = [AssertTest(TEST_CODE, "f"), CallTest("f", [3], 14159), CallTest("f", [[8, 9]], [79, 32])]
    assert [result.status for result in sandbox.grade(HONEST, tests, LIMITS)] == [ProgramStatus.OK] * 3


@pytest.mark.parametrize("name", FORGERIES)
def test_forgery_is_not_rewarded(sandbox: Sandbox, name: str) -> None:
    tests = [AssertTest(TEST_CODE, "f"), CallTest("f", [3], 14159), CallTest("f", [5], 26535)]
    results = sandbox.grade(FORGERIES[name], tests, LIMITS)
    assert not any(result.passed for result in results), results
    assert all(result.status is not ProgramStatus.SANDBOX_ERROR for result in results), results


@pytest.mark.parametrize("name", sorted(set(FORGERIES) - {"patch_isinstance_and_len", "replace_exit_codes"}))
def test_forgery_bites_where_the_process_is_shared(name: str, tmp_path: Path) -> None:
    assert naive_grader_rewards(FORGERIES[name], tmp_path)


@pytest.mark.parametrize("name", CHANNEL_FORGERIES)
def test_forged_replies_fail_the_program(sandbox: Sandbox, name: str) -> None:
    program, statuses = CHANNEL_FORGERIES[name]
    limits = Limits(wall_s=1.0)
    (result,) = sandbox.grade(program, [CallTest("f", [1], 1)], limits)
    assert not result.passed
    assert result.status is not ProgramStatus.SANDBOX_ERROR, result
    assert statuses is None or result.status in statuses, result


def test_a_right_reply_out_of_turn_is_no_reply(sandbox: Sandbox) -> None:
    """Were replies not tied to requests, this program would pass: it answers rightly, before it is asked."""
    program = (
        'import os, time\ndef f(x):\n    os.write(4, b\'{"ok": 1}\\n{"ok": 2}\\n\')\n    time.sleep(0.2)\n    return 1'
    )
    results = sandbox.grade(program, [CallTest("f", [1], 1), CallTest("f", [2], 2)], Limits(wall_s=1.0))
    assert not any(result.passed for result in results)
    assert results[0].status is ProgramStatus.BAD_REPLY


def test_after_a_fatal_call_the_next_one_gets_a_fresh_process(sandbox: Sandbox) -> None:
    program = (
        "import os, time\ncount = 0\ndef f(x):\n    global count\n    count += 1\n    if x == 1: os._exit(0)\n"
        "    if x == 2: time.sleep(9)\n    if x == 3: raise ValueError('three')\n    return count"
    )
    tests = [CallTest("f", [x], e) for x, e in ((0, 1), (1, 0), (0, 1), (2, 0), (0, 1), (3, 0), (0, 3))]
    results = sandbox.grade(program, tests, Limits(wall_s=0.5))
    assert [result.status for result in results] == [
        ProgramStatus.OK,
        ProgramStatus.NONZERO_EXIT,
        ProgramStatus.OK,
        ProgramStatus.WALL_TIME,
        ProgramStatus.OK,
        ProgramStatus.EXCEPTION,
        ProgramStatus.OK,
    ]


def test_tests_of_one_program_cannot_see_each_other(sandbox: Sandbox) -> None:
    program = """
import os, time
number = input()
before = sorted(os.listdir('.')), oct(os.stat('.').st_mode), os.stat('.').st_mtime < time.time() + 1
others = [n for n in os.listdir('/proc') if n.isdigit() and int(n) != os.getpid()]
mode = os.environ.get('MARK')
print(before[0], before[1], others, mode, os.getpid())
open('left', 'w').write(number)
os.chmod('.', 0o755)
os.environ['MARK'] = number
if os.fork() == 0:
    os.setsid()
    time.sleep(60)
"""
    if sandbox.isolation.level < IsolationLevel.FULL:
        pytest.skip("needs namespaces: elsewhere the program may not fork")
    # Process 2 is the cell's sealed process and 3 the template that all of them are forked from; neither ever runs a
    # line of the program. They may not be looked into, so `/proc` shows neither, nor the cell.
    expected = "[] 0o40700 [] None 4"
    results = sandbox.grade(program, [StdinTest(str(n), expected) for n in range(5)], LIMITS)
    assert [result.status for result in results] == [ProgramStatus.OK] * 5, results


@pytest.mark.parametrize("number", ["SIGKILL", "SIGSTOP", "SIGINT"])
@pytest.mark.parametrize("attacked", [2, 3])
def test_a_template_that_is_attacked_is_replaced(sandbox: Sandbox, number: str, attacked: int) -> None:
    """Tests are forked from sealed processes; one that ends or stops these gains nothing and costs nobody anything."""
    if sandbox.isolation.level < IsolationLevel.FULL:
        pytest.skip("needs namespaces: elsewhere there is no template")
    program = f"""
import contextlib, os, signal
with contextlib.suppress(ProcessLookupError):
    if os.getpid() != {attacked}: os.kill({attacked}, signal.{number})
print(input())
"""
    for count in (1, 5):
        results = sandbox.grade(program, [StdinTest(str(n), str(n)) for n in range(count)], LIMITS)
        assert [result.status for result in results] == [ProgramStatus.OK] * count, results
        assert sandbox.run("import os; print(os.getpid())").stdout == b"3\n", "a cell of its own, with nothing amiss"


def test_a_program_that_takes_for_ever_to_compile_is_wrong(sandbox: Sandbox) -> None:
    """Not an error of the sandbox, which would keep it out of the statistics, with a template or without."""
    program = "\n".join(f"def f{number}(x): return x + {number}" for number in range(120_000))
    for count in (1, 4):
        results = sandbox.grade(program, [StdinTest("", "")] * count, Limits(wall_s=0.3))
        assert all(result.status not in (ProgramStatus.OK, ProgramStatus.SANDBOX_ERROR) for result in results), results


def test_a_template_keeps_its_memory_to_itself(sandbox: Sandbox) -> None:
    if sandbox.isolation.level < IsolationLevel.FULL:
        pytest.skip("needs namespaces: elsewhere there is no template")
    program = """
opened = []
for pid in (1, 2, 3):
    for name in ("mem", "environ", "maps", "fd/3", "cwd", "root"):
        try:
            opened.append(open(f"/proc/{pid}/{name}", "rb").read(1))
        except OSError as problem:
            assert problem.errno in (2, 13), problem
print(opened)
"""
    results = sandbox.grade(program, [StdinTest("", "[]")] * 4, LIMITS)
    assert [result.status for result in results] == [ProgramStatus.OK] * 4, results


def test_a_lost_worker_leaves_no_descriptor_open(sandbox: Sandbox) -> None:
    sandbox.run("print(1)")
    before = len(os.listdir("/proc/self/fd"))
    tests = [CallTest("f", [1], 1), AssertTest("assert f(2) == 2"), StdinTest("", "")]
    program = "def f(x):\n    import time; time.sleep(0.3)\n    return x"
    for test in tests:
        timer = threading.Timer(0.15, lambda: [os.kill(pid, signal.SIGKILL) for pid in sandbox.worker_pids])
        timer.start()
        sandbox.grade(program, [test], LIMITS)
        timer.join()
    sandbox.run("print(1)")
    assert len(os.listdir("/proc/self/fd")) <= before


def test_what_a_program_returns_cannot_stall_the_trusted_side(sandbox: Sandbox) -> None:
    """Integers that collide in every hash table: building a set of them takes minutes."""
    program = "def f(x):\n    return [(2 ** 61 - 1) * n for n in range(40000)]"
    tests = [CallTest("f", [0], {1, 2, 3}), CallTest("f", [0], [1], any_order=True)]
    results = sandbox.grade(program, tests, LIMITS)
    assert [result.status for result in results] == [ProgramStatus.WRONG_ANSWER] * 2
