"""A program learns neither how many tests there are, nor which of them it runs in, nor what ran before it."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from sandbox_host import Host

from sandbox import CallTest, Limits, ProgramStatus, StdinTest

# Everything that can be reached from the frames above a program, but for itself, the standard library and what is the
# same for every program of the worker. Tells of a number that only a request could have told.
_FRAMES = """
import sys
def seen():
    frame, found = sys._getframe(), []
    while frame:
        found += [f"{frame.f_code.co_name} {key} {value!r}" for key, value in frame.f_locals.items() if key != "found"]
        frame = frame.f_back
    marks = "'ru" + "ns'", "1" + "5.0", "rep" + "lies", "desc" + "riptors=["  # not as they are in this text itself
    return [line for line in found if any(mark in line for mark in marks)]
"""


def test_no_frame_above_a_program_tells_of_the_tests(host: Host) -> None:
    limits = Limits(wall_s=5.0)
    calls = [CallTest("seen", [], [])] * 7
    results = host.ask("grade", _FRAMES, calls, limits)
    assert [result.status for result in results] == [ProgramStatus.OK] * 7, results
    inputs = [StdinTest("", "[]")] * 7
    results = host.ask("grade", _FRAMES + "\nprint(seen())", inputs, limits)
    assert [result.status for result in results] == [ProgramStatus.OK] * 7, results


def test_the_limits_of_a_process_do_not_tell_how_many_calls_there_are(host: Host) -> None:
    source = "import resource\ndef f(): return resource.getrlimit(resource.RLIMIT_CPU)[0]"
    limits = Limits(wall_s=5.0)
    for count in (1, 7):
        calls = [CallTest("f", [], 3601)] * count
        assert all(result.passed for result in host.ask("grade", source, calls, limits)), count


def test_no_time_of_a_file_tells_which_test_this_is(host: Host) -> None:
    """Three tests that take their time; each sees files that were last changed as it began."""
    source = """
import os, time
began = time.time()
states = [os.stat(0), os.stat(1), os.stat(2), os.stat("."), os.stat(os.environ["HOME"])]
oldest = min(min(state.st_atime, state.st_mtime, state.st_ctime) for state in states)
print("new" if began - oldest < 0.3 else began - oldest)
time.sleep(0.4)
"""
    results = host.ask("grade", source, [StdinTest("", "new")] * 3, Limits(wall_s=5))
    assert [result.status for result in results] == [ProgramStatus.OK] * 3, results


def test_what_lies_around_a_program_does_not_change_with_what_ran_before(host: Host) -> None:
    """Programs that try to leave a trace at what they share: devices, directories, their own numbers."""
    look = """
import os
seen = [os.getpid(), os.stat("/dev/null").st_mtime_ns, sorted(os.listdir("."))]
seen += [os.stat(name).st_mtime_ns for name in ("/usr/bin/env", os.path.dirname(os.__file__))]
"""
    leave = """
for name in ("/dev/null", "/usr/bin/env", os.path.dirname(os.__file__)):
    try: os.utime(name, (1, 1))
    except OSError: pass
open("left", "w").close()
try:
    if os.fork() == 0: os._exit(0)
except OSError: pass
"""
    first, second, third = (
        host.ask("run", source).stdout
        for source in (look + "print(seen)", look + leave + "print(seen)", look + "print(seen)")
    )
    if host.mode in ("root", "unprivileged"):
        assert first == second == third
    else:  # process numbers are the machine's
        assert json.loads(first)[1:] == json.loads(third.replace(b"'", b'"'))[1:]


def test_the_machine_is_not_told_of(root_host: Host) -> None:
    source = """
import os, socket
found = [name for name in os.listdir("/proc") if not name.isdigit()]
print(sorted(found), socket.gethostname(), {line.rpartition(":")[2] for line in open("/proc/self/cgroup")})
names = "1/cmdline", "1/stat", "sys/kernel/hostname", "kallsyms", "config.gz"
print([name for name in names if os.path.exists("/proc/" + name)])
"""
    result = root_host.ask("run", source)
    assert result.stdout.decode().splitlines() == ["['self', 'thread-self'] sandbox {'/\\n'}", "[]"], result


@pytest.mark.parametrize("count", [16])
def test_outputs_of_a_batch_are_given_back_as_each_test_ends(root_host: Host, count: int) -> None:
    """As each test ends: 16 outputs of 63 MiB would be a gigabyte until the last has run."""
    held: list[int] = []

    def shared_memory() -> int:
        text = Path("/proc/meminfo").read_text()
        return int(text.partition("Shmem:")[2].split()[0]) >> 10

    source = "import os, time\nos.posix_fallocate(1, 0, 63 << 20)\nos.posix_fallocate(2, 0, 63 << 20)\ntime.sleep(0.02)"
    before = shared_memory()
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            held.append(shared_memory() - before)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        results = root_host.ask("grade", source, [StdinTest(str(number), "x") for number in range(count)])
    finally:
        done.set()
        watching.join()
    assert {result.status for result in results} == {ProgramStatus.OUTPUT}
    assert max(held) < 2 * 64 + count * 8 + 150, (
        "what each test may hold while it runs, what is kept, others on the machine"
    )
