"""The streams of a run: groups of completions, or of conversations with tools, environments or the user's program.

All three have the same interface. So the loop does not depend on what answers the policy.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from grpo.agents.program import AgentProgram
from grpo.agents.record import AgentLimits
from grpo.config.conversation import AGENT, ConversationConfig, EnvironmentConfig
from grpo.conversation.renderer import ChatRenderer
from grpo.environments.processes import WorldProcesses
from grpo.environments.spec import EnvironmentSpec, WorldSpec, check_rows, choose_environment
from grpo.policy.stored import end_tokens, load_tokenizer
from grpo.report import run_files
from grpo.rollout.agent_conversations import AgentCalls, AgentConversations
from grpo.rollout.collector import RequestStream, ResumedStream
from grpo.rollout.conversations import Conversations
from grpo.rollout.mixed_stream import MixedStream
from grpo.rollout.plays import ConversationLimits, messages_of
from grpo.types import Prompt, SamplingParams

if TYPE_CHECKING:
    from grpo.agents.agents import Agents

# Uses of streams.
TRAINING, HELD_OUT = "training", "held_out"


class TurnSource(Protocol):
    """Makes streams of single turns: the part of `GeneratorGroup` that conversations need."""

    def stream(self, sampling: SamplingParams) -> RequestStream:
        """Return a new stream of requests."""
        ...


class ConversationSettings(Protocol):
    """The part of a job's configuration that says what answers the policy."""

    @property
    def tools(self) -> tuple[str, ...]: ...

    @property
    def environment(self) -> tuple[EnvironmentConfig, ...]: ...

    @property
    def conversation(self) -> ConversationConfig: ...


