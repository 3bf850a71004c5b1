"""The world of a conversation: it runs the policy's tool calls, and lets the environment answer."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from grpo.environments.classes import EnvironmentClass, load_environment
from grpo.environments.contract import Answer, Opening
from grpo.environments.deadline import Overdue
from grpo.environments.playing import Loop, Playing
from grpo.environments.results import MOST_CHARACTERS, cut, raised_text, result_text
from grpo.environments.sandbox_tools import bash, python
from grpo.environments.spec import SANDBOX_TOOLS, WorldSpec, choose_environment
from grpo.environments.tools import Tool, load_tool, make_tool
from grpo.messages import ChatMessage, MalformedCall, ToolCall, WorldReward
from rewards.answers.thinking import without_thinking


class ProgramAnswer(Protocol):
    """What a sandbox session answered. It may have an attribute `failure`: a kind of failure, such as `timeout`."""

    @property
    def text(self) -> str:
        """Output, errors and the last value, as the policy reads them."""
        ...


class ProgramSession(Protocol):
    """A session of the sandbox: variables or files live on from call to call."""

    def run(self, code: str, most_s: float) -> ProgramAnswer:
        """Run a program of the policy, for at most `most_s` seconds."""
        ...

    def close(self) -> None:
        """End the session."""
        ...


# Opens a session: name of the tool (`python` or `bash`), and the settings from the spec.
SessionFactory = Callable[[str, Mapping[str, Any]], ProgramSession]


@dataclass(frozen=True, slots=True)
class LoadedWorld:
    """The code of a spec.

    Attributes:
        tools: tools of the config, by name.
        environments: environments, in the order of the config.
    """

    tools: Mapping[str, Tool]
    environments: tuple[EnvironmentClass, ...]

    def tools_with(self, environment: int | None) -> dict[str, Tool]:
        """Return the tools of the config and of an environment, by name."""
        return {**self.tools, **(self.environments[environment].tools if environment is not None else {})}


def load_world(spec: WorldSpec) -> LoadedWorld:
    """Load and check all tools and environments. The files and modules of the user are loaded only once in a process.

    Raises:
        ValueError: a tool or environment does not exist or cannot be used, two tools have the same name, or two
            environments play all rows. The message has the remedy.
    """
    tools: dict[str, Tool] = {}
    for use in spec.tools:
        key = f"the tool {use!r}"
        tool = _sandbox_tool(use) if use in SANDBOX_TOOLS else load_tool(use, spec.folder, key)
        if tool.name in tools:
            raise ValueError(f"{key} has the name of another tool, {tool.name!r}; rename either function")
        tools[tool.name] = tool
    always = [each.use for each in spec.environments if not each.when]
    if len(spec.environments) > 1 and always:
        raise ValueError(
            f"there are {len(spec.environments)} environments, but {always[0]!r} has no `when`, so it plays all rows; "
            "give each environment a `when` that chooses its rows"
        )
    environments = []
    for each in spec.environments:
        loaded = load_environment(each, spec.folder, f"the environment {each.use!r}")
        both = [name for name in loaded.tools if name in tools]
        if both:
            raise ValueError(
                f"the environment {each.use!r} has a method {both[0]!r}, and a tool of the config has the same name; "
                "rename the method, or remove the tool"
            )
        environments.append(loaded)
    return LoadedWorld(tools, tuple(environments))


def make_world(spec: WorldSpec, row: Mapping[str, Any], sessions: SessionFactory | None = None) -> ToolWorld:
    """Make the world of a conversation.

    Args:
        spec: tools and environments of the run.
        row: columns of the row, which choose the environment.
        sessions: opens a sandbox session, for the tools `python` and `bash`.

    Raises:
        ValueError: see `load_world`; or several environments play the row; or `sessions` is missing.
        Exception: any exception of the environment's class.
    """
    if sessions is None and set(spec.tools) & set(SANDBOX_TOOLS):
        raise ValueError(
            "the tools python and bash need a sandbox: give `sessions`, for example "
            "grpo.environments.sandbox_tools.SandboxSessions(spec)"
        )
    loaded, chosen = load_world(spec), choose_environment(spec, row)
    return ToolWorld(spec, loaded, chosen, sessions)


class ToolWorld:
    """The tools and the environment of a conversation (`grpo.environments.contract.World`).

    Args:
        spec: tools and environments of the run.
        loaded: code of the spec.
        environment: number of the environment that plays; None without environment.
        sessions: opens a sandbox session.
    """

    def __init__(
        self, spec: WorldSpec, loaded: LoadedWorld, environment: int | None, sessions: SessionFactory | None
    ) -> None:
        self._spec, self._open_session = spec, sessions
        self._tools = loaded.tools_with(environment)
        self._methods = loaded.environments[environment].tools if environment is not None else {}
        self._answers = environment is not None and loaded.environments[environment].answers
        self._loop = Loop()
        self._game = Playing(loaded.environments[environment], self._loop) if environment is not None else None
        self._sessions: dict[str, ProgramSession] = {}

    def open(self, row: Mapping[str, Any]) -> Opening:
        """Begin the conversation. Without an environment, the row's own messages are the prompt.

        Raises:
            Exception: any exception of the environment.
        """
        return Opening() if self._game is None else self._game.open(row)

    def answer(self, turn: ChatMessage) -> Answer:
        """Answer a turn of the policy.

        The results of tool calls come in the order of the calls. A turn without calls goes to the environment's `step`,
        without its thoughts. If no `step` answers, the answer has no messages.

        Raises:
            Exception: any exception of `step`, `over` or `done`. Exceptions of tools are told to the policy.
        """
        messages, failures = self._run(turn.calls)
        reward, over = None, False
        if self._game is not None:
            if self._answers and not turn.calls:
                step = self._game.step((without_thinking(turn.content) or "").strip())
                reward, over = step.reward, step.over
                messages = [] if step.text is None else [ChatMessage("user", cut(step.text, MOST_CHARACTERS))]
            self._game.turn_ended(reward)
            over = over or self._game.over()
        return Answer(tuple(messages), over, reward, len(turn.calls), dict(failures))

    def close(self) -> WorldReward:
        """End the conversation: take the environment's reward, and close environment and sessions.

        Raises:
            Exception: any exception of the environment.
        """
        try:
            return WorldReward() if self._game is None else self._game.reward()
        finally:
            for session in self._sessions.values():
                session.close()
            if self._game is not None:
                self._game.close()
            self._loop.close()

    def _run(self, calls: tuple[ToolCall | MalformedCall, ...]) -> tuple[list[ChatMessage], Counter[str]]:
        messages, failures = [], Counter[str]()
        until = time.monotonic() + self._spec.tool_deadline_s
        for call in calls:
            if isinstance(call, MalformedCall):
                name, text, failure = "", call.reason, "malformed"
            else:
                name = call.name
                text, failure = self._call(call, until, MOST_CHARACTERS // len(calls))
            messages.append(ChatMessage("tool", text, name=name))
            if failure:
                failures[failure] += 1
        return messages, failures

    def _call(self, call: ToolCall, until: float, most: int) -> tuple[str, str]:
        """Run a call; return the text for the policy, and the kind of failure or an empty text.

        Args:
            call: the call.
            until: deadline, on the monotonic clock.
            most: largest number of characters of the result.
        """
        tool = self._tools.get(call.name)
        if tool is None:
            there = f"the tools are: {', '.join(self._tools)}" if self._tools else "there are no tools"
            return f"error: no tool is called {call.name!r}; {there}", "unknown_tool"
        try:
            arguments = tool.check(call.arguments)
        except ValueError as problem:
            return f"error: {problem}", "bad_arguments"
        late = f"error: {call.name} took longer than {self._spec.tool_deadline_s:g} seconds"
        if call.name in SANDBOX_TOOLS and call.name in self._spec.tools:
            remaining = until - time.monotonic()
            if remaining <= 0:
                return late, "timeout"
            result = self._session(call.name).run(next(iter(arguments.values())), remaining)
            return result_text(result.text, most), getattr(result, "failure", "")
        try:
            if self._game is not None and call.name in self._methods:
                # A method that is interrupted could leave the environment half changed, and its reward wrong. So no
                # alarm interrupts it: at the deadline, the whole conversation fails.
                value = self._loop.call(self._game.method(call.name), **arguments)
            else:
                value = self._loop.call_within(until - time.monotonic(), tool.function, **arguments)
        except Overdue:
            return late, "timeout"
        except (Exception, SystemExit) as problem:  # Any mistake of a user's tool is an answer to the policy.
            return f"error: {raised_text(problem)}", "raised"
        try:
            return result_text(value, most), ""
        except ValueError as problem:
            return f"error: {problem}", "raised"

    def _session(self, name: str) -> ProgramSession:
        if name not in self._sessions:
            assert self._open_session is not None, "make_world refuses sandbox tools without sessions"
            settings = self._spec.python if name == "python" else self._spec.bash
            self._sessions[name] = self._open_session(name, settings)
        return self._sessions[name]


def _sandbox_tool(name: str) -> Tool:
    return make_tool({"python": python, "bash": bash}[name], name)
