"""The tasks of the quickstarts with conversations: sums for a tool, and games in a maze."""

from __future__ import annotations

import json
import re

import pytest

from grpo.data import maze_games, tool_sums
from grpo.data.arithmetic import is_held_out
from grpo.environments.maze import MOVES, Maze, moves_in


def worked_out(question: str) -> int:
    """The value of a question, from its signed terms."""
    terms = re.findall(r"(?:^|[+-])\d+", question)
    assert "".join(terms) + "=?" == question
    return sum(map(int, terms))


def test_sums_for_a_tool_are_right_and_what_is_held_out_is_never_seen() -> None:
    held_out = list(tool_sums.questions(300, held_out=True))
    trained = list(tool_sums.questions(3000))
    assert all(int(row["answer"]) == worked_out(row["prompt"]) for row in held_out + trained)
    shown = {row["messages"][0]["content"] for row in tool_sums.demonstrations(3000)}
    asked = {row["prompt"] for row in held_out}
    assert not asked & (shown | {row["prompt"] for row in trained})
    assert all(is_held_out(question.removesuffix("=?")) for question in asked)
    assert len(asked) > 290
    assert list(tool_sums.questions(9, seed=1)) == list(tool_sums.questions(9, seed=1)) != trained[:9]


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_share_of_the_conversations_calls_the_tool(share: float) -> None:
    rows = list(tool_sums.demonstrations(2000, calling_share=share))
    calling = [row for row in rows if len(row["messages"]) > 2]
    assert len(calling) / len(rows) == pytest.approx(share, abs=0.04)
    for row in rows:
        question, *between, last = (message["content"] for message in row["messages"])
        assert row["tools"] == [tool_sums.PYTHON]
        if between:
            call, result = between
            written = json.loads(call.removeprefix("<tool_call>").removesuffix("</tool_call>"))
            assert written == {"name": "python", "arguments": {"code": question.removesuffix("=?")}}
            assert [message["role"] for message in row["messages"]] == ["user", "assistant", "tool", "assistant"]
            assert result == str(worked_out(question)) and last == f"<answer>{result}</answer>"
        else:
            # The first number of the sum.
            assert last == f"<answer>{re.split('[+-]', question)[0]}</answer>"


@pytest.mark.parametrize("show", ["cell", "maze"])
def test_a_game_ends_at_the_goal_or_with_the_last_move(show: str) -> None:
    wins = 0
    for row in maze_games.demonstrations(60, careful_share=0.6, show=show):
        question, *rest = row["messages"]
        maze = Maze(show=show)
        assert question == {"role": "user", "content": maze.reset({})}
        turns, answers = rest[::2], rest[1::2]
        assert len(answers) == len(turns) - 1
        assert {turn["role"] for turn in turns} == {"assistant"} and {each["role"] for each in answers} <= {"user"}
        for turn, answer in zip(turns, answers, strict=False):
            # What the player reads is what the environment says to the move.
            assert maze.step(turn["content"]) == answer["content"] and not maze.over
        last = maze.step(turns[-1]["content"])
        assert maze.over and last in ("You are at the goal.", "You have no moves left.")
        wins += maze.reward() == 1.0
    assert 0 < wins < 60


def test_a_careful_player_takes_the_shortest_way() -> None:
    (row,) = maze_games.demonstrations(1, careful_share=1.0)
    moves = [message["content"] for message in row["messages"][1::2]]
    assert len(moves) == 6 and set(moves) <= set(MOVES)
    (whole,) = maze_games.demonstrations(1, careful_share=1.0, play="answer")
    question, answer = whole["messages"]
    assert moves_in(answer["content"]) == moves and "all moves in one line" in question["content"]
    maze = Maze(play="answer")
    maze.reset({})
    assert maze.step(answer["content"]) == "You are at the goal."
