"""The metrics of conversations in a step, with the names of `docs/metrics.md`."""

from __future__ import annotations

import collections
from collections.abc import Sequence

from grpo.messages import ConversationEnd
from grpo.types import Group


def conversation_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Return the metrics of the groups' conversations; empty if there are none."""
    talked = [
        (rollout.completion, rollout.completion.dialogue)
        for group in groups
        for rollout in group.rollouts
        if rollout.completion.dialogue is not None
    ]
    if not talked:
        return {}
    dialogues = [dialogue for _, dialogue in talked]
    count, calls = len(dialogues), sum(dialogue.calls for dialogue in dialogues)
    turns = sum(m.role == "assistant" for dialogue in dialogues for m in dialogue.messages[dialogue.opening :])
    given = sum(stop - start for completion, _ in talked for start, stop in completion.given)
    given += sum(stop - start for dialogue in dialogues for part in dialogue.further for start, stop in part.given)
    waited, lasted = sum(each.waited_s for each in dialogues), sum(each.lasted_s for each in dialogues)
    failures: collections.Counter[str] = collections.Counter()
    for dialogue in dialogues:
        failures.update(dialogue.failures)
    metrics = {
        "turns_mean": turns / count,
        "calls_mean": calls / count,
        "waited_s_mean": waited / count,
        "waited_share": waited / lasted if lasted else 0.0,
        "observation_tokens_mean": given / count,
    }
    metrics |= {f"call_failures_{kind}": number / max(1, calls) for kind, number in failures.items()}
    metrics |= {f"ended_{end}": sum(each.ended is end for each in dialogues) / count for end in ConversationEnd}
    return {f"conversation/{name}": value for name, value in metrics.items()}
