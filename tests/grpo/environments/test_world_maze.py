"""The built-in environments: the maze, turn by turn and in one answer, and the tasks of reasoning-gym."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from grpo.environments.maze import TEXTBOOK, moves_in, questions, shortest_way
from grpo.environments.opening import first_messages
from grpo.environments.spec import EnvironmentSpec, WorldSpec
from grpo.environments.world import load_world, make_world
from grpo.messages import ChatMessage

WAY = ["right", "right", "down", "left", "down", "right"]


def world_of(use, row, **options):
    world = make_world(WorldSpec((), (EnvironmentSpec(use, options),)), row)
    opening = world.open(row)
    return world, opening


def play(world, *turns):
    """Play turns; return the last answer's text and whether the game is over."""
    for text in turns:
        answer = world.answer(ChatMessage("assistant", text))
    return answer.messages[0].content, answer.over


def test_the_maze_of_the_textbooks_needs_six_moves() -> None:
    assert shortest_way(TEXTBOOK) == WAY
    world, opening = world_of("maze", {})
    (message,) = first_messages([], opening)
    assert TEXTBOOK in message.content and "one move" in message.content
    for move in WAY[:-1]:
        said, over = play(world, f"<think>Not left, but ...</think>{move}")
        assert not over and said.count("@") == 1
    assert play(world, "Right!") == ("You are at the goal.", True)
    assert world.close().score == 1.0


def test_a_turn_shows_the_place_or_the_wall() -> None:
    world, _ = world_of("maze", {"maze": TEXTBOOK})
    assert play(world, "right") == (TEXTBOOK.replace("S....", "S.@.."), False)
    assert play(world, "down") == (f"There is a wall.\n{TEXTBOOK.replace('S....', 'S.@..')}", False)
    world, opening = world_of("maze", {"maze": TEXTBOOK}, show="cell")
    assert opening.messages == ()
    assert play(world, "right", "right", "down") == ("row 2, column 3", False)
    assert play(world, "down") == ("There is a wall.\nrow 2, column 3", False)
    assert world.close().score == 0.0


@pytest.mark.parametrize("text", ["", "go on", "up or down", "<think>right"])
def test_a_turn_without_exactly_one_move_changes_nothing(text) -> None:
    world, _ = world_of("maze", {}, limit=1)
    assert play(world, text) == ("Each turn, write one move: up, down, left or right.", False)
    assert play(world, "right") == ("You have no moves left.", True)


def test_moves_are_limited_to_twice_the_shortest_way() -> None:
    world, _ = world_of("maze", {}, show="cell")
    assert play(world, *["up"] * 11) == ("There is a wall.\nrow 1, column 1", False)
    assert play(world, "up") == ("You have no moves left.", True)
    assert world.close().score == 0.0


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        (" ".join(WAY), 1.0),
        ("RRDLDR", 1.0),
        ("I go left at first? No.\n" + ", ".join(WAY), 1.0),
        ("up " * 6 + " ".join(WAY), 1.0),
        ("up " * 7 + " ".join(WAY), 0.0),
        (" ".join([*WAY, "left", "left"]), 1.0),
        (" ".join(WAY[:-1]), 0.0),
        ("", 0.0),
        ("right down " * 100_000, 0.0),
    ],
)
def test_one_answer_lists_all_moves(answer, score) -> None:
    world, opening = world_of("maze", {}, play="answer")
    assert "all moves in one line" in opening.messages[0].content
    assert play(world, answer) == (
        "You are at the goal." if score else "This way does not lead to the goal.",
        True,
    )
    assert world.close().score == score


def test_moves_are_read_from_words_and_capital_letters() -> None:
    assert moves_in("I'd go UP, then l and R") == ["up", "right"]
    assert moves_in("left\n<answer>up Down</answer> right") == ["up", "down"]
    assert moves_in("upper download") == []


def test_questions_are_seeded_and_held_out_mazes_are_apart() -> None:
    rows = list(questions(40, seed=1))
    assert rows == list(questions(40, seed=1)) != list(questions(40, seed=2))
    assert all(len(row["answer"].split()) == 6 and row["answer"].split() == shortest_way(row["maze"]) for row in rows)
    assert all(row["prompt"].endswith(row["maze"]) for row in rows)
    assert not {row["maze"] for row in rows} & {row["maze"] for row in questions(40, held_out=True)}
    assert {row["maze"] for row in questions(3, same=True)} == {TEXTBOOK}
    (large,) = questions(1, size=5, moves=11, play="answer")
    assert len(large["maze"].splitlines()) == 11 and "all moves" in large["prompt"]
    for row in rows[:5]:
        world, _ = world_of("maze", row)
        assert play(world, *row["answer"].split()) == ("You are at the goal.", True)


