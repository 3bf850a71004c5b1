"""Each conversation has a process; what goes wrong in it hurts only this conversation, and is typed."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from conversations.running import dies

from grpo.environments.contract import Answer, Event, Opening, WorldFailed
from grpo.environments.processes import WorldProcesses
from grpo.environments.spec import EnvironmentSpec, WorldSpec
from grpo.messages import ChatMessage, MalformedCall, ToolCall, WorldReward

WAIT_S = 60.0


def begin(
    tmp: Path, factory: str | None = "conversations.world_stand_ins:acting", spec: WorldSpec | None = None, **changes
):
    settings = {"tool_deadline_s": 30.0, "memory_mib": 1024, "log": tmp / "logs" / "worlds.log", **changes}
    return WorldProcesses(spec or WorldSpec(), factory=factory, **settings)


@pytest.fixture(scope="module")
def shared_worlds(tmp_path_factory) -> Iterator[WorldProcesses]:
    with begin(tmp_path_factory.mktemp("worlds")) as worlds:
        yield worlds


@pytest.fixture
def worlds(shared_worlds) -> Iterator[WorldProcesses]:
    yield shared_worlds
    abandon_all(shared_worlds)


@pytest.fixture(scope="module")
def shared_hasty(tmp_path_factory) -> Iterator[WorldProcesses]:
    with begin(tmp_path_factory.mktemp("hasty"), tool_deadline_s=0.2, grace_s=0.1) as worlds:
        yield worlds


@pytest.fixture
def hasty(shared_hasty) -> Iterator[WorldProcesses]:
    """Worlds with a short deadline."""
    yield shared_hasty
    abandon_all(shared_hasty)


def abandon_all(worlds: WorldProcesses) -> None:
    for key in range(300):
        worlds.abandon(key)
    assert worlds.events() == []


def events_of(worlds: WorldProcesses, count: int) -> dict[int, Event]:
    """Wait for a number of events, each of another conversation."""
    events: dict[int, Event] = {}
    until = time.monotonic() + WAIT_S
    while len(events) < count:
        assert time.monotonic() < until, events
        for key, event in worlds.events(1.0):
            assert key not in events
            events[key] = event
    return events


def event_of(worlds: WorldProcesses, key: int) -> Event:
    return events_of(worlds, 1)[key]


def opened(worlds: WorldProcesses, key: int, **row: object) -> int:
    worlds.open(key, row)
    assert isinstance(event_of(worlds, key), Opening)
    return key


def said(worlds: WorldProcesses, key: int, text: str, *calls: ToolCall | MalformedCall) -> Event:
    worlds.answer(key, ChatMessage("assistant", text, calls))
    return event_of(worlds, key)


def nurseries() -> set[psutil.Process]:
    """The nurseries of this process that live."""
    living = set()
    for each in psutil.Process().children():
        with contextlib.suppress(psutil.ZombieProcess, psutil.NoSuchProcess):
            if "grpo.environments.nursery" in each.cmdline():
                living.add(each)
    return living


def processes_of_conversations() -> set[int]:
    return {each.pid for nursery in nurseries() for each in nursery.children()}


def test_a_conversation_lives_in_its_process_from_opening_to_reward(worlds) -> None:
    worlds.open(1, {"question": "Which?", "when": (1, b"bytes", 2.5)})
    assert event_of(worlds, 1) == Opening((ChatMessage("user", "Which?"),))
    opened(worlds, 2)
    calls = (ToolCall("look", {"text": "\udc00<|im_end|>", "many": [1, {"x": None}]}), MalformedCall("no JSON"))
    first, second = said(worlds, 1, "a", *calls), said(worlds, 1, "b")
    assert isinstance(first, Answer) and isinstance(second, Answer)
    turn, pid, arguments = first.messages[0].content.split(" ", 2)
    assert (turn, first.reward) == ("1", 0.5)
    assert arguments == repr([{"text": "\udc00<|im_end|>", "many": [1, {"x": None}]}, MalformedCall("no JSON")])
    assert second.messages[0].content.startswith(f"2 {pid} ")
    assert said(worlds, 2, "c").messages[0].content.split()[1] not in (pid, str(os.getpid()))
    worlds.close(1)
    assert event_of(worlds, 1) == WorldReward(1.0, {"turns": 2.0}, (0.5, 0.5))
    assert dies(int(pid))
    opened(worlds, 1)  # The key is free.
    worlds.abandon(1)
    worlds.abandon(2)
    assert worlds.events() == []


def test_a_key_of_an_open_conversation_is_refused(worlds) -> None:
    opened(worlds, 1)
    with pytest.raises(ValueError, match="a conversation with the key 1 is open"):
        worlds.open(1, {})


def test_the_latency_of_tools_idles_only_their_conversations(worlds) -> None:
    count, sleep_s = 256, 1.0
    for key in range(count):
        worlds.open(key, {"question": key})
    events = events_of(worlds, count)
    assert all(event.messages[0].content == str(key) for key, event in events.items())
    opened(worlds, count)
    begun = time.monotonic()
    for key in range(count):
        worlds.answer(key, ChatMessage("assistant", f"sleep {sleep_s}"))
    assert time.monotonic() - begun < sleep_s / 2, "the calls waited"
    assert isinstance(said(worlds, count, "quick"), Answer)
    assert time.monotonic() - begun < sleep_s, "an answer waited for other conversations"
    assert len(events_of(worlds, count)) == count
    assert time.monotonic() - begun < 0.1 * count * sleep_s
    worlds.abandon(count)
    for key in range(count):
        worlds.close(key)
    assert all(isinstance(event, WorldReward) for event in events_of(worlds, count).values())


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        ("die", "was killed by SIGKILL; is the memory"),
        ("exit 3", "exited with status 3 instead of an answer"),
        ("exit 0", "exited with status 0 instead of an answer"),
        ("fork-and-die", "exited with status 4 instead of an answer"),
        ("hang-up", "was killed by SIGKILL"),
        ("quit x", r"SystemExit: x \(.*world_stand_ins.py"),
        ("raise hard", r"KeyError: 'hard' \(.*world_stand_ins.py:\d+\)"),
        ("garbage", "a reply that is not JSON"),
        ("pickle", "a reply that is not JSON"),
        ("overlong", "a reply of 2147483647 bytes"),
        ("reward float('nan')", "the turn's reward is nan; expected a finite number"),
        ("reward 10**400", "the world sent a wrong reply: int too large"),
        ("reward 'much'", "the turn's reward is str; expected a number"),
        ("reward b'x'", "cannot be written as JSON: it has a value of the type bytes"),
        ("failures {'bored': 1}", "failures has the kind 'bored'; expected one of unknown_tool"),
        ("failures {'raised': -1}", "raised is -1; expected a number of calls"),
        ("bare 7", "the world returned int; expected an Opening, an Answer or a WorldReward"),
        ("score 1", "sent 'reward', but was asked for 'answer'"),
    ],
)
def test_a_world_that_fails_is_typed_and_no_score(worlds, action: str, reason: str) -> None:
    opened(worlds, 1)
    opened(worlds, 2)
    failure = said(worlds, 1, action)
    assert isinstance(failure, WorldFailed) and failure.status == "error"
    assert re.search(reason, failure.reason), failure.reason
    assert isinstance(said(worlds, 2, "still here"), Answer)
    opened(worlds, 1)  # The key is free.


def test_failures_of_reset_and_reward_are_typed_too(worlds) -> None:
    worlds.open(1, {"open": "raise early"})
    assert event_of(worlds, 1).reason.startswith("KeyError: 'early' (")
    for action, reason in [
        ("raise late", "KeyError: 'late' ("),
        ("score float('inf')", "the world sent a wrong reply: the score is inf"),
        ("parts 5000000", "the world's reward has 5,000,0"),
    ]:
        opened(worlds, 1, close=action)
        worlds.close(1)
        failure = event_of(worlds, 1)
        assert isinstance(failure, WorldFailed) and failure.status == "error"
        assert failure.reason.startswith(reason)


@pytest.mark.parametrize("action", ["die-later", "unasked"])
def test_a_world_that_dies_between_turns_fails_at_the_next_turn(worlds, action: str) -> None:
    opened(worlds, 1)
    assert isinstance(said(worlds, 1, action), Answer)
    assert worlds.events(0.5) == []
    assert isinstance(failure := said(worlds, 1, "and now?"), WorldFailed) and failure.status == "error"
    opened(worlds, 1)


@pytest.mark.parametrize("place", ["open", "answer", "close"])
def test_a_deadline_kills_one_process(hasty, place: str) -> None:
    opened(hasty, 2)
    pid = int(said(hasty, 2, "").messages[0].content.split()[1])
    before = processes_of_conversations()
    hasty.open(1, {place: "sleep 1000"})
    if place != "open":
        assert isinstance(event_of(hasty, 1), Opening)
        hasty.close(1) if place == "close" else hasty.answer(1, ChatMessage("assistant", "sleep 1000"))
    while not (new := processes_of_conversations() - before):
        time.sleep(0.01)
    failure = event_of(hasty, 1)
    assert isinstance(failure, WorldFailed) and failure.status == "timeout"
    assert all(dies(each) for each in new)
    assert "took longer than 0.2 s (conversation.tool_deadline_s)" in failure.reason
    assert int(said(hasty, 2, "").messages[0].content.split()[1]) == pid


def test_an_answer_in_time_counts_although_the_driver_looks_late(hasty) -> None:
    opened(hasty, 1)
    opened(hasty, 2)
    hasty.answer(1, ChatMessage("assistant", "say in time"))
    hasty.answer(2, ChatMessage("assistant", "long é1000000"))  # More than the connection holds.
    time.sleep(0.6)
    events = events_of(hasty, 2)
    assert events[1] == Answer((ChatMessage("user", "in time"),))
    assert events[2] == Answer((ChatMessage("tool", "é" * 1_000_000),))


def test_a_result_that_is_too_long_for_a_frame_is_cut(worlds) -> None:
    opened(worlds, 1)
    answer = said(worlds, 1, "long \x01" + "1000000")
    assert isinstance(answer, Answer), answer
    assert answer.messages[0].content.startswith("\x01" * 500_000)
    assert "(cut: the result has more than 524,288 characters)" in answer.messages[0].content


def test_long_rows_and_turns_arrive(worlds) -> None:
    opened(worlds, 1, question="q" * 3_000_000)
    assert said(worlds, 1, "say " + "w" * 1_000_000).messages[0].content == "w" * 1_000_000


def test_arguments_that_are_nested_too_deeply_are_a_malformed_call(worlds) -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    opened(worlds, 1)
    answer = said(worlds, 1, "", ToolCall("look", {"deep": deep}))
    assert "the arguments of the call of 'look' are nested too deeply" in answer.messages[0].content


def test_the_memory_of_a_process_is_limited(worlds) -> None:
    opened(worlds, 1)
    assert said(worlds, 1, "allocate 64").messages[0].content == str(64 << 20)
    failure = said(worlds, 1, "allocate 4096")
    assert failure.reason.startswith("MemoryError")
    assert "this process has 1024 MiB of address space (the setting memory_mib)" in failure.reason


def test_children_of_a_tool_die_with_their_conversation(worlds, hasty) -> None:
    for ending in ("abandon", "close", "die"):
        opened(worlds, 1)
        child = int(said(worlds, 1, "child").messages[0].content)
        assert psutil.Process(child).name() == "sleep"
        if ending == "abandon":
            worlds.abandon(1)
        elif ending == "close":
            worlds.close(1)
            assert isinstance(event_of(worlds, 1), WorldReward)
        else:
            assert isinstance(said(worlds, 1, "die"), WorldFailed)
        assert dies(child)


def test_prints_go_to_the_log_and_not_to_the_terminal(tmp_path, capfd) -> None:
    with begin(tmp_path) as worlds:
        opened(worlds, 1)
        said(worlds, 1, "print hello")
    assert (tmp_path / "logs" / "worlds.log").read_text().count("hello") == 2
    assert capfd.readouterr() == ("", "")


def test_a_driver_without_descriptors_begins_no_conversation(worlds) -> None:
    opened(worlds, 1)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(each) for each in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest - 10, limit[1]))
    try:
        taken = []
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        worlds.open(2, {})
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
        for each in taken:
            os.close(each)
    failure = event_of(worlds, 2)
    assert isinstance(failure, WorldFailed) and failure.reason.endswith("see `ulimit -n`")
    assert isinstance(said(worlds, 1, "still here"), Answer)


def test_a_nursery_without_descriptors_begins_no_conversation(tmp_path) -> None:
    others = nurseries()
    with begin(tmp_path) as worlds:
        (nursery,) = nurseries() - others
        opened(worlds, 1)
        # The nursery closes its end of the first connection after the conversation has begun.
        taken = set[int]()
        while taken != (taken := {int(each) for each in os.listdir(f"/proc/{nursery.pid}/fd")}):
            time.sleep(0.2)
        lowest_free = min(set(range(1000)) - taken)
        nursery.rlimit(psutil.RLIMIT_NOFILE, (lowest_free, 1024))
        worlds.open(2, {})
        failure = event_of(worlds, 2)
        assert isinstance(failure, WorldFailed) and failure.status == "error"
        assert failure.reason.endswith("no file descriptor for its connection; see `ulimit -n`")
        assert isinstance(said(worlds, 1, "still here"), Answer)


def test_an_abandoned_conversation_has_no_event(worlds) -> None:
    worlds.open(1, {})
    worlds.abandon(1)
    opened(worlds, 1)
    worlds.answer(1, ChatMessage("assistant", "say late"))
    time.sleep(0.1)
    worlds.abandon(1)
    assert worlds.events(0.1) == []
    opened(worlds, 1)
    said(worlds, 1, "die-later")
    assert worlds.events(0.5) == []
    worlds.answer(1, ChatMessage("assistant", "the failure is an event now"))
    worlds.abandon(1)
    assert worlds.events() == []


def test_the_time_of_an_answer_is_measured_in_the_driver(worlds) -> None:
    worlds.take_seconds()
    opened(worlds, 1)
    said(worlds, 1, "sleep 0.2")
    worlds.abandon(1)
    seconds = worlds.take_seconds()
    assert {kind: len(times) for kind, times in seconds.items()} == {"open": 1, "answer": 1}
    assert 0.2 <= seconds["answer"][0] < 5.0
    assert worlds.take_seconds() == {}


def test_the_end_leaves_no_process_and_no_descriptor(tmp_path) -> None:
    before, descriptors = set(psutil.Process().children(recursive=True)), len(os.listdir("/proc/self/fd"))
    worlds = begin(tmp_path)
    for key in range(20):
        opened(worlds, key)
    child = int(said(worlds, 3, "child").messages[0].content)
    worlds.answer(5, ChatMessage("assistant", "sleep 1000"))
    for key in range(20, 40):
        worlds.open(key, {})
    # The driver ends without having read what the nursery said about these processes.
    until = time.monotonic() + WAIT_S
    while len(set(psutil.Process().children(recursive=True)) - before) < 30:
        assert time.monotonic() < until
        time.sleep(0.01)
    worlds.stop()
    assert set(psutil.Process().children(recursive=True)) <= before
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert dies(child)


def test_descriptors_and_processes_do_not_grow_with_conversations(tmp_path) -> None:
    others = nurseries()
    with begin(tmp_path) as worlds:
        (nursery,) = nurseries() - others
        opened(worlds, 20)
        descriptors = [len(os.listdir(f"/proc/{pid}/fd")) for pid in (os.getpid(), nursery.pid)]
        for key in range(20):
            opened(worlds, key)
            assert isinstance(said(worlds, key, "die" if key % 2 else "garbage"), WorldFailed)
        until = time.monotonic() + WAIT_S
        while len(nursery.children()) > 1:
            assert time.monotonic() < until
            worlds.events(0.01)
        now = [len(os.listdir(f"/proc/{pid}/fd")) for pid in (os.getpid(), nursery.pid)]
        # At the first look the nursery may not yet have closed the descriptor that it handed to the process.
        assert now[0] == descriptors[0] and now[1] <= descriptors[1]


def test_a_nursery_that_dies_is_replaced(tmp_path) -> None:
    others = nurseries()
    with begin(tmp_path) as worlds:
        (nursery,) = nurseries() - others
        opened(worlds, 1)
        opened(worlds, 2)
        sleeping = int(said(worlds, 2, "").messages[0].content.split()[1])
        worlds.answer(2, ChatMessage("assistant", "sleep 1000"))
        nursery.kill()
        failure = event_of(worlds, 2)
        assert isinstance(failure, WorldFailed) and failure.status == "error"
        assert "the process that forks the conversations' processes died" in failure.reason
        assert dies(sleeping)
        assert isinstance(said(worlds, 1, "and now?"), WorldFailed)
        opened(worlds, 3)  # In the new nursery.
        assert isinstance(said(worlds, 3, "here"), Answer)
        assert len(nurseries() - others) == 1
    assert nurseries() - others == set()


def test_nurseries_that_die_again_and_again_end_the_waiting(tmp_path) -> None:
    others = nurseries()
    with begin(tmp_path) as worlds:
        worlds.open(1, {})
        until = time.monotonic() + WAIT_S
        events: list[tuple[int, Event]] = []
        while not any("no conversation can begin" in getattr(event, "reason", "") for _, event in events):
            assert time.monotonic() < until
            for nursery in nurseries() - others:
                with contextlib.suppress(psutil.NoSuchProcess):
                    nursery.kill()
            worlds.abandon(1)
            worlds.open(1, {})
            events += worlds.events(0.2)
        worlds.open(2, {})
        assert "died; it printed to" in event_of(worlds, 2).reason


def test_code_that_starts_a_thread_is_loaded_in_each_process(tmp_path) -> None:
    with begin(tmp_path, "conversations.world_stand_ins:with_a_thread") as worlds:
        (nursery,) = [each for each in nurseries() if each.cmdline()[-1] == "bare"]
        assert nursery.num_threads() == 1
        opened(worlds, 1)
        assert isinstance(said(worlds, 1, "hello"), Answer)


@pytest.mark.parametrize(
    ("factory", "changes", "message"),
    [
        ("conversations.world_stand_ins:actin", {}, "has no 'actin'; did you mean 'acting'"),
        ("conversations.world_stand_ins:exiting", {}, "the process that forks the conversations' processes died"),
        ("conversations.world_stand_ins:hanging", {"start_s": 1.5}, "were not loaded within 1.5 s"),
        (None, {"spec": WorldSpec(("nowhere.py:search",))}, "the file 'nowhere.py' does not exist"),
        (None, {"spec": WorldSpec(environments=(EnvironmentSpec("maze", {"f": len}),))}, "maze"),
        (None, {"spec": WorldSpec(environments=(EnvironmentSpec("m", {"f": lambda: 1}),))}, "give plain data"),
        (None, {"memory_mib": 1}, "memory_mib must be at least 64, got 1"),
        (None, {"tool_deadline_s": 0}, "tool_deadline_s must be at least 0.01, got 0"),
    ],
)
def test_what_cannot_be_used_is_refused_at_the_start(tmp_path, factory, changes, message: str) -> None:
    before, descriptors = set(psutil.Process().children()), len(os.listdir("/proc/self/fd"))
    with pytest.raises(ValueError) as caught:
        begin(tmp_path, factory, **changes)
    assert message in str(caught.value)
    assert set(psutil.Process().children()) <= before
    assert len(os.listdir("/proc/self/fd")) == descriptors


TOOLS = '''
def add(left: int, right: int) -> int:
    """Add two numbers.

    Args:
        left: A number.
        right: Another number.
    """
    return left + right


class Guess:
    def reset(self, row):
        return "Guess."

    def step(self, text):
        raise RuntimeError("broken")
'''


def test_sandbox_tools_get_their_sessions(tmp_path) -> None:
    sessions = "conversations.world_stand_ins:open_session"
    with begin(tmp_path, None, WorldSpec(("python",), python={"limit": 3}), sessions=sessions) as worlds:
        assert [tool["function"]["name"] for tool in worlds.tools] == ["python"]
        opened(worlds, 1)
        answer = said(worlds, 1, "...", ToolCall("python", {"code": "1 + 1"}))
        assert answer == Answer((ChatMessage("tool", "python {'limit': 3} 1 + 1", name="python"),), calls=1)


def test_programs_of_the_policy_run_in_a_session_of_the_sandbox(tmp_path) -> None:
    with begin(tmp_path, None, WorldSpec(("python",), tool_deadline_s=1.0), tool_deadline_s=1.0) as worlds:
        opened(worlds, 1)
        opened(worlds, 2)

        def ran(key: int, code: str) -> str:
            (message,) = said(worlds, key, "...", ToolCall("python", {"code": code})).messages
            return message.content

        assert ran(1, "x = 6\nx") == "6"
        assert ran(2, "import os; open('file', 'w').close(); 'x' in globals()") == "False"
        assert ran(1, "import os; x * 7, os.listdir('.')") == "(42, [])"
        # The program's time ends before the process of the conversation is killed.
        late = said(worlds, 1, "...", *[ToolCall("python", {"code": "import time; time.sleep(0.7)"})] * 3)
        assert [each.content.partition(" ")[0] for each in late.messages] == ["(no", "(the", "error:"]
        assert late.failures == {"timeout": 2}
        assert ran(1, "x").endswith("NameError: name 'x' is not defined")
        assert ran(2, "os.listdir('.')") == "['file']"


@pytest.mark.parametrize("end", ["close", "abandon", "kill"])
def test_a_session_ends_with_its_conversation(tmp_path, end: str) -> None:
    others = descendants()
    with begin(tmp_path, None, WorldSpec(("python",))) as worlds:
        before = descendants()
        opened(worlds, 1)
        said(worlds, 1, "...", ToolCall("python", {"code": "import os\nx = 1"}))
        during = descendants() - before
        assert len(during) == 3  # the conversation's process, the session's cell, the interpreter
        if end == "close":
            worlds.close(1)
            event_of(worlds, 1)
        elif end == "abandon":
            worlds.answer(1, ChatMessage("assistant", "...", (ToolCall("python", {"code": "while True: pass"}),)))
            worlds.events(0.1)
            worlds.abandon(1)
        else:
            (world,) = [each for each in during if each.parent() and each.parent().cmdline()[-1:] == ["1"]]
            world.kill()
        gone_soon(during)
        opened(worlds, 3)
        (message,) = said(worlds, 3, "...", ToolCall("python", {"code": "1 + 1"})).messages
        assert message.content == "2"
        everything = descendants()
    gone_soon(everything - others)


def descendants() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def gone_soon(processes: set[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=WAIT_S)
    assert alive == []


def test_tools_and_environments_of_a_file(tmp_path) -> None:
    (tmp_path / "tools.py").write_text(TOOLS)
    spec = WorldSpec(("tools.py:add",), (EnvironmentSpec("tools.py:Guess"),), folder=str(tmp_path))
    with begin(tmp_path, None, spec) as worlds:
        assert [tool["function"]["name"] for tool in worlds.tools] == ["add"]
        assert worlds.tools[0]["function"]["parameters"]["properties"]["left"]["type"] == "integer"
        worlds.open(1, {})
        assert event_of(worlds, 1) == Opening((ChatMessage("user", "\n\nGuess."),))
        answer = said(worlds, 1, "...", ToolCall("add", {"left": 2, "right": 3}), ToolCall("sub", {}))
        assert answer.messages[0].content == "5"
        assert (answer.calls, answer.failures) == (2, {"unknown_tool": 1})
        failure = said(worlds, 1, "7")
        assert failure.status == "error"
        assert failure.reason == f"RuntimeError: broken ({tmp_path}/tools.py:17)"


DRIVER = """
import os, sys, time
from grpo.environments.processes import WorldProcesses
from grpo.environments.spec import WorldSpec
from grpo.messages import ChatMessage
worlds = WorldProcesses(WorldSpec(), tool_deadline_s=30, memory_mib=None, log=sys.argv[1],
                        factory="conversations.world_stand_ins:acting")
