"""How fast `grpo view` is with many stored completions: first paint and filters, in a headless Chromium.

    python tests/bench/view.py [--completions 100000] [--characters 600] [--folder runs/view_bench]

Makes a run of that size (kept in the folder, and used again), starts the server as the command line does, waits until
it has read everything, and opens the page. Printed: seconds from the start of the command to the first answer and to
the whole index; milliseconds from the navigation to the first paint, to the curves and to the first groups; and from
the last key of a filter to its groups on the screen, with the page's own wait for further keys, and of the server's
answer alone. Every filter is a new one, so that nothing answers from memory. On a machine that others use as well, the
processor time of an answer tells more than the clock; both are printed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

import psutil  # noqa: E402
from chromium import Browser  # noqa: E402
from fake_run import make_advantages, make_metrics, silent_progress  # noqa: E402

from grpo.report.recorder import RunRecorder  # noqa: E402
from grpo.types import Completion, Group, Prompt, Rollout, VersionSpan  # noqa: E402
from rewards import verdict  # noqa: E402

GROUPS, SIZE = 32, 8
TEXT = "so we have that the sum of 12 and 7 is 19 then multiply by x therefore because let us check again"
WORDS = TEXT.split()
# What a person may type or tick; the numbers make each one new.
FILTERS = (
    {"text": "therefore check {n}"},
    {"text": "{n}"},
    {"text": "zebra {n}"},
    {"status": "timeout"},
    {"status": "wrong", "tokens_low": "1{n}"},
    {"reward_low": "0.{n}", "reward_high": "1"},
    {"step_low": "{n}", "text": "because"},
    {"status": "correct", "order": "spread", "tokens_high": "14{n}"},
)


def make_run(folder: Path, completions: int, characters: int) -> None:
    """Write a run with about as many completions, in steps of 256."""
    source, steps = random.Random(0), -(-completions // (GROUPS * SIZE))
    (folder / "config.yaml").parent.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text("report: {mismatch_alarm: 0.01}\n")
    logprobs = tuple(-source.expovariate(3) for _ in range(characters // 4 + 200))
    with RunRecorder(folder, progress=silent_progress(), total_steps=steps) as report:
        report.step(0, {"eval/accuracy": 0.3})
        for step in range(1, steps + 1):
            groups = [make_group(source, step, index, characters, logprobs) for index in range(GROUPS)]
            metrics = make_metrics(source, step, 0.3 + 0.6 * step / steps)
            report.step(step, metrics, groups, make_advantages(groups))


def make_group(source: random.Random, step: int, index: int, characters: int, logprobs: tuple[float, ...]) -> Group:
    """A group of texts of about the length asked for, some of them judged late."""
    rollouts = []
    for _ in range(SIZE):
        text = " ".join(source.choices(WORDS, k=characters // 4)) + f" {source.randint(0, 10**6)}"
        length = len(text) // 4
        chance = source.random()
        said = verdict.timeout("late") if chance > 0.995 else verdict.correct() if chance > 0.5 else verdict.wrong("no")
        span = (VersionSpan(0, length, step),)
        completion = Completion(tuple(range(length)), logprobs[:length], text, "stop", span)
        rollouts.append(Rollout(completion, {"answer": said}, said.score))
    prompt = Prompt(f"p{step * GROUPS + index}", f"Question {source.randint(0, 10**6)}: what is it?", (1,), "19", {})
    return Group(prompt, tuple(rollouts))


def ask(url: str) -> bytes:
    """What a GET answers."""
    with urllib.request.urlopen(url, timeout=60) as answer:
        return bytes(answer.read())


def seconds_until(happened, begun: float) -> float:  # type: ignore[no-untyped-def]
    """Seconds from `begun` until a call is true; a refused connection is not yet."""
    while True:
        try:
            if happened():
                return time.perf_counter() - begun
        except OSError:
            pass
        time.sleep(0.02)


def measure_server(url: str, number: int) -> list[float]:
    """Milliseconds of the server's answer to each filter."""
    spent = []
    for one in FILTERS:
        query = urllib.parse.urlencode({name: value.replace("{n}", str(number)) for name, value in one.items()})
        begun = time.perf_counter()
        ask(f"{url}api/groups?{query}")
        spent.append(1000 * (time.perf_counter() - begun))
    return spent


