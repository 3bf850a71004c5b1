"""The interface: what results say, levels and refusal, threads and coroutines, languages, limits."""

from __future__ import annotations

import asyncio
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sandbox_host import PROJECT, Host

import sandbox.outside.languages
from sandbox import (
    AssertTest,
    CallTest,
    IsolationError,
    IsolationLevel,
    Language,
    Layer,
    Limits,
    ProgramStatus,
    Sandbox,
    SandboxError,
    StdinTest,
)


@pytest.fixture(scope="module")
def shared() -> Iterator[Sandbox]:
    with Sandbox(workers=2) as made:
        yield made


def test_a_result_says_how_it_went(shared: Sandbox) -> None:
    source = (
        "import sys, time\nx = b'x' * (60 << 20)\nt = time.process_time()\nwhile time.process_time() - t < 0.2: pass\n"
        "time.sleep(0.2)\nprint('out')\nprint('err', file=sys.stderr)\nsys.exit(5)"
    )
    result = shared.run(source)
    assert (result.status, result.exit_code, result.stdout) == (ProgramStatus.NONZERO_EXIT, 5, b"out\n")
    assert result.stderr == b"err\n"
    assert 0.2 <= result.cpu_s < 1.0
    assert result.wall_s >= 0.4
    assert 60 << 20 <= result.memory_bytes < 200 << 20
    assert result.isolation == shared.isolation
    assert pickle.loads(pickle.dumps(result)) == result


def test_a_crash_is_a_signal(shared: Sandbox) -> None:
    result = shared.run("import ctypes; ctypes.string_at(0)")
    assert (result.status, result.exit_code) == (ProgramStatus.SIGNAL, -11)
    result = shared.run("import os; os.abort()")
    assert (result.status, result.exit_code) == (ProgramStatus.SIGNAL, -6)


def test_a_memory_error_is_named(shared: Sandbox) -> None:
    assert shared.run("x = bytearray(1 << 40)").status is ProgramStatus.MEMORY


def test_a_program_cannot_blame_the_sandbox(shared: Sandbox) -> None:
    """An `error` keeps a completion out of the statistics, so a program must not be able to bring one about."""
    for source in (
        "import os; os._exit(70)",
        "import os; os.write(2, b'\\0sandbox: Traceback'); os._exit(70)",
        "import os, signal; os.kill(1, signal.SIGKILL); os.kill(os.getppid(), signal.SIGTERM); print(1)",
        "import os\nfor n in range(3, 300):\n    try: os.write(n, b'{}')\n    except OSError: pass",
        "import os, sys\nos.closerange(0, 300)",
        'print(\'{"status": "sandbox error"}\')',
    ):
        assert shared.run(source).status is not ProgramStatus.SANDBOX_ERROR, source


@pytest.mark.parametrize("limit", [field for field in Limits.__slots__])
def test_limits_must_be_positive(limit: str) -> None:
    with pytest.raises(ValueError, match=f"limits.{limit} must be positive, got 0"):
        Limits(**{limit: 0})


def test_the_processor_limit_defaults_to_the_real_one() -> None:
    assert Limits(wall_s=3.0).cpu == 3.0
    assert Limits(wall_s=3.0, cpu_s=1.0).cpu == 1.0


def test_below_the_minimum_nothing_runs() -> None:
    without = frozenset({Layer.SECCOMP})
    with pytest.raises(IsolationError, match=r"need isolation filtered, this machine gives limited.*seccomp"):
        Sandbox(level=IsolationLevel.FILTERED, without=without)
    with Sandbox(level=IsolationLevel.LIMITED, without=without) as weak:
        assert weak.isolation.level is IsolationLevel.LIMITED
        assert Layer.SECCOMP in [item.layer for item in weak.isolation.missing]
        assert Layer.SECCOMP not in weak.isolation.active