worlds.open(1, {})
worlds.events(30)
worlds.answer(1, ChatMessage("assistant", "child"))
((_, answer),) = worlds.events(30)
worlds.answer(1, ChatMessage("assistant", "sleep 1000"))
holder = os.fork()  # It keeps the driver's end of every connection.
if holder:
    print(answer.messages[0].content, holder, flush=True)
time.sleep(1000)
"""


DRIVER_WITH_PROGRAMS = """
import sys, time
from grpo.environments.processes import WorldProcesses
from grpo.environments.spec import WorldSpec
from grpo.messages import ChatMessage, ToolCall
worlds = WorldProcesses(WorldSpec(("python",)), tool_deadline_s=30, memory_mib=None, log=sys.argv[1])
worlds.open(1, {})
worlds.events(30)
for code in ("1", "while True: pass"):
    worlds.answer(1, ChatMessage("assistant", "", (ToolCall("python", {"code": code}),)))
    for _, answer in worlds.events(30 if code == "1" else 0.2):
        print(answer.messages[0].content, flush=True)
time.sleep(1000)
"""


def test_sessions_die_with_the_driver(tmp_path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER_WITH_PROGRAMS, str(tmp_path / "log")],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == b"1\n"
        processes = set(psutil.Process(driver.pid).children(recursive=True))
        assert (
            len(processes) >= 5
        )  # nursery, two processes of the sandbox, the conversation's process, cell, interpreter
        driver.send_signal(signal.SIGKILL)
    gone_soon(processes)


def test_all_processes_die_with_the_driver(tmp_path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True, env=environment
    ) as driver:
        assert driver.stdout is not None
        child, holder = map(int, driver.stdout.readline().split())
        pids = {child, *(each.pid for each in psutil.Process(driver.pid).children(recursive=True))} - {holder}
        assert len(pids) == 3
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        try:
            assert all(dies(pid) for pid in pids)
        finally:
            os.kill(holder, signal.SIGKILL)