def measure_page(browser: Browser, number: int) -> list[float]:
    """Milliseconds from the change of the form to the groups drawn, for each filter."""
    spent = []
    for one in FILTERS:
        values = json.dumps({name: value.replace("{n}", str(number)) for name, value in one.items()})
        spent.append(
            browser.ask(f"""new Promise((done) => {{
            const form = document.getElementById("filters");
            for (const input of form.elements) {{
              if (input.type === "checkbox") input.checked = false;
              else if (input.tagName === "INPUT") input.value = "";
            }}
            for (const [name, value] of Object.entries({values})) {{
              if (name === "status") [...form.elements.status].find((one) => one.value === value).checked = true;
              else form.elements[name].value = value;
            }}
            performance.clearMeasures("filter");
            const begun = performance.now();
            form.elements.text.dispatchEvent(new Event("input", {{ bubbles: true }}));
            const look = () => performance.getEntriesByName("filter").length
              ? requestAnimationFrame(() => done(performance.now() - begun)) : setTimeout(look, 2);
            look();
        }})""")
        )
    return spent


def told(spent: list[float]) -> str:
    """Median and worst."""
    return f"median {statistics.median(spent):.0f} ms, worst {max(spent):.0f} ms of {len(spent)}"


def main() -> None:
    """Make the run, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--completions", type=int, default=100_000)
    parser.add_argument("--characters", type=int, default=600, help="of a completion, about")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "view_bench")
    parser.add_argument("--port", type=int, default=8697)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    folder = options.folder / f"{options.completions}x{options.characters}"
    if not (folder / "metrics.jsonl").exists():
        make_run(folder, options.completions, options.characters)
    url, begun = f"http://127.0.0.1:{options.port}/", time.perf_counter()
    command = [
        sys.executable,
        "-c",
        "from grpo.cli.app import app; app()",
        "view",
        str(folder),
        "--port",
        str(options.port),
    ]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        up = seconds_until(lambda: ask(url), begun)
        whole = seconds_until(
            lambda: (
                json.loads(ask(f"{url}api/groups?limit=1"))["of_completions"] >= options.completions
                and not json.loads(ask(f"{url}api/state"))["unread"]
            ),
            begun,
        )
        groups = json.loads(ask(f"{url}api/groups?limit=1"))
        print(
            f"{groups['of_completions']:,} completions in {groups['of_groups']:,} groups; load {os.getloadavg()[0]:.2f}"
        )
        memory = int((Path("/proc") / str(server.pid) / "status").read_text().split("VmRSS:")[1].split()[0]) / 1024
        print(f"command to first answer {up:.1f} s, to the whole index {whole:.1f} s; {memory:.0f} MiB resident")
        process = psutil.Process(server.pid)
        worked = sum(process.cpu_times()[:2])
        answers = [one for number in range(11, 11 + options.repeats) for one in measure_server(url, number)]
        worked = 1000 * (sum(process.cpu_times()[:2]) - worked) / len(answers)
        print(f"filter, server's answer: {told(answers)}; {worked:.0f} ms of processor time each")
        paints, curves, firsts, filters = [], [], [], []
        for repeat in range(options.repeats):
            with tempfile.TemporaryDirectory() as profile, Browser(Path(profile) / "profile") as browser:
                browser.open(f"{url}#groups")
                firsts.append(browser.wait("performance.getEntriesByName('groups')[0]?.startTime"))
                browser.open("about:blank")
                browser.open(url)
                curves.append(browser.wait("performance.getEntriesByName('curves')[0]?.startTime"))
                paints.append(browser.wait("performance.getEntriesByName('first-contentful-paint')[0]?.startTime"))
                browser.ask("location.hash = 'groups'")
                browser.wait("performance.getEntriesByName('groups').length")
                filters += measure_page(browser, 51 + repeat)
        print(f"first paint: {told(paints)}")
        print(f"curves drawn: {told(curves)}")
        print(f"first groups drawn, a page opened at them by a browser just started: {told(firsts)}")
        print(f"filter, from the key to the groups on the screen: {told(filters)}")
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(20)


if __name__ == "__main__":
    main()
