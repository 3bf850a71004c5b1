"""Sections of the configuration for conversations: tools, environments, and limits of a conversation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from grpo.config.section import Positive, Seconds, Section, WorkerMemory
from grpo.config.verifiers import Cell, VerifierConfig

# `use` of an environment that is the user's own program.
AGENT = "agent"


class EnvironmentConfig(Section):
    """An environment: what answers the policy. Without `verifiers`, its own reward is the reward."""

    use: str
    """Built-in name (`maze`, `gym`), `package.module:Class`, `file.py:Class`, or `agent` for a program of your own that
    calls the policy."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the class."""
    when: dict[str, Cell | tuple[Cell, ...]] = Field(default_factory=dict)
    """Column -> value, or list of values. The environment plays only rows with these values; by default all rows."""
    command: tuple[str, ...] = ()
    """For `use: agent`: the program and its arguments. No shell reads them."""
    variables: tuple[str, ...] = ()
    """For `use: agent`: names of environment variables that the program gets from the run."""


Environments = Annotated[
    tuple[EnvironmentConfig, ...], BeforeValidator(lambda value: [value] if isinstance(value, dict) else value)
]


class ConversationConfig(Section):
    """Limits of a conversation. The tokens of all turns and answers count in `rollout.max_completion_tokens`."""

    max_turns: Positive = 8
    """Largest number of the policy's turns."""
    max_turn_tokens: Positive | None = None
    """Longest turn of the policy, in tokens; by default only the limit of the whole conversation holds."""
    max_observation_tokens: Positive = 512
    """Longest answer of the world to a turn, in tokens. A longer answer is cut in its middle, with a mark there."""
    tool_deadline_s: Seconds = 30.0
    """Longest time of a tool call, of an environment's answer, or of its `reset`, in seconds."""
    deadline_s: Seconds = 600.0
    """Longest time of a conversation, in seconds."""
    memory_mib: WorkerMemory | None = 2048
    """MiB of address space of a conversation's process. None sets no limit."""
    programs: Positive = 64
    """For `use: agent`: largest number of programs that run at once."""
    resume: Literal["anew", "replay"] = "anew"
    """Conversations under way at a checkpoint, after a resume. `anew`: they begin anew, with the same seeds. `replay`:
    the checkpoint keeps their finished turns with tokens, log-probabilities, versions and answers; tools and
    environments begin anew and get the same turns, and the conversation goes on. If an answer differs, or for `use:
    agent`, the conversation begins anew."""
    rewriting: Literal["follow", "keep"] = "follow"
    """For chat templates that drop earlier thoughts, such as Qwen3's. `follow`: the policy reads the history as the
    template writes it, and the conversation becomes two training sequences there. `keep`: the policy reads all of its
    own tokens."""


def rewarded_by_environment(values: Any, key: str, verdict: Any) -> Any:
    """Return the values of a section; if there is an environment and nothing at `key`, with its own reward there."""
    if isinstance(values, dict) and values.get("environment") and not values.get(key):
        return {**values, key: verdict}
    return values


def conversation_problems(
    tools: Sequence[str],
    environments: Sequence[EnvironmentConfig],
    conversation: ConversationConfig,
    verifiers: Sequence[VerifierConfig],
) -> list[str]:
    """Find settings of conversations that do not fit each other, each with its remedy."""
    problems = []
    agents = [each for each in environments if each.use == AGENT]
    for agent in agents:
        if not agent.command:
            problems.append('environment: use=agent needs a command, for example ["python", "my_agent.py"]')
        if agent.options:
            problems.append("environment.options are for classes; give the program its arguments in command")
    if any(not agent.when for agent in agents) and (len(environments) > 1 or tools):
        problems.append(
            "environment: use=agent without `when` plays all rows, with the program's own tools; give it a `when`, or "
            "remove the other environments and `tools`"
        )
    problems += [
        f"environment: {each.use!r} has `command` or `variables`, which only use=agent reads; remove them"
        for each in environments
        if each.use != AGENT and (each.command or each.variables)
    ]
    if not environments and any(verifier.use == "environment" for verifier in verifiers):
        problems.append(
            "verifiers: use=environment takes the reward of an environment, and there is none; add an `environment`, "
            "or use another verifier"
        )
    if not tools and not environments and conversation != ConversationConfig():
        problems.append("conversation has limits, but there are neither `tools` nor an `environment`; add them")
    return problems
