from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from conversations.scripted_turns import Turns
from conversations.small_chat import FORGETFUL, PLAIN, small_tokenizer

from grpo.algorithm.parts import sequences_of
from grpo.conversation.observation import shortened
from grpo.conversation.renderer import ChatRenderer
from grpo.environments.contract import Answer, Event, Opening, WorldFailed
from grpo.messages import ChatMessage, ConversationEnd, WorldReward
from grpo.rollout.conversations import Conversations
from grpo.rollout.dialogue_state import dialogue_from_state, dialogue_state
from grpo.rollout.plays import ConversationLimits
from grpo.types import Completion, Prompt, Request, VersionSpan

LIMITS = ConversationLimits(prompt_tokens=500, turns=3, tokens=200, turn_tokens=60, observation_tokens=40, seconds=60.0)


class Answers:
    """Worlds that answer each turn with the next of `script`."""

    tools = ()

    def __init__(self, *script: Event, openings: Sequence[Event] = ()) -> None:
        self.script, self.openings = script, list(openings)
        self.said, self.rows, self.queue = dict[int, int](), list[Any](), list[tuple[int, Event]]()

    def open(self, key: int, row: Any) -> None:
        self.rows.append(row)
        self.queue.append((key, self.openings.pop(0) if self.openings else Opening()))

    def answer(self, key: int, turn: ChatMessage) -> None:
        place = self.said.get(key, 0)
        self.said[key] = place + 1
        self.queue.append((key, self.script[place]))

    def close(self, key: int) -> None:
        self.queue.append((key, WorldReward(score=1.0)))

    def abandon(self, key: int) -> None:
        raise AssertionError

    def events(self, wait_s: float = 0.0) -> list[tuple[int, Event]]:
        done, self.queue = self.queue, []
        return done


def says(text: str) -> Answer:
    return Answer((ChatMessage("tool", text),), calls=1)


def played(
    worlds: Answers, *texts: str, limits: ConversationLimits = LIMITS, template: str = PLAIN, samples: int = 1
) -> tuple[tuple[Completion, ...], Turns]:
    tokenizer = small_tokenizer(template)
    turns = Turns(tokenizer, texts)
    question = ({"role": "user", "content": "What is 6*7?"},)
    playing = Conversations(turns, worlds, ChatRenderer(tokenizer), limits, samples)
    playing.submit([Request(7, (1,), 100)], [Prompt("row 0", "?", (1,), None, {"problem": "?"}, messages=question)])
    ((group, completions),) = playing.finished()
    assert group == 7 and playing.unfinished == 0
    return completions, turns


def test_a_conversation_is_what_the_policy_read_and_wrote() -> None:
    (completion,), turns = played(Answers(says("42"), Answer()), "I ask.", "It is 42.")
    first, second = turns.asked
    # What the policy read in its second turn is the first prompt and the first tokens of the completion.
    whole = (*first.token_ids, *completion.token_ids)
    assert whole[: len(second.token_ids)] == second.token_ids
    text = turns.tokenizer.decode(whole, skip_special_tokens=False)
    assert "I ask.<|im_end|>\n<|im_start|>user\n<tool_response>\n42\n</tool_response><|im_end|>" in text
    ((start, stop),) = completion.given
    assert all(value == 0.0 for value in completion.logprobs[start:stop])
    assert set(completion.sampled_logprobs) == {-0.5}
    assert completion.sampled_tokens == len(completion.token_ids) - (stop - start)
    assert completion.text == "It is 42." and completion.finish_reason == "stop"
    # Given tokens have the version of the turn before them.
    assert completion.spans == (VersionSpan(0, stop, 0), VersionSpan(stop, len(completion.token_ids), 1))
    dialogue = completion.dialogue
    assert dialogue is not None and dialogue.ended is ConversationEnd.ANSWER
    assert (dialogue.calls, dialogue.reward.score, dialogue.opening) == (1, 1.0, 1)
    assert [message.role for message in dialogue.messages] == ["user", "assistant", "tool", "assistant"]


def test_a_rewritten_history_becomes_a_part_of_its_own() -> None:
    texts = "<think>\nHm.\n</think>\n\nI ask.", "It is 42."
    (completion,), turns = played(Answers(says("42"), Answer()), *texts, template=FORGETFUL)
    (part,) = completion.further
    assert part.prompt_ids == turns.asked[1].token_ids
    assert "Hm." not in turns.tokenizer.decode(part.prompt_ids)
    assert completion.given == () and part.given == ()


