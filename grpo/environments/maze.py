"""A maze in the form of the textbooks: cells with walls between them, reward only at the goal.

The policy plays turn by turn, or lists all moves in one answer.
"""

from __future__ import annotations

import random
import re
import zlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# In a drawing, each cell and each place between two cells is a character. The shortest way has 6 moves.
TEXTBOOK = """#######
#S....#
#####.#
#.#...#
#.#.###
#....G#
#######"""
MOVES: Mapping[str, tuple[int, int]] = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
_LETTERS = {name[0].upper(): name for name in MOVES}
_MOVE = re.compile(r"\b(?:(?i:up|down|left|right)|[UDLR]+)\b")
_WALL, _FREE, _START, _GOAL, _PLAYER = "#", ".", "S", "G", "@"
_HOW = {
    "turns": "Each turn, write one move: up, down, left or right.",
    "answer": "Write all moves in one line, for example: up up right.",
}
_SHOWS = ("maze", "cell")
_MOST_TRIES = 10_000

Cell = tuple[int, int]


class Maze:
    """The environment `maze`.

    A row's column `maze` is the drawing of its maze; a row without this column gets the maze of the textbooks, and its
    question. A move against a wall changes nothing, but counts.

    Args:
        play: `turns`: one move in each turn. `answer`: all moves in the first turn.
        show: what a turn's answer shows: the `maze` with `@` at the present cell, or only the `cell`.
        limit: largest number of moves; None for twice the number of moves of the shortest way.

    Raises:
        ValueError: an option has another value.
    """

    def __init__(self, play: str = "turns", show: str = "maze", limit: int | None = None) -> None:
        if play not in _HOW:
            raise ValueError(f"maze: play is {play!r}; expected turns or answer")
        if show not in _SHOWS:
            raise ValueError(f"maze: show is {show!r}; expected maze or cell")
        if limit is not None and limit < 1:
            raise ValueError(f"maze: limit is {limit}; expected 1 or more moves")
        self.play, self.show, self.limit = play, show, limit
        self.over = False

    def reset(self, row: Mapping[str, Any]) -> str | None:
        """Begin at S. Return the question if the row has no column `maze`.

        Raises:
            ValueError: the drawing is no maze, or no way leads to G.
        """
        drawing = row.get("maze", TEXTBOOK)
        if not isinstance(drawing, str):
            raise ValueError(f"the column 'maze' is {type(drawing).__name__}; expected a drawing as text")
        self._lines = drawing.splitlines()
        self._goal, self._at = place_of_mark(self._lines, _GOAL), place_of_mark(self._lines, _START)
        way = shortest_way(drawing)
        if way is None:
            raise ValueError("no way leads from S to G in the column 'maze'")
        self._left = 2 * len(way) if self.limit is None else self.limit
        self.over = False
        return None if "maze" in row else question(drawing, self.play)

    def step(self, message: str) -> str:
        """Take the move or the moves of a turn."""
        moves = moves_in(message)
        if self.play == "answer":
            for move in moves[: self._left]:
                self._take(move)
                if self._at == self._goal:
                    break
            self.over = True
            return "You are at the goal." if self._at == self._goal else "This way does not lead to the goal."
        if len(moves) != 1:
            return _HOW["turns"]
        moved = self._take(moves[0])
        self._left -= 1
        if self._at == self._goal:
            self.over = True
            return "You are at the goal."
        if not self._left:
            self.over = True
            return "You have no moves left."
        return self._seen() if moved else f"There is a wall.\n{self._seen()}"

    def reward(self) -> float:
        """Return 1 at the goal, otherwise 0."""
        return float(self._at == self._goal)

    def _take(self, move: str) -> bool:
        before = self._at
        self._at = neighbour(self._lines, before, move)
        return self._at != before

    def _seen(self) -> str:
        row, column = self._at
        if self.show == "cell":
            return f"row {row // 2 + 1}, column {column // 2 + 1}"
        line = self._lines[row]
        return "\n".join([*self._lines[:row], line[:column] + _PLAYER + line[column + 1 :], *self._lines[row + 1 :]])


def questions(
    count: int,
    seed: int = 0,
    held_out: bool = False,
    size: int = 3,
    moves: int = 6,
    play: str = "turns",
    same: bool = False,
) -> Iterator[dict[str, str]]:
    """Yield rows `prompt`, `answer` (the moves of the shortest way) and `maze` (the drawing).

    Args:
        count: number of rows.
        seed: seed of the drawn mazes.
        held_out: whether the mazes are those that training never uses: a tenth, by a hash of the drawing.
        size: number of cells of a side.
        moves: number of moves of the shortest way from S to G.
        play: `turns` or `answer`, as the environment plays.
        same: whether every row is the maze of the textbooks, whatever the seed.

    Raises:
        ValueError: no maze of this size has such a way, or `play` has another value.
    """
    if play not in _HOW:
        raise ValueError(f"maze: play is {play!r}; expected turns or answer")
    generator = random.Random(f"maze {seed} {held_out}")
    for _ in range(count):
        drawing = TEXTBOOK if same else _draw(generator, size, moves, held_out)
        yield {"prompt": question(drawing, play), "answer": " ".join(shortest_way(drawing) or ()), "maze": drawing}


