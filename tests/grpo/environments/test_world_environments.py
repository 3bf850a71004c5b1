"""Environments: classes of users, TRL's classes, and which classes are refused."""

from __future__ import annotations

import pytest

from grpo.environments.opening import first_messages
from grpo.environments.schemas import tool_schemas
from grpo.environments.spec import EnvironmentSpec, WorldSpec, check_rows
from grpo.environments.world import load_world, make_world
from grpo.messages import ChatMessage, ToolCall, WorldReward

CODE = '''
import asyncio

class Guess:
    """Guess a number: `step` answers, and every turn has a reward."""

    def __init__(self, low: int = 0):
        self.low, self.over, self.closed = low, False, []

    def reset(self, row):
        self.number = row["number"]
        return f"Guess a number from {self.low}."

    def step(self, message):
        if message == "give up":
            return {"text": "Bye.", "over": True}
        if message == "quiet":
            return None
        if not message.isdigit():
            return "Write a number."
        if int(message) == self.number:
            return "Right.", 1, True
        return ("Too low." if int(message) < self.number else "Too high."), 0.25

class Shop:
    """Methods are tools; the reward has parts."""

    def reset(self):
        self.bought = []

    def buy(self, thing: str, count: int = 1) -> str:
        """Buy a thing.

        Args:
            thing: What to buy.
            count: How many.
        """
        if count < 1:
            raise ValueError("count must be 1 or more")
        self.bought += [thing] * count
        return f"You have {self.bought}."

    async def leave(self) -> str:
        """Leave the shop."""
        await asyncio.sleep(0)
        self._left = True
        return "Goodbye."

    @property
    def over(self):
        return getattr(self, "_left", False)

    @property
    def trouble(self):
        raise RuntimeError("nobody reads this property")

    def reward(self):
        return {"apples": float(self.bought.count("apple")), "pears": -1.0 * self.bought.count("pear")}

class Answers:
    """Takes anything as an answer, by class attributes that a test sets."""

    opening, answer, prize = None, "ok", None

    def reset(self, row):
        return self.opening

    def step(self, message):
        self.message = message
        return self.answer

    async def reward(self):
        return self.prize

class AsyncGame:
    async def reset(self, row):
        self._queue = asyncio.Queue()
        return "Hello."

    async def step(self, message):
        await self._queue.put(message)
        return await self._queue.get()

    def close(self):
        raise OSError("cannot close")

class Scaled(Guess):
    def reward(self, scale=2.0, *more, **options):
        return scale

class Needs:
    def reset(self, question, seed=0):
        return f"{question} {seed}"

    def step(self, message):
        return "ok"

class NoReset:
    def step(self, message):
        return "ok"

class NoAnswer:
    def reset(self, row):
        pass

class Untyped:
    def reset(self, row):
        pass

    def look(self, place):
        """Look."""

class BadStep:
    def reset(self, row):
        pass

    def step(self, message, action):
        return "ok"

class BadReward(Guess):
    def reward(self, transcript):
        return 1.0

class Added(Shop):
    def add(self, a: int) -> int:
        """Add.

        Args:
            a: Number.
        """
        return a

class Other(Shop):
    def buy(self, other: str) -> str:
        """Buy another thing.

        Args:
            other: What to buy.
        """
        return "no"

def function(row):
    return None

def add(a: int) -> int:
    """Add one.

    Args:
        a: Number.
    """
    return a + 1
'''