@pytest.mark.parametrize(
    ("without", "level"),
    [
        (set(), IsolationLevel.FULL),
        ({Layer.LANDLOCK}, IsolationLevel.CONFINED),
        ({Layer.PRIVATE_ROOT}, IsolationLevel.CONFINED),
        ({Layer.USER_NAMESPACE}, IsolationLevel.CONFINED),
        ({Layer.USER_NAMESPACE, Layer.LANDLOCK}, IsolationLevel.FILTERED),
        ({Layer.SECCOMP}, IsolationLevel.LIMITED),
        ({Layer.RESOURCE_LIMITS}, IsolationLevel.NONE),
    ],
    # A set's own text has another order in each process, and all that share the tests must call them alike.
    ids=lambda value: "+".join(sorted(value)) if isinstance(value, set) else str(value),
)
def test_the_level_follows_from_the_layers(root_host: Host, without: set[Layer], level: IsolationLevel) -> None:
    host = Host("root", level=IsolationLevel.NONE, without=frozenset(without))
    assert host.isolation.level is level
    assert host.ask("run", "print(6 * 7)").stdout == b"42\n"
    host.close()


def test_without_namespaces_the_report_says_how_to_get_them() -> None:
    host = Host("no_namespaces", level=IsolationLevel.CONFINED)
    missing = {item.layer: item for item in host.isolation.missing}
    assert "Operation not permitted" in missing[Layer.USER_NAMESPACE].reason
    assert "max_user_namespaces" in missing[Layer.USER_NAMESPACE].remedy
    host.close()
    with pytest.raises(IsolationError, match=r"need isolation full, this machine gives confined.*max_user_namespaces"):
        Host("no_namespaces", level=IsolationLevel.FULL)


def test_many_threads(shared: Sandbox) -> None:
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda n: shared.run("print(int(input()) ** 2)", str(n)), range(80)))
    assert [result.stdout for result in results] == [b"%d\n" % n**2 for n in range(80)]


def test_coroutines_do_not_block_each_other(shared: Sandbox) -> None:
    async def all_at_once() -> tuple[list[bytes], list[bool], int]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += 1

        ticking = asyncio.create_task(tick())
        runs = [shared.run_async("import time; time.sleep(0.2); print(input())", str(n)) for n in range(4)]
        grades = [shared.grade_async("print(1)", [StdinTest("", "1"), StdinTest("", "2")])]
        results, graded = await asyncio.gather(*runs), await asyncio.gather(*grades)
        ticking.cancel()
        return [result.stdout for result in results], [test.passed for test in graded[0]], ticks

    stdout, passed, ticks = asyncio.run(all_at_once())
    assert stdout == [b"0\n", b"1\n", b"2\n", b"3\n"]
    assert passed == [True, False]
    assert ticks >= 10


def test_two_workers_work_at_the_same_time(shared: Sandbox) -> None:
    source = "import time; print(time.monotonic(), flush=True); time.sleep(2); print(time.monotonic())"
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda _: shared.run(source), range(2)))
    begun, ended = zip(*(map(float, result.stdout.split()) for result in results), strict=True)
    assert max(begun) < min(ended)


def test_stop_at_the_first_failure(shared: Sandbox) -> None:
    tests = [StdinTest("1", "1"), StdinTest("2", "1"), StdinTest("3", "3")]
    assert [result.passed for result in shared.grade("print(input())", tests)] == [True, False, True]
    assert [result.passed for result in shared.grade("print(input())", tests, stop_at_failure=True)] == [True, False]
    calls = [CallTest("f", [n], 1) for n in range(3)]
    assert [result.passed for result in shared.grade("def f(x): return x", calls, stop_at_failure=True)] == [False]


def test_tests_of_all_kinds_together(shared: Sandbox) -> None:
    program = "def f(x):\n    return x + 1\nif __name__ == '__main__':\n    print(f(int(input())))"
    tests = [
        StdinTest("1", "2"),
        CallTest("f", [1], 2),
        CallTest("f", [2], 3),
        AssertTest("assert f(5) == 6"),
        StdinTest("7", "8"),
    ]
    assert [result.status for result in shared.grade(program, tests)] == [ProgramStatus.OK] * 5
    assert shared.grade(program, []) == []