def test_impossible_questions_are_refused() -> None:
    with pytest.raises(ValueError, match="has a shortest way of 9 moves"):
        next(questions(1, size=2, moves=9))
    with pytest.raises(ValueError, match="play is 'both'"):
        next(questions(1, play="both"))


@pytest.mark.parametrize(
    "drawing",
    ["", "SG", TEXTBOOK.replace("G", "."), TEXTBOOK.replace("....G", "...GG"), TEXTBOOK.replace("#S", ".S"),
     TEXTBOOK.replace("S....", ".S..."), TEXTBOOK.replace("#S....#", "#S...."),
     TEXTBOOK.replace("#.#...#\n", ""), "\n".join(line[:1] + line[2:] for line in TEXTBOOK.splitlines()), "###",
     "\n".join(line + "#" for line in TEXTBOOK.splitlines())],
)  # fmt: skip
def test_a_drawing_that_is_no_maze_is_refused(drawing) -> None:
    with pytest.raises(ValueError, match="a maze needs one S and one G"):
        world_of("maze", {"maze": drawing})


def test_a_maze_without_a_way_is_refused() -> None:
    with pytest.raises(ValueError, match="no way leads from S to G"):
        world_of("maze", {"maze": TEXTBOOK.replace("S....", "S#...")})
    with pytest.raises(ValueError, match="the column 'maze' is int"):
        world_of("maze", {"maze": 3})


@pytest.mark.parametrize(
    ("options", "problem"),
    [({"play": "both"}, "play is 'both'"), ({"show": "all"}, "show is 'all'"), ({"limit": 0}, "limit is 0"),
     ({"walls": 1}, "it takes play, show, limit")],
)  # fmt: skip
def test_wrong_options_are_refused_at_the_start(options, problem) -> None:
    with pytest.raises(ValueError, match=problem):
        load_world(WorldSpec((), (EnvironmentSpec("maze", options),)))


@pytest.fixture
def library(monkeypatch):
    """Stand for reasoning-gym with a task that accepts 4, and half of 3."""
    scores = {"4": 1.0, "3": 0.5}
    scorer = SimpleNamespace(get_score_answer_fn=lambda task: lambda answer, entry: scores.get(answer, 0.0))
    monkeypatch.setitem(sys.modules, "reasoning_gym", scorer)


ROW = {"question": "2+2?", "answer": "4", "metadata": {"source_dataset": "sums"}}


def test_gym_scores_one_answer(library) -> None:
    world, opening = world_of("gym", ROW)
    assert opening.messages == ()
    assert play(world, "<answer>5</answer>") == ("Your answer is wrong.", True)
    assert world.close().score == 0.0
    world, _ = world_of("gym", ROW)
    assert play(world, "<answer>4</answer>") == ("Your answer is right.", True)
    assert world.close().score == 1.0


def test_gym_lets_the_policy_try_again(library) -> None:
    world, _ = world_of("gym", ROW, tries=3)
    assert play(world, "Hmm.") == (
        "Your message states no answer. Write it as <answer>...</answer>. Try again; answers left: 2.",
        False,
    )
    assert play(world, "<answer>9</answer>") == ("Your answer is wrong. Try again; answers left: 1.", False)
    assert play(world, "<answer>3</answer>") == ("Your answer is not quite right.", True)
    assert world.close().score == 0.5


def test_gym_needs_the_name_of_the_task(library) -> None:
    world, _ = world_of("gym", {"answer": "4"})
    with pytest.raises(ValueError, match="source_dataset"):
        play(world, "<answer>4</answer>")


def test_gym_says_how_to_install_it(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ValueError, match="install the extra"):
        load_world(WorldSpec((), (EnvironmentSpec("gym"),)))


def test_gym_plays_rows_of_reasoning_gym() -> None:
    pytest.importorskip("reasoning_gym", reason="the extra `gym` is not installed")
    from rewards.verifiers.gym import rows

    for row in rows("leg_counting", 3, seed=1):
        world, _ = world_of("gym", row)
        assert play(world, f"<answer>{row['answer']}</answer>") == ("Your answer is right.", True)
        assert world.close().score == 1.0