def question(drawing: str, play: str) -> str:
    """Return the question about a maze."""
    return f"Find the way from S to G. # is a wall. {_HOW[play]}\n{drawing}"


def moves_in(text: str) -> list[str]:
    """Return the moves in a text: between the last tags `<answer>`, or in the last line that has moves.

    >>> moves_in("<answer>right, Down</answer>")
    ['right', 'down']
    >>> moves_in("RRD")
    ['right', 'right', 'down']
    """
    _, tag, tagged = text.rpartition("<answer>")
    lines = [tagged.partition("</answer>")[0]] if tag else list(reversed(text.splitlines()))
    for line in lines:
        if written := _MOVE.findall(line):
            return [move for each in written for move in _spelt(each)]
    return []


def shortest_way(drawing: str) -> list[str] | None:
    """Return the moves of a shortest way from S to G, by breadth-first search; None if there is no way.

    Raises:
        ValueError: the drawing is no maze.
    """
    lines = drawing.splitlines()
    start, goal = place_of_mark(lines, _START), place_of_mark(lines, _GOAL)
    ways: dict[Cell, list[str]] = {start: []}
    waiting = deque([start])
    while waiting and goal not in ways:
        cell = waiting.popleft()
        for move in MOVES:
            near = neighbour(lines, cell, move)
            if near not in ways:
                ways[near] = [*ways[cell], move]
                waiting.append(near)
    return ways.get(goal)


def neighbour(lines: Sequence[str], cell: Cell, move: str) -> Cell:
    """Return the cell after a move; the same cell if there is a wall."""
    down, right = MOVES[move]
    wall = lines[cell[0] + down][cell[1] + right] == _WALL
    return cell if wall else (cell[0] + 2 * down, cell[1] + 2 * right)


def place_of_mark(lines: Sequence[str], mark: str) -> Cell:
    """Return the line and the column of S or G.

    Raises:
        ValueError: the drawing is no maze: not enough lines, an open border, or not exactly one S and one G in cells.
    """
    height, width = len(lines), len(lines[0]) if lines else 0
    odd = height % 2 == 1 and width % 2 == 1 and height >= 3
    border = odd and set(lines[0] + lines[-1] + "".join(line[:1] + line[-1:] for line in lines)) == {_WALL}
    places = [(row, line.index(mark)) for row, line in enumerate(lines) if line.count(mark) == 1]
    cells = [place for place in places if place[0] % 2 == 1 == place[1] % 2]
    whole = "".join(lines)
    if not border or {len(line) for line in lines} != {width} or whole.count(mark) != 1 or len(cells) != 1:
        raise ValueError(
            "a maze needs one S and one G in its cells, and '#' all around, as in this maze of 3 x 3 cells:\n"
            f"{TEXTBOOK}"
        )
    return cells[0]


def _spelt(written: str) -> list[str]:
    return [written.lower()] if written.lower() in MOVES else [_LETTERS[letter] for letter in written]


def _draw(generator: random.Random, size: int, moves: int, held_out: bool) -> str:
    for _ in range(_MOST_TRIES):
        lines = _passages(generator, size)
        cells = [(row, column) for row in range(1, 2 * size, 2) for column in range(1, 2 * size, 2)]
        for mark, (row, column) in zip(_START + _GOAL, generator.sample(cells, min(2, len(cells))), strict=False):
            lines[row][column] = mark
        drawing = "\n".join(map("".join, lines))
        if size > 1 and (zlib.crc32(drawing.encode()) % 10 == 0) == held_out and _length(drawing) == moves:
            return drawing
    raise ValueError(
        f"none of {_MOST_TRIES:,} mazes of {size} x {size} cells has a shortest way of {moves} moves; choose another "
        "size or number of moves"
    )


def _length(drawing: str) -> int:
    return len(shortest_way(drawing) or ())


def _passages(generator: random.Random, size: int) -> list[list[str]]:
    """Draw a maze in which exactly one way leads from each cell to each other: a spanning tree by a random walk."""
    lines = [[_WALL] * (2 * size + 1) for _ in range(2 * size + 1)]
    path = [(generator.randrange(size) * 2 + 1, generator.randrange(size) * 2 + 1)]
    lines[path[0][0]][path[0][1]] = _FREE
    while path:
        row, column = path[-1]
        near = [
            (down, right)
            for down, right in MOVES.values()
            if 0 < row + 2 * down < 2 * size
            and 0 < column + 2 * right < 2 * size
            and lines[row + 2 * down][column + 2 * right] == _WALL
        ]
        if not near:
            path.pop()
            continue
        down, right = generator.choice(near)
        lines[row + down][column + right] = lines[row + 2 * down][column + 2 * right] = _FREE
        path.append((row + 2 * down, column + 2 * right))
    return lines