@pytest.mark.parametrize(
    ("script", "limits", "ended"),
    [
        ((says("1"), says("2"), says("3")), {}, ConversationEnd.TURNS),
        ((Answer(over=True),), {}, ConversationEnd.OVER),
        ((says("1"), says("2")), {"tokens": 30}, ConversationEnd.TOKENS),
        ((says("1"),), {"turn_tokens": 1}, ConversationEnd.TOKENS),
    ],
)
def test_each_limit_has_an_end_of_its_own(
    script: tuple[Event, ...], limits: dict[str, Any], ended: ConversationEnd
) -> None:
    values = {name: getattr(LIMITS, name) for name in LIMITS.__dataclass_fields__} | limits
    (completion,), _ = played(Answers(*script), "a", "b", "c", limits=ConversationLimits(**values))
    assert completion.dialogue is not None and completion.dialogue.ended is ended
    assert (completion.finish_reason == "length") is (ended is ConversationEnd.TOKENS)


def test_a_world_that_fails_gives_no_score() -> None:
    (completion,), _ = played(Answers(WorldFailed("timeout", "it took 30 s")), "I ask.")
    dialogue = completion.dialogue
    assert dialogue is not None and dialogue.ended is ConversationEnd.FAILED
    assert (dialogue.reason, dialogue.timed_out, dialogue.reward.score) == ("it took 30 s", True, None)


def test_a_world_that_fails_before_its_first_message_begins_again_twice() -> None:
    failed = WorldFailed("error", "no maze")
    (completion,), _ = played(Answers(Answer(), openings=[failed, failed]), "It is 42.")
    assert completion.dialogue is not None and completion.dialogue.ended is ConversationEnd.ANSWER
    with pytest.raises(RuntimeError, match="row 0 failed 3 times before its first message: no maze"):
        played(Answers(openings=[failed] * 3), "It is 42.")


def test_the_conversations_of_a_group_differ_in_their_seeds_alone() -> None:
    completions, turns = played(Answers(says("42"), Answer()), "I ask.", "It is 42.", samples=2)
    assert len(completions) == 2
    assert [request.seed for request in turns.asked[:2]] == [100, 101]
    assert len({request.seed for request in turns.asked}) == 4
    different = [Opening((ChatMessage("user", text),), replaces=True) for text in "ab"]
    with pytest.raises(ValueError, match="let the first messages depend on the row alone"):
        played(Answers(openings=different), "a", samples=2)


def test_a_long_observation_is_cut_in_its_middle() -> None:
    (completion,), turns = played(Answers(says("x" * 500 + "end"), Answer()), "I ask.", "It is 42.")
    assert completion.dialogue is not None
    seen = completion.dialogue.messages[2].content
    assert seen.startswith("xx") and seen.endswith("end") and "characters are left out]" in seen
    assert len(turns.tokenizer(seen)["input_ids"]) <= LIMITS.observation_tokens
    assert shortened("short", 40, len) == "short"
    assert len(shortened("y" * 10_000_000, 40, len)) <= 40


def test_a_first_prompt_that_is_too_long_is_refused() -> None:
    values = {name: getattr(LIMITS, name) for name in LIMITS.__dataclass_fields__}
    (completion,), turns = played(Answers(Answer()), "It is 42.")
    longest = len(turns.asked[0].token_ids)
    assert completion.prompt_ids(Prompt("row 0", "?", (1,), None, {})) == turns.asked[0].token_ids
    # A prompt of exactly the limit is played.
    played(Answers(Answer()), "It is 42.", limits=ConversationLimits(**values | {"prompt_tokens": longest}))
    told = (
        rf"the first prompt of row 0 has {longest} tokens with its tools, more than max_prompt_tokens="
        rf"{longest - 1}; raise it, or shorten the prompts"
    )
    with pytest.raises(ValueError, match=told):
        played(Answers(Answer()), "It is 42.", limits=ConversationLimits(**values | {"prompt_tokens": longest - 1}))


def test_the_first_prompt_as_played_is_what_the_learner_reads() -> None:
    opening = Opening((ChatMessage("user", "You stand at S."),))
    (completion,), turns = played(Answers(Answer(), openings=[opening]), "It is 42.")
    dialogue = completion.dialogue
    assert dialogue is not None and "You stand at S." in turns.tokenizer.decode(dialogue.prompt_ids)
    assert dialogue_from_state(dialogue_state(dialogue)) == dialogue
    prompt = Prompt("row 0", "?", (1,), None, {})
    (sequence,) = sequences_of(prompt, completion, 1.0)
    assert sequence.token_ids == (*turns.asked[0].token_ids, *completion.token_ids)
    assert sequence.prompt_length == len(turns.asked[0].token_ids)
    # A single turn has the tokens of the row's prompt.
    (sequence,) = sequences_of(prompt, replace(completion, dialogue=None), 1.0)
    assert sequence.token_ids == (1, *completion.token_ids)
