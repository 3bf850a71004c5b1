r"""The math verifier, and Math-Verify 0.9 where it is installed: accuracy, false positives, speed, hostile answers.

    python tests/bench/verifiers.py [--repeats 5] [--data FOLDER] [--only accuracy]

Accuracy is of every labelled set of tests/rewards/corpus: the first, the third of it that was held back, the second and
the third. Two mixes are timed, each verdict on its own with nothing cached from before:

- *hard*: the first set, every pair in a one-sentence completion;
- *realistic*: worked solutions of GSM8K's test split, whose `####` line is made `The answer is $\boxed{N}$.` (a third
  with another number), and 500 more whose final answer is a MATH-500 answer, every third time that of another
  problem. The prose is people's, the final answers are as models write them.

Hostile answers (tests/support/hostile_answers.py) run in a pool under a deadline; what does not come back is killed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from hostile_answers import hostile_completions, hostile_pairs  # noqa: E402
from labelled_pairs import Pair, read_pairs, read_second, read_third  # noqa: E402

from rewards.answers.thinking import without_thinking  # noqa: E402
from rewards.build import VerifierSpec  # noqa: E402
from rewards.mathematics.reading.parse_answer import parse_gold  # noqa: E402
from rewards.pool import VerifierPool  # noqa: E402
from rewards.verdict import Status, Verdict  # noqa: E402
from rewards.verifiers.math import Math  # noqa: E402

Grader = Callable[[str, str], bool]


def ours() -> Grader:
    """A fresh math verifier, with nothing remembered."""
    parse_gold.cache_clear()
    verify = Math()

    def grade(gold: str, completion: str) -> bool:
        return verify(completion, gold, {}).status is Status.CORRECT

    return grade


def math_verify() -> Grader:
    """Math-Verify with its defaults, as its readme uses it, `<answer>` tags and thinking read for it.

    Gold and answer are parsed anew at each call.
    """
    from math_verify import parse, verify

    from rewards.verifiers.math_verify import as_it_reads

    def grade(gold: str, completion: str) -> bool:
        try:
            text = without_thinking(completion)
            return text is not None and bool(verify(parse(f"\\boxed{{{gold}}}"), parse(as_it_reads(text))))
        except Exception:  # whatever it raises is a refusal here: it must not end the benchmark
            return False

    return grade


def realistic(folder: Path) -> list[tuple[str, str]]:
    """Gold and completion; see the module's docstring."""
    lines = (folder / "gsm8k_test.jsonl").open(encoding="utf-8")
    solutions = [json.loads(line)["answer"].partition("####")[::2] for line in lines]
    answers = [json.loads(line)["answer"] for line in (folder / "math500.jsonl").open(encoding="utf-8")]
    pairs = []
    for at, (prose, number) in enumerate(solutions):
        gold = number.strip()
        said = gold if at % 3 else str(int(gold.replace(",", "")) + 1 + at % 7)
        pairs.append((gold, f"{prose}\nThe answer is $\\boxed{{{said}}}$."))
    for at, gold in enumerate(answers):
        said = gold if at % 3 else answers[(at + 1) % len(answers)]
        pairs.append((gold, f"{solutions[at][0]}\nTherefore, the final answer is: $\\boxed{{{said}}}$."))
    return pairs


def labelled_sets() -> dict[str, list[Pair]]:
    """The labelled sets by name; `labelled_pairs` and docs/benchmarks.md describe them."""
    first = list(read_pairs())
    return {
        "first": first,
        "first, held back": [pair for pair in first if pair.held_back],
        "second": list(read_second()),
        "third": list(read_third()),
    }


def accuracy(name: str, part: str, pairs: list[Pair], grade: Grader) -> None:
    """Print the accuracy on a set, and the errors of both kinds."""
    outcomes = Counter((grade(pair.gold, pair.completion), pair.equal) for pair in pairs)
    wrong_pairs = outcomes[True, False] + outcomes[False, False]
    right = outcomes[True, True] + outcomes[False, False]
    print(f"  {name:12s} {part:16s} accuracy {right / len(pairs):6.2%} of {len(pairs)}, "
          f"false positives {outcomes[True, False]} of {wrong_pairs} ({outcomes[True, False] / wrong_pairs:.2%}), "
          f"false negatives {outcomes[False, True]} of {len(pairs) - wrong_pairs}")  # fmt: skip


