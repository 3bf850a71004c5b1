"""Measure the sandbox on one and two cores.

    python tests/bench/sandbox_speed.py [--seconds 20] [--repeat 3] [--json FILE]

Each repetition is a process of its own, pinned to its cores, and measures every workload beside a fresh `python -I` (of
a bare virtual environment) for each test, in alternating slices (`sandbox_workloads`). The spread over repetitions is
printed. Measure on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]


def measure_here(cores: int, seconds: float) -> None:
    """Pin this process and print the figures as one line of JSON."""
    available = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, available[:cores])
    sys.path.insert(0, str(PROJECT))
    import sandbox_workloads

    figures = sandbox_workloads.run(cores, seconds)
    print(json.dumps([asdict(item) | {"ratio": item.ratio} for item in figures]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="per workload, half of it in the sandbox")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write all figures here")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure_here(options.measure, options.seconds)
        return
    everything: dict[str, list[list[dict[str, float]]]] = {}
    for cores in sorted({1, min(2, len(os.sched_getaffinity(0)))}):
        runs = []
        for _ in range(options.repeat):
            command = [sys.executable, __file__, "--measure", str(cores), "--seconds", str(options.seconds)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            runs.append(json.loads(done.stdout))
        everything[f"{cores} core(s)"] = runs
        print(f"\n{cores} core(s), {options.repeat} runs: median (lowest to highest)")
        print(f"{'workload':24}{'programs/s':>22}{'p50 ms':>10}{'p99 ms':>10}{'fresh/s':>10}{'ratio':>20}{'target':>8}")
        for rows in zip(*runs, strict=True):
            speeds, ratios = [row["programs_per_second"] for row in rows], [row["ratio"] for row in rows]

            def median(key: str, rows: tuple[dict[str, float], ...] = rows) -> float:
                return statistics.median(row[key] for row in rows)

            print(
                f"{rows[0]['name']:24}{statistics.median(speeds):8.1f} ({min(speeds):.0f} to {max(speeds):.0f})".ljust(
                    46
                )
                + f"{median('median_ms'):10.2f}{median('p99_ms'):10.2f}{median('fresh_per_second'):10.2f}"
                + f"{statistics.median(ratios):9.1f} ({min(ratios):.1f} to {max(ratios):.1f})"
                + f"{rows[0]['target']:8g}"
            )
    if options.json:
        options.json.write_text(json.dumps(everything, indent=1))


if __name__ == "__main__":
    main()
