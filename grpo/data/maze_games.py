"""The cold start of the maze quickstart: games in the maze of the textbooks by a player who mostly guesses."""

from __future__ import annotations

import random
from collections.abc import Iterator

from grpo.environments.maze import MOVES, TEXTBOOK, Maze, neighbour, place_of_mark, question, shortest_way

Message = dict[str, str]


def demonstrations(
    count: int, seed: int = 0, careful_share: float = 0.3, play: str = "turns", show: str = "cell"
) -> Iterator[dict[str, list[Message]]]:
    """Yield rows `messages`, each a game until the goal or the last move.

    Args:
        count: number of games.
        seed: seed of the moves.
        careful_share: share of the moves that follow the shortest way. The others are drawn from all four moves.
        play: `turns` or `answer`, as the environment plays.
        show: what a turn's answer shows, as in the environment.
    """
    generator = random.Random(f"maze games {seed}")
    for _ in range(count):
        moves, answers = _game(generator, careful_share, show)
        messages = [{"role": "user", "content": question(TEXTBOOK, play)}]
        if play == "answer":
            messages.append({"role": "assistant", "content": " ".join(moves)})
        else:
            for move, answer in zip(moves, answers, strict=True):
                messages += [{"role": "assistant", "content": move}, {"role": "user", "content": answer}]
            messages.pop()
        yield {"messages": messages}


def _game(generator: random.Random, careful_share: float, show: str) -> tuple[list[str], list[str]]:
    """Return the moves of a game, and what the environment answers to each."""
    game, lines = Maze(show=show), TEXTBOOK.splitlines()
    game.reset({})
    cell, goal = place_of_mark(lines, "S"), place_of_mark(lines, "G")
    moves: list[str] = []
    answers: list[str] = []
    while not game.over:
        careful = generator.random() < careful_share and cell != goal
        moves.append(_next(lines, cell) if careful else generator.choice(list(MOVES)))
        answers.append(game.step(moves[-1]))
        cell = neighbour(lines, cell, moves[-1])
    return moves, answers


def _next(lines: list[str], cell: tuple[int, int]) -> str:
    """Return the first move of the shortest way from a cell to the goal."""
    drawn = [list(line.replace("S", ".")) for line in lines]
    drawn[cell[0]][cell[1]] = "S"
    way = shortest_way("\n".join(map("".join, drawn)))
    assert way, "each cell of the maze has a way to the goal, and the game ends there"
    return way[0]
