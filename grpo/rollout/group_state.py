"""Scored groups as plain data and tensors, for a checkpoint that is read without unpickling anything else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from grpo.types import Completion, Group, Prompt, Rollout, VersionSpan
from rewards.verdict import Status, Verdict


def group_state(group: Group) -> dict[str, Any]:
    """A group without its prompt, of which only the id is kept: rows may hold what a checkpoint cannot."""
    completions = [rollout.completion for rollout in group.rollouts]
    return {
        "prompt": group.prompt.id,
        "token_ids": torch.tensor([token for one in completions for token in one.token_ids], dtype=torch.int64),
        "logprobs": torch.tensor([value for one in completions for value in one.logprobs], dtype=torch.float64),
        "rollouts": [
            {
                "tokens": len(one.completion.token_ids),
                "text": one.completion.text,
                "finish_reason": one.completion.finish_reason,
                "spans": [(span.start, span.stop, span.policy_version) for span in one.completion.spans],
                "verdicts": {name: _verdict_state(verdict) for name, verdict in one.verdicts.items()},
                "reward": None if one.reward is None else float(one.reward),
            }
            for one in group.rollouts
        ],
    }


def group_from_state(state: Mapping[str, Any], prompts: Mapping[str, Prompt]) -> Group:
    """The group that `group_state` told.

    Args:
        state: what it told.
        prompts: the data's, by id.

    Raises:
        ValueError: the data have no such prompt.
    """
    rollouts, begin = [], 0
    for one in state["rollouts"]:
        end = begin + one["tokens"]
        completion = Completion(
            tuple(state["token_ids"][begin:end].tolist()),
            tuple(state["logprobs"][begin:end].tolist()),
            one["text"],
            one["finish_reason"],
            tuple(VersionSpan(*span) for span in one["spans"]),
        )
        verdicts = {
            name: Verdict(told["score"], Status(told["status"]), told["reason"], told["parts"])
            for name, told in one["verdicts"].items()
        }
        rollouts.append(Rollout(completion, verdicts, one["reward"]))
        begin = end
    return Group(known_prompt(state["prompt"], prompts), tuple(rollouts))


def known_prompt(name: str, prompts: Mapping[str, Prompt]) -> Prompt:
    """The prompt of that id.

    Raises:
        ValueError: the data have none.
    """
    if name not in prompts:
        raise ValueError(
            f"the checkpoint holds a group of prompt {name}, which the data no longer have; resume with the same data "
            "and length limits, or start a new run folder"
        )
    return prompts[name]


def _verdict_state(verdict: Verdict) -> dict[str, Any]:
    # A user's verifier may have made them numpy's, which are no plain data.
    return {
        "score": None if verdict.score is None else float(verdict.score),
        "status": verdict.status.value,
        "reason": str(verdict.reason),
        "parts": {str(name): float(value) for name, value in verdict.parts.items()},
    }