class Streams:
    """Makes the streams of a job, and holds open what answers the policy."""

    def __init__(self, settings: ConversationSettings, policy_path: str, prompt_tokens: int, folder: Path) -> None:
        """Start nothing yet.

        Args:
            settings: tools, environments, and limits of a conversation.
            policy_path: policy, whose chat template the conversations use.
            prompt_tokens: longest first prompt, in tokens.
            folder: folder of the job, for the logs of the user's code.
        """
        self._settings, self._policy_path = settings, policy_path
        self._prompt_tokens, self._logs = prompt_tokens, folder / run_files.LOGS
        self._closing = contextlib.ExitStack()
        self._worlds: dict[str, WorldProcesses] = {}
        self._agents: dict[tuple[str, int], tuple[Agents, AgentCalls]] = {}
        self._renderer: ChatRenderer | None = None

    def __enter__(self) -> Streams:
        return self

    def __exit__(self, *exception: object) -> None:
        self._closing.close()

    @property
    def talks(self) -> bool:
        """Whether something answers the policy."""
        return bool(self._settings.tools or self._settings.environment)

    @property
    def tools(self) -> Sequence[Mapping[str, Any]]:
        """Schemas of the tools after `start`; empty if there are none, or if a program has its own."""
        return self._worlds[TRAINING].tools if TRAINING in self._worlds else ()

    @property
    def _programs(self) -> list[int]:
        """Numbers of the environments that are programs."""
        return [at for at, each in enumerate(self._settings.environment) if each.use == AGENT]

    @property
    def _only_programs(self) -> bool:
        """Whether programs play all rows."""
        return any(not self._settings.environment[at].when for at in self._programs)

    def start(self) -> None:
        """Load the user's tools and environments, or find the program. So mistakes in them end a job before it starts.

        Raises:
            ValueError: tools, environments or the program cannot be used, or the policy's chat template cannot.
        """
        for at in self._programs:
            program = self._settings.environment[at]
            AgentProgram(program.command, program.variables)
        if self.talks:
            _ = self.chat
        if self.talks and not self._only_programs:
            self._worlds_for(TRAINING)

    def stream(self, generators: TurnSource, sampling: SamplingParams, use: str = TRAINING) -> RequestStream:
        """Return a new stream of groups.

        Args:
            generators: source of the policy's turns.
            sampling: sampling of the groups; `max_tokens` is the limit of a whole conversation.
            use: name of streams that share worlds, because they come one after the other.

        Raises:
            ValueError: the policy has no chat template for conversations, or tools or environments cannot be used.
        """
        if not self.talks:
            return generators.stream(sampling)
        streams: list[RequestStream] = []
        for at in self._programs:
            agents, calls = self._agents_for(use, at, sampling)
            streams.append(AgentConversations(self._turns(generators, sampling), agents, calls, sampling.samples))
        if self._only_programs:
            (stream,) = streams
            return stream
        conversations = self._conversations(generators, sampling, use)
        if not streams:
            return conversations
        spec, numbers = world_spec(self._settings), {at: number for number, at in enumerate(self._programs)}

        def stream_of(prompt: Prompt) -> int:
            environment = choose_environment(spec, prompt.row)
            return numbers.get(-1 if environment is None else environment, len(streams))

        return MixedStream([*streams, conversations], stream_of)

    def resumed(self, stream: RequestStream) -> ResumedStream | None:
        """Return a stream of `stream` whose conversations go on after a resume; None if they begin anew."""
        replays = self._settings.conversation.resume == "replay"
        return stream if replays and isinstance(stream, Conversations | MixedStream) else None

    def _turns(self, generators: TurnSource, sampling: SamplingParams) -> RequestStream:
        return generators.stream(replace(sampling, samples=1, max_tokens=self._turn_tokens(sampling)))

    def _turn_tokens(self, sampling: SamplingParams) -> int:
        return min(sampling.max_tokens, self._settings.conversation.max_turn_tokens or sampling.max_tokens)

    def _conversations(self, generators: TurnSource, sampling: SamplingParams, use: str) -> Conversations:
        limits = self._settings.conversation
        return Conversations(
            self._turns(generators, sampling),
            self._worlds_for(use),
            self.chat,
            ConversationLimits(
                prompt_tokens=self._prompt_tokens,
                turns=limits.max_turns,
                tokens=sampling.max_tokens,
                turn_tokens=self._turn_tokens(sampling),
                observation_tokens=limits.max_observation_tokens,
                seconds=limits.deadline_s,
            ),
            sampling.samples,
        )

    @property
    def chat(self) -> ChatRenderer:
        """The policy's chat template for conversations.

        Raises:
            ValueError: the policy has no chat template that can be used.
        """
        if self._renderer is None:
            self._renderer = make_renderer(self._policy_path, self._settings.conversation)
        return self._renderer

    def _worlds_for(self, use: str) -> WorldProcesses:
        if use not in self._worlds:
            limits = self._settings.conversation
            self._worlds[use] = self._closing.enter_context(
                WorldProcesses(
                    world_spec(self._settings, programs=False),
                    tool_deadline_s=limits.tool_deadline_s,
                    memory_mib=limits.memory_mib,
                    log=self._logs / f"conversations_{use}.log",
                )
            )
        return self._worlds[use]

    def _agents_for(self, use: str, at: int, sampling: SamplingParams) -> tuple[Agents, AgentCalls]:
        # The server imports FastAPI, which runs without programs do not need.
        from grpo.agents.agents import Agents

        if (use, at) not in self._agents:
            limits, program = self._settings.conversation, self._settings.environment[at]
            calls = AgentCalls()
            self._logs.mkdir(parents=True, exist_ok=True)
            agents = Agents(
                AgentProgram(program.command, program.variables),
                # The agents' thread has a tokenizer of its own.
                make_renderer(self._policy_path, limits),
                calls,
                limits=AgentLimits(
                    max_turns=limits.max_turns,
                    max_turn_tokens=limits.max_turn_tokens,
                    max_tokens=sampling.max_tokens,
                    max_context=self._prompt_tokens + sampling.max_tokens,
                    deadline_s=limits.deadline_s,
                ),
                temperature=sampling.temperature,
                log_folder=self._logs,
                programs=limits.programs,
            )
            self._closing.callback(agents.close)
            self._agents[use, at] = agents, calls
        return self._agents[use, at]


def world_spec(settings: ConversationSettings, *, programs: bool = True) -> WorldSpec:
    """Return the tools and environments of a job. Without `programs`, leave out the user's programs."""
    return WorldSpec(
        settings.tools,
        tuple(
            EnvironmentSpec(
                each.use,
                each.options,
                {column: value if isinstance(value, tuple) else (value,) for column, value in each.when.items()},
            )
            for each in settings.environment
            if programs or each.use != AGENT
        ),
        tool_deadline_s=settings.conversation.tool_deadline_s,
    )


def check_prompts(settings: ConversationSettings, prompts: Iterable[Prompt]) -> None:
    """Check that the rows fit the `when` of the environments, and that their messages can begin a conversation.

    Raises:
        ValueError: a row does not fit; the message names it.
    """
    prompts = list(prompts)
    check_rows(world_spec(settings), [(prompt.id, prompt.row) for prompt in prompts])
    for prompt in prompts:
        messages_of(prompt)


def make_renderer(policy_path: str, limits: ConversationConfig) -> ChatRenderer:
    """Read a policy's chat template for conversations.

    Raises:
        ValueError: there is no tokenizer, or its template cannot be used for conversations.
    """
    tokenizer = load_tokenizer(policy_path)
    return ChatRenderer(tokenizer, end_ids=end_tokens(policy_path, tokenizer), rewriting=limits.rewriting)
