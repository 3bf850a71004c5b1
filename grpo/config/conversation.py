"""Sections of the configuration for conversations: tools, environments, and limits of a conversation."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from grpo.config.section import Positive, Seconds, Section, WorkerMemory
from grpo.config.verifiers import Cell


class EnvironmentConfig(Section):
    """An environment: what answers the policy."""

    use: str
    """Built-in name (`maze`, `gym`), `package.module:Class` or `file.py:Class`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the class."""
    when: dict[str, Cell | tuple[Cell, ...]] = Field(default_factory=dict)
    """Column -> value, or list of values. The environment plays only rows with these values; by default all rows."""


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
    rewriting: Literal["follow", "keep"] = "follow"
    """For chat templates that drop earlier thoughts, such as Qwen3's. `follow`: the policy reads the history as the
    template writes it, and the conversation becomes two training sequences there. `keep`: the policy reads all of its
    own tokens."""