# As a user of TRL's `environment_factory` writes it: no arguments, `reset(**kwargs)`, tools, `done`, `get_reward`.
TRL = '''
class WordGame:
    def __init__(self):
        self.reward = 0.0
        self.done = False

    def reset(self, **kwargs) -> str | None:
        self.word = kwargs["answer"]
        self.reward, self.done = 0.0, False
        return f" The word has {len(self.word)} letters."

    def step(self, message: str) -> str:
        """
        Guess the word.

        Args:
            message: The guessed word.

        Returns:
            Whether it is right.
        """
        if self.done:
            raise ValueError("Game over.")
        self.done = message == self.word
        self.reward = float(self.done)
        return "right" if self.done else "wrong"

class Owns(WordGame):
    async def get_reward(self) -> float:
        return self.reward / 2

class Counter:
    def reset(self) -> None:
        self._counter = 0

    def increment(self, a: int) -> int:
        """
        Increment the counter.

        Args:
            a: The value to increment by

        Returns:
            The counter.
        """
        self._counter += a
        return self._counter
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("games")
    (place / "games.py").write_text(CODE)
    (place / "from_trl.py").write_text(TRL)
    return place


def spec_of(folder, *names, tools=(), **options):
    uses = [EnvironmentSpec(name if ":" in name else f"games.py:{name}", options) for name in names]
    return WorldSpec(tools, tuple(uses), folder=str(folder))


def world_of(folder, name, row=None, **options):
    return make_world(spec_of(folder, name, **options), row or {})


def turn(text, *calls):
    return ChatMessage("assistant", text, calls)


def texts(answer):
    return [(message.role, message.content) for message in answer.messages]


@pytest.fixture
def answers(folder, monkeypatch):
    """Return a function that makes the class `Answers` behave as a test wants, and opens its world."""
    load = load_world(spec_of(folder, "Answers")).environments[0].build

    def make(**attributes):
        for name, value in attributes.items():
            monkeypatch.setattr(load, name, value)
        return world_of(folder, "Answers")

    return make


def test_a_game_by_step_with_rewards_of_turns(folder) -> None:
    world = world_of(folder, "Guess", low=3)
    opening = world.open({"number": 7})
    assert not opening.replaces
    assert first_messages([ChatMessage("user", "Play.")], opening) == (
        ChatMessage("user", "Play.\n\nGuess a number from 3."),
    )
    low = world.answer(turn("<think>Is it 7?</think> 5\n"))
    assert (texts(low), low.reward, low.over) == ([("user", "Too low.")], 0.25, False)
    assert texts(world.answer(turn("well"))) == [("user", "Write a number.")]
    right = world.answer(turn("7"))
    assert (texts(right), right.reward, right.over) == ([("user", "Right.")], 1.0, True)
    assert world.close() == WorldReward(1.25, {}, (0.25, 0.0, 1.0))


def test_a_dictionary_ends_a_game_and_none_answers_nothing(folder) -> None:
    world = world_of(folder, "Guess")
    world.open({"number": 7})
    silent = world.answer(turn("quiet"))
    assert (silent.messages, silent.over, silent.reward) == ((), False, None)
    bye = world.answer(turn("give up"))
    assert (texts(bye), bye.over, bye.reward) == ([("user", "Bye.")], True, None)
    assert world.close() == WorldReward(None, {}, ())


def test_a_thought_that_never_ends_is_no_message(answers) -> None:
    world = answers(answer="Say something.")
    world.open({})
    world.answer(turn("<think>5"))
    assert world._game._instance.message == ""


def test_a_game_by_tools_with_a_reward_of_parts(folder) -> None:
    world = world_of(folder, "Shop", tools=("games.py:add",))
    assert world.open({"any": 1}).messages == ()
    answer = world.answer(
        turn(
            "",
            ToolCall("buy", {"thing": "apple", "count": 2}),
            ToolCall("add", {"a": 1}),
            ToolCall("buy", {"thing": "pear", "count": 0}),
            ToolCall("reset", {}),
            ToolCall("_secret", {}),
        )
    )
    assert texts(answer) == [
        ("tool", "You have ['apple', 'apple']."),
        ("tool", "2"),
        ("tool", "error: ValueError: count must be 1 or more"),
        ("tool", "error: no tool is called 'reset'; the tools are: add, buy, leave"),
        ("tool", "error: no tool is called '_secret'; the tools are: add, buy, leave"),
    ]
    assert (answer.failures, answer.over) == ({"raised": 1, "unknown_tool": 2}, False)
    wrong = world.answer(turn("", ToolCall("leave", {"now": True})))
    assert texts(wrong) == [("tool", "error: leave: now is unknown. It takes no arguments")]
    assert world.answer(turn("", ToolCall("leave", {}))).over
    assert world.close() == WorldReward(2.0, {"apples": 2.0, "pears": 0.0}, ())


def test_schemas_hold_tools_and_methods_of_the_row(folder) -> None:
    def names(schemas):
        return [each["function"]["name"] for each in schemas]

    assert names(tool_schemas(spec_of(folder, "Shop", tools=("games.py:add",)))) == ["add", "buy", "leave"]
    mixed = WorldSpec(
        (),
        (
            EnvironmentSpec("games.py:Shop", when={"kind": ["shop"]}),
            EnvironmentSpec("games.py:Guess", when={"kind": ["guess", True]}),
        ),
        folder=str(folder),
    )
    assert names(tool_schemas(mixed)) == ["buy", "leave"]
    assert names(tool_schemas(mixed, {"kind": "guess"})) == []
    world = make_world(mixed, {"kind": "guess"})
    assert texts(world.answer(turn("", ToolCall("buy", {})))) == [
        ("tool", "error: no tool is called 'buy'; there are no tools")
    ]
    plain = make_world(mixed, {"kind": 1})
    assert (plain.open({}).messages, plain.answer(turn("5")).messages, plain.close().score) == ((), (), None)


def test_async_methods_share_an_event_loop_and_close_may_fail(folder) -> None:
    world = world_of(folder, "AsyncGame")
    world.open({})
    assert texts(world.answer(turn("echo"))) == [("user", "echo")]
    with pytest.raises(OSError, match="cannot close"):
        world.close()


def test_reset_gets_the_columns_that_it_names(folder) -> None:
    world = world_of(folder, "Needs")
    assert world.open({"question": "Why?", "seed": 3, "more": 1}).messages[0].content == "\n\nWhy? 3"
    with pytest.raises(ValueError, match="takes 'question', but the row has only answer"):
        world_of(folder, "Needs").open({"answer": 1})


@pytest.mark.parametrize(
    ("value", "messages"),
    [
        (None, [("system", "S"), ("user", "Q")]),
        ("", [("system", "S"), ("user", "Q")]),
        ("more", [("system", "S"), ("user", "Q\n\nmore")]),
        ({"role": "user", "content": "new"}, [("user", "new")]),
        ([{"role": "system", "content": "T"}, {"role": "user", "content": "new"}], [("system", "T"), ("user", "new")]),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], [("system", "S"), ("user", "Q\n\nab")]),
        ([{"role": "user", "content": [{"type": "text", "text": "part \ud800"}]}], [("user", "part \ufffd")]),
    ],
)
def test_what_reset_may_return(answers, value, messages) -> None:
    rows = [ChatMessage("system", "S"), ChatMessage("user", "Q")]
    first = first_messages(rows, answers(opening=value).open({}))
    assert [(each.role, each.content) for each in first] == messages


def test_text_without_a_question_begins_without_empty_lines(answers) -> None:
    assert first_messages([], answers(opening="Go.").open({})) == (ChatMessage("user", "Go."),)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (3, "returned int; return None, text"),
        ([], "returned an empty list"),
        (["text"], "a list with str"),
        ({"role": "robot", "content": "x"}, "keys 'role', 'content'"),
        ([{"role": "user", "content": 3}], "content is int"),
        ([{"type": "image", "image": "x"}], "parts that are no text"),
        ([{"role": "assistant", "content": "x"}], "end with the role 'assistant'"),
    ],
)
def test_what_reset_may_not_return(answers, value, problem) -> None:
    with pytest.raises(ValueError, match=problem):
        answers(opening=value).open({})


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (3, "returned int as text"),
        (("a", "b", "c", "d"), "returned tuple as text"),
        ({"txt": "a"}, "returned the key 'txt'"),
        (("a", float("nan")), "reward of a turn is nan; expected a finite number"),
        (("a", "1"), "reward of a turn is str"),
    ],
)
def test_what_step_may_not_return(answers, value, problem) -> None:
    with pytest.raises(ValueError, match=problem):
        answers(answer=value).answer(turn("x"))


@pytest.mark.parametrize(
    ("value", "reward"),
    [
        (None, WorldReward(None)),
        (True, WorldReward(1.0)),
        ({"reward": 0.5, "form": 1, "length": 2}, WorldReward(0.5, {"form": 1.0, "length": 2.0})),
        ({"form": 1, "length": 2}, WorldReward(3.0, {"form": 1.0, "length": 2.0})),
    ],
)
def test_what_reward_may_return(answers, value, reward) -> None:
    assert answers(prize=value).close() == reward


def test_reward_may_have_parameters_with_defaults(folder) -> None:
    assert world_of(folder, "Scaled").close().score == 2.0


@pytest.mark.parametrize("value", [float("inf"), "1", {"a": float("nan")}, {}, [1.0]])
def test_what_reward_may_not_return(answers, value) -> None:
    with pytest.raises(ValueError, match="reward is"):
        answers(prize=value).close()


def test_a_trl_class_runs_unchanged(folder) -> None:
    row = {"prompt": "Guess.", "answer": "moon"}
    (schema,) = tool_schemas(spec_of(folder, "from_trl.py:WordGame"))
    assert schema["function"]["name"] == "step"
    for name, score in (("WordGame", 1.0), ("Owns", 0.5)):
        world = world_of(folder, f"from_trl.py:{name}", row)
        opening = world.open(row)
        assert first_messages([ChatMessage("user", "Guess.")], opening)[0].content == "Guess. The word has 4 letters."
        wrong = world.answer(turn("", ToolCall("step", {"message": "sun"})))
        assert (texts(wrong), wrong.over) == ([("tool", "wrong")], False)
        right = world.answer(turn("", ToolCall("step", {"message": "moon"}), ToolCall("step", {"message": "sun"})))
        assert texts(right) == [("tool", "right"), ("tool", "error: ValueError: Game over.")]
        assert right.over
        assert world.close() == WorldReward(score)


def test_a_trl_class_that_answers_no_text_ends_by_itself(folder) -> None:
    world = world_of(folder, "from_trl.py:Counter")
    assert world.open({"prompt": "Count."}).messages == ()
    assert texts(world.answer(turn("", ToolCall("increment", {"a": 2})))) == [("tool", "2")]
    assert world.answer(turn("It is 2.")).messages == ()
    assert world.close() == WorldReward(None)


@pytest.mark.parametrize(
    ("name", "options", "problem"),
    [
        ("NoReset", {}, "has no method `reset`, which begins a game; add `def reset"),
        ("NoAnswer", {}, "has neither a public method, which would be a tool, nor a method"),
        ("Untyped", {}, r"the method Untyped.look: the argument 'place' has no type.*begins with '_' is no tool"),
        ("BadStep", {}, r"step\(self, message, action\) must take the text of a turn and nothing else"),
        ("BadReward", {}, r"reward\(self, transcript\) is called without arguments"),
        ("function", {}, "is function; name a class"),
        ("Gues", {}, "did you mean 'Guess'"),
        ("Guess", {"high": 3}, "does not take the options {'high': 3}.*it takes low"),
        ("Needs", {"high": 3}, "it takes no options"),
    ],
)
def test_a_class_that_cannot_be_an_environment_is_refused(folder, name, options, problem) -> None:
    with pytest.raises(ValueError, match=problem):
        tool_schemas(spec_of(folder, name, **options))


def test_wrong_names_of_environments_are_refused(folder) -> None:
    with pytest.raises(ValueError, match="no environment is called 'mazes'; did you mean 'maze'"):
        load_world(WorldSpec((), (EnvironmentSpec("mazes"),)))
    with pytest.raises(ValueError, match="names a file but no function in it"):
        load_world(WorldSpec((), (EnvironmentSpec("games.py"),), folder=str(folder)))


def test_tools_and_methods_of_the_same_name_are_refused(folder) -> None:
    with pytest.raises(ValueError, match="has a method 'add', and a tool of the config has the same name"):
        load_world(spec_of(folder, "Added", tools=("games.py:add",)))
    kinds = [EnvironmentSpec(f"games.py:{name}", when={"kind": [name]}) for name in ("Shop", "Other")]
    with pytest.raises(ValueError, match="two environments have different tools with the name 'buy'"):
        tool_schemas(WorldSpec((), tuple(kinds), folder=str(folder)))


def test_an_environment_without_when_beside_another_is_refused(folder) -> None:
    with pytest.raises(ValueError, match="has no `when`, so it plays all rows"):
        load_world(spec_of(folder, "Shop", "Guess"))


def test_rows_are_checked_against_when() -> None:
    first, second = (EnvironmentSpec("maze", when={"kind": [kind, "both"]}) for kind in ("a", "b"))
    spec = WorldSpec((), (first, second))
    check_rows(spec, [("rows:0", {"kind": "a"}), ("rows:1", {"kind": "b"}), ("rows:2", {"kind": "c"})])
    with pytest.raises(ValueError, match="row 0 of rows: several environments play the same row: maze, maze"):
        check_rows(spec, [("rows:0", {"kind": "both"})])
    with pytest.raises(ValueError, match=r"row 0 of rows has no column 'kind'.*did you mean 'kinds'"):
        check_rows(spec, [("rows:0", {"kinds": "a"})])
    with pytest.raises(ValueError, match=r"plays no row: no row has a value of its `when` .kind is 'b' or 'both'"):
        check_rows(spec, [("rows:0", {"kind": "a"})])
