"""Conversations with real engines: what the latency of tools costs the engines, and the driver's time for a turn.

    python tests/bench/conversing/engines.py [--conversations 256] [--turns 4] [--repeats 3]

A tiny policy, made on the spot with random weights, plays groups of eight conversations in two generators on the CPU;
an environment answers each turn. In one kind of round it answers at once. In the other kind it sleeps first: log-normal
times with the median `--tool-s` and the 95th percentile `--tool-p95-s`, which depend only on the conversation and the
turn. The kinds take turns. Both must sample the same tokens before anything is printed.

Printed are medians over the rounds, with the smallest and the largest. The engines are busy while they sample: share of
the time from the first request to the last answer, over both generators. The driver's time is processor time of its
thread, so that other processes do not count; for comparison, the same policy also samples groups of single turns.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from grpo import config
from grpo.cluster.claim import Plan
from grpo.cluster.cluster import Cluster
from grpo.cluster.generator_group import GeneratorGroup
from grpo.config.conversation import ConversationConfig, EnvironmentConfig
from grpo.generator.setup import GeneratorSetup
from grpo.policy.new import make_policy
from grpo.run.streams import Streams
from grpo.types import Completion, Phase, Prompt, Request, SamplingParams

GROUP = 8
REPLICAS = 2
PROMPT_TOKENS, COMPLETION_TOKENS, TURN_TOKENS = 96, 1500, 300
ALPHABET = "abcdefghijklmnopqrstuvwxyz ."
# The environment of the rounds. `seconds` is the median of its latency; 0 answers at once.
WORLD = '''
import math
import random
import statistics
import time


class Slow:
    """Answers each turn after a time that the row, its number of conversation and the turn decide."""

    def __init__(self, seconds: float, p95: float) -> None:
        self.seconds, self.p95, self.turn = seconds, p95, 0

    def reset(self, row):
        self.row = row
        return None

    def step(self, message: str) -> str:
        self.turn += 1
        if self.seconds:
            lot = random.Random(f"{self.row['problem']} {self.turn} {message}").random()
            spread = math.log(self.p95 / self.seconds) / statistics.NormalDist().inv_cdf(0.95)
            time.sleep(self.seconds * math.exp(spread * statistics.NormalDist().inv_cdf(min(0.99, max(0.01, lot)))))
        return f"you said {len(message)} letters. go on."
'''


@dataclass(frozen=True)
class Settings:
    """The part of a configuration that says what answers the policy."""

    environment: tuple[EnvironmentConfig, ...] = ()
    conversation: ConversationConfig = field(default_factory=ConversationConfig)
    tools: tuple[str, ...] = ()


@dataclass(frozen=True)
class Round:
    """The figures of a round: seconds of the round, busy share of the engines, driver's seconds, and its results."""

    seconds: float
    busy_share: float
    driver_s: float
    turns: int
    groups: dict[int, tuple[Completion, ...]]

    @property
    def tokens(self) -> dict[int, list[tuple[int, ...]]]:
        """Tokens of each group."""
        return {index: [each.token_ids for each in completions] for index, completions in self.groups.items()}