def speed(name: str, pairs: list[tuple[str, str]], make: Callable[[], Grader], repeats: int) -> None:
    """Print the rate (the median of the repeats, with the range) and the latency of one verdict."""
    rates, seconds = [], []
    for _ in range(repeats):
        grade = make()
        grade("1", "\\boxed{2}")
        begun = time.process_time()
        for gold, completion in pairs:
            started = time.perf_counter()
            grade(gold, completion)
            seconds.append(time.perf_counter() - started)
        rates.append(len(pairs) / (time.process_time() - begun))
    seconds.sort()
    p50, p99 = seconds[len(seconds) // 2], seconds[int(0.99 * len(seconds))]
    print(f"  {name:12s} {statistics.median(rates):9.0f} verdicts/s of processor time ({min(rates):.0f} to "
          f"{max(rates):.0f}, {repeats} runs), median {p50 * 1e3:.4f} ms, p99 {p99 * 1e3:.3f} ms, "
          f"worst {seconds[-1] * 1e3:.1f} ms")  # fmt: skip


def hostile(name: str, use: str, deadline: float) -> None:
    """Print how the grader fares on hostile answers, each in a worker that is killed at the deadline."""
    cases = [(gold, f"So $\\boxed{{{answer}}}$.") for gold, answer in hostile_pairs().values()]
    cases += list(hostile_completions().values())
    with VerifierPool([VerifierSpec("it", use)], workers=1, spares=0, deadline_s=deadline) as pool:
        pool.submit("it", "\\boxed{1}", "1", {}).result(60)
        seconds: list[float] = []
        verdicts: list[Verdict] = []
        for gold, completion in cases:
            begun = time.perf_counter()
            verdicts.append(pool.submit("it", completion, gold, {}).result(60))
            seconds.append(time.perf_counter() - begun)
    statuses = Counter(verdict.status.value for verdict in verdicts)
    killed = sum("undecided after" in verdict.reason for verdict in verdicts)
    slow = sum(each > 1 for each in seconds)
    print(f"  {name:12s} {len(cases)} hostile: accepted {statuses['correct']}, killed at {deadline:g} s {killed}, "
          f"over 1 s {slow}, worst {max(seconds):.3f} s, {dict(statuses)}")  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--deadline", type=float, default=3.0, help="seconds, for the hostile answers")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("VERIGRPO_DATA", ROOT.parent / "shared/data")))
    parser.add_argument("--only", choices=("accuracy",), help="print the accuracy and stop")
    options = parser.parse_args()
    beside = importlib.util.find_spec("math_verify") is not None
    if not beside:
        print("Math-Verify is not installed (extra `audit`): ours alone")
    graders: dict[str, Callable[[], Grader]] = {"ours": ours, **({"Math-Verify": math_verify} if beside else {})}
    print("accuracy")
    for part, chosen in labelled_sets().items():
        for name, make in graders.items():
            accuracy(name, part, chosen, make())
    if options.only:
        return
    hard = [(pair.gold, pair.completion) for pair in read_pairs()]
    print(f"speed, hard mix of {len(hard)}")
    for name, make in graders.items():
        speed(name, hard, make, options.repeats if name == "ours" else 1)
    if options.data.is_dir():
        mix = realistic(options.data)
        print(f"speed, realistic mix of {len(mix)}")
        for name, make in graders.items():
            speed(name, mix, make, options.repeats if name == "ours" else 1)
    else:
        print(f"no data at {options.data}: the realistic mix is left out")
    print("hostile answers")
    for name in graders:
        hostile(name, "math" if name == "ours" else "math_verify", options.deadline)


if __name__ == "__main__":
    main()