def test_assert_code_may_use_objects_of_the_program(shared: Sandbox) -> None:
    program = (
        "class Pair:\n    def __init__(self, a, b): self.a, self.b = a, b\n"
        "def total(pairs): return sum(p.a + p.b for p in pairs)"
    )
    tests = [AssertTest("assert total([Pair(1, 2), Pair(3, 4)]) == 10"), AssertTest("assert total([Pair(1, 2)]) == 10")]
    assert [result.passed for result in shared.grade(program, tests)] == [True, False]


def test_assert_code_sees_exceptions(shared: Sandbox) -> None:
    code = "try:\n    f(-1)\nexcept ValueError as e:\n    assert 'negative' in str(e)\nelse:\n    raise AssertionError"
    raising = "def f(x):\n    if x < 0: raise ValueError('negative')"
    assert shared.grade(raising, [AssertTest(code)])[0].passed
    assert not shared.grade("def f(x): pass", [AssertTest(code)])[0].passed


def test_other_languages_take_standard_input_only(shared: Sandbox) -> None:
    with pytest.raises(ValueError, match="only Python programs can be tested by calls"):
        shared.grade("int main() {}", [CallTest("f", [], 1)], language=Language.CPP)


def test_compilation(shared: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    if sandbox.outside.languages.find_tool("g++") is None or shared.isolation.level < IsolationLevel.FULL:
        pytest.skip("needs g++ and namespaces")
    broken = shared.run("int main() { return x; }", language=Language.CPP)
    assert (broken.status, broken.exit_code) == (ProgramStatus.COMPILE_ERROR, None)
    assert "was not declared" in broken.reason
    source = "#include <iostream>\nint main() { int n; std::cin >> n; std::cout << n + 1; }"
    assert shared.run(source, "1", language=Language.CPP).stdout == b"2"
    with monkeypatch.context() as patched:
        patched.setattr(sandbox.outside.languages, "COMPILE_LIMITS", None)  # whoever compiles needs them
        results = shared.grade(source, [StdinTest(str(n), str(n + 1)) for n in range(5)], language=Language.CPP)
    assert all(result.passed for result in results)
    leak = shared.run('#include "/etc/passwd"\nint main() {}', language=Language.CPP)
    assert leak.status is ProgramStatus.COMPILE_ERROR
    assert b"root:" not in leak.stderr
    bounded = shared.run('#include "/dev/zero"\nint main() {}', language=Language.CPP)
    assert bounded.status is ProgramStatus.COMPILE_ERROR


def test_a_missing_compiler_is_a_status(shared: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox.outside.languages, "find_tool", lambda name: None)
    for language in (Language.CPP, Language.JAVASCRIPT, Language.BASH):
        result = shared.run("", language=language)
        assert result.status is ProgramStatus.NO_COMPILER
        assert "is not installed" in result.reason


def test_preloaded_modules_are_chosen_per_run(shared: Sandbox) -> None:
    loaded = "import sys; print('numpy' in sys.modules)"
    assert shared.run(loaded, preload=()).stdout == b"False\n"
    assert shared.run(loaded, preload=("numpy",)).stdout == b"True\n"
    assert shared.run("import sys; print('json' in sys.modules, 'sandbox' in sys.modules)").stdout == b"True False\n"


def test_wrong_use_is_told() -> None:
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        Sandbox(workers=0)
    made = Sandbox()
    made.close()
    with pytest.raises(SandboxError, match="closed"):
        made.grade("", [StdinTest("", "")])


def test_importing_is_light() -> None:
    code = "import sys, sandbox; print(sorted({'torch', 'ray', 'vllm', 'grpo', 'rewards', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_tests_with_input_are_graded_in_order_however_many_there_are(shared: Sandbox) -> None:
    tests = [StdinTest(f"{n}", f"{n * n}" if n % 7 else "wrong") for n in range(1, 71)]
    results = shared.grade("n = int(input()); print(n * n)", tests)
    assert [result.passed for result in results] == [n % 7 != 0 for n in range(1, 71)]
    stopped = shared.grade("n = int(input()); print(n * n)", tests, stop_at_failure=True)
    assert [result.passed for result in stopped] == [True] * 6 + [False]


def test_no_test_finds_what_another_was_given_or_left(shared: Sandbox) -> None:
    source = (
        "import os, signal\n"
        "mine = input()\n"
        "seen = [os.getcwd() == os.environ['HOME'], os.listdir('.'), sorted(os.listdir('/proc/self/fd'))[:3]]\n"
        "seen += [len(os.listdir('/proc/self/fd')), os.getpgid(0) == os.getpid()]\n"
        "for number in range(3, 256):\n"
        "    try:\n"
        "        seen.append(os.pread(number, 100, 0))\n"
        "    except OSError:\n"
        "        pass\n"
        "print(seen, flush=True)\n"
        "if mine in '37':\n"
        "    open('left-' + mine, 'w').write(mine)\n"
        "if mine == '5':\n"
        "    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "    os.kill(0, signal.SIGTERM)\n"
    )
    expected = "[True, [], ['0', '1', '2'], 4, True]"  # the fourth descriptor is the listing's own
    results = shared.grade(source, [StdinTest(str(n), expected) for n in range(10)])
    assert [result.status for result in results] == [ProgramStatus.OK] * 10, results


def test_the_time_for_all_tests_ends_the_one_that_runs_and_fails_the_rest(shared: Sandbox) -> None:
    started = time.monotonic()
    tests = [StdinTest("", "done")] * 6
    results = shared.grade("import time; time.sleep(0.6); print('done')", tests, total_s=1.0)
    assert time.monotonic() - started < 3.0, "six such tests take 3.6 s"
    assert [result.status for result in results] == [ProgramStatus.OK] + [ProgramStatus.WALL_TIME] * 5


def test_each_program_has_its_own_limits() -> None:
    """A cell's sealed process serves many programs, but none with other limits than it has itself."""
    program = "import resource; print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    with Sandbox() as sandbox:
        for files in (64, 32, 8, 64):
            results = sandbox.grade(program, [StdinTest("", str(files))] * 4, Limits(open_files=files))
            assert all(result.passed for result in results), results
            assert sandbox.run(program, limits=Limits(open_files=files)).stdout == b"%d\n" % files


def test_no_memory_is_both_written_and_executed() -> None:
    """The worker rearranges its libraries in memory; a program with numpy still runs in what came of it."""
    program = """
import math, numpy
assert math.isclose(float(numpy.linalg.det(numpy.eye(3) * 2)), 8.0)
print([line for line in open("/proc/self/maps") if set("wx") <= set(line.split()[1])])
"""
    with Sandbox() as sandbox:
        if Layer.PRIVATE_PROC not in sandbox.isolation.active:
            pytest.skip("programs see their /proc only where they have a private one")
        assert sandbox.run(program).stdout == b"[]\n"


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one processor only")
def test_programs_may_use_every_processor_whatever_they_are_forked_from() -> None:
    """The cell and its sealed processes keep to one while quick tests run."""
    wanted = os.sched_getaffinity(0)
    program = f"import os; assert os.sched_getaffinity(0) == {wanted!r}; print(1)"
    with Sandbox() as sandbox:
        for count in (1, 4):
            results = sandbox.grade(program, [StdinTest("", "1")] * count)
            assert all(result.passed for result in results), results
        calls = [CallTest("f", [], sorted(wanted))]
        assert sandbox.grade("import os\ndef f(): return sorted(os.sched_getaffinity(0))", calls)[0].passed