def prompts(count: int) -> Iterator[Prompt]:
    """Yield different prompts."""
    for number in range(count):
        text = "".join(ALPHABET[(number // 26**place) % 26] for place in range(3))
        yield Prompt(
            f"row {number}", text, (5, 6, 7), None, {"problem": text}, messages=({"role": "user", "content": text},)
        )


def play(generators: GeneratorGroup, streams: Streams, groups: int, under_way: int) -> Round:
    """Play `groups` groups, of which `under_way` are under way as long as there are so many."""
    sampling = SamplingParams(GROUP, COMPLETION_TOKENS if streams.talks else TURN_TOKENS)
    stream = streams.stream(generators, sampling)
    waiting = [(Request(at, each.token_ids, 1000 * at), each) for at, each in enumerate(prompts(groups))]
    finished: dict[int, tuple[Completion, ...]] = {}
    generators.take_busy()
    begun, clock, spent = time.perf_counter(), time.time(), time.thread_time()
    while len(finished) < groups:
        free = under_way - stream.unfinished
        if free and waiting:
            stream.submit([request for request, _ in waiting[:free]], [prompt for _, prompt in waiting[:free]])
            del waiting[:free]
        finished |= dict(stream.finished())
    driver_s, seconds = time.thread_time() - spent, time.perf_counter() - begun
    busy = generators.take_busy()
    busy_s = sum(max(0.0, end - max(clock, begin)) for of in busy.values() for begin, end in of.get(Phase.GENERATE, ()))
    turns = sum(turns_of(each) for completions in finished.values() for each in completions)
    return Round(seconds, busy_s / seconds / REPLICAS, driver_s, turns, finished)


def turns_of(completion: Completion) -> int:
    """Return the number of the policy's turns in a completion."""
    return 1 if completion.dialogue is None else sum(each.role == "assistant" for each in completion.dialogue.messages)


def equal_share(one: Round, other: Round) -> float:
    """Return the share of conversations with the same tokens."""
    pairs = [pair for index in one.tokens for pair in zip(one.tokens[index], other.tokens[index], strict=True)]
    return sum(left == right for left, right in pairs) / len(pairs)


def shown(figures: list[float]) -> str:
    """Return median, smallest and largest value."""
    return f"{statistics.median(figures):.3g} ({min(figures):.3g} to {max(figures):.3g})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conversations", type=int, default=256, help="conversations under way at the same time")
    parser.add_argument("--rounds-of", type=int, default=2, help="conversations of a round, in multiples of the former")
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--tool-s", type=float, default=0.2)
    parser.add_argument("--tool-p95-s", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--single-turns-only", action="store_true", help="measure only the groups of single turns")
    arguments = parser.parse_args()
    under_way = arguments.conversations // GROUP
    groups = under_way * arguments.rounds_of
    shape = config.NewPolicyConfig(
        hidden_size=64, heads=2, key_value_heads=1, intermediate_size=96, max_position=2048, alphabet=ALPHABET, tags=(),
        chat=True,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        policy = str(folder / "policy")
        make_policy(shape, [], Path(policy), seed=1)
        (folder / "world.py").write_text(WORLD)
        limits = ConversationConfig(
            max_turns=arguments.turns, max_turn_tokens=TURN_TOKENS, max_observation_tokens=64, memory_mib=None
        )

        def settings(seconds: float) -> Settings:
            options = {"seconds": seconds, "p95": arguments.tool_p95_s}
            return Settings((EnvironmentConfig(use=f"{folder / 'world.py'}:Slow", options=options),), limits)

        setups = [
            GeneratorSetup(
                policy, "float32", config.GeneratorConfig(replicas=REPLICAS), PROMPT_TOKENS + COMPLETION_TOKENS, 1.0,
                "cpu", replica,
            )
            for replica in range(REPLICAS)
        ]  # fmt: skip
        kinds = {"at once": settings(0.0), "latency": settings(arguments.tool_s), "single": Settings()}
        if arguments.single_turns_only:
            kinds = {"single": Settings()}
        with Cluster(config.ClusterConfig(device="cpu"), Plan(0, 1, REPLICAS, 1, 1)) as cluster:
            generators = cluster.start_generators(setups, 600.0, 600.0)()
            rounds = measured(generators, kinds, policy, folder, groups, under_way, arguments.repeats)
    report(rounds)


def measured(
    generators: GeneratorGroup,
    kinds: dict[str, Settings],
    policy: str,
    folder: Path,
    groups: int,
    under_way: int,
    repeats: int,
) -> dict[str, list[Round]]:
    """Play the rounds of all kinds in turn, after one round of each that does not count."""
    rounds: dict[str, list[Round]] = {kind: [] for kind in kinds}
    for repeat in range(repeats + 1):
        for kind, settings in kinds.items():
            with Streams(settings, policy, PROMPT_TOKENS, folder / kind) as streams:
                streams.start()
                played = play(generators, streams, groups, under_way)
            if repeat:
                rounds[kind].append(played)
    return rounds


def report(rounds: dict[str, list[Round]]) -> None:
    """Print the figures, after a check that the kinds of rounds sampled the same."""
    if "latency" in rounds:
        pairs = list(zip(rounds["at once"], rounds["latency"], strict=True))
        share = min(equal_share(*pair) for pair in pairs)
        assert share > 0.99, f"only {share:.1%} of the conversations have the same tokens with and without latency"
        print(f"conversations with the same tokens, with and without latency: at least {share:.1%}")
        print("engines busy, of what they are without latency:", shown([b.busy_share / a.busy_share for a, b in pairs]))
        print("time of a round, of what it is without latency:", shown([b.seconds / a.seconds for a, b in pairs]))
    for kind, each in rounds.items():
        print(f"{kind}: {each[0].turns} turns")
        print("  seconds of a round:", shown([one.seconds for one in each]))
        print("  engines busy, share:", shown([one.busy_share for one in each]))
        print("  driver, ms per turn:", shown([1e3 * one.driver_s / one.turns for one in each]))
        print("  sampled tokens per turn:", shown([tokens_per_turn(one) for one in each]))


def tokens_per_turn(played: Round) -> float:
    """Return the mean number of sampled tokens in a turn."""
    return sum(each.sampled_tokens for group in played.groups.values() for each in group) / played.turns


if __name__ == "__main__":
    main()
