"""A soak: a run whose processes are killed at random must still learn, lose nothing and leave nothing.

    python tests/bench/soak.py --minutes 30 --every 20 --seed 1

It needs the quickstart's cold start (`grpo sft configs/quickstart_sft.yaml`). Every `--every` seconds one of the
targets is drawn by chance and a process of its kind gets SIGKILL: a learner rank, a generator, a verifier worker, or
the driver, which is started again with `resume=auto` when all that it had started is gone. At the end the ledger is
compared with what the data gives out, and the exit status says whether all held.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from grpo.config import TrainConfig
from grpo.config.file import load
from grpo.data.drawing.cursor import Cursor
from grpo.data.prompts import load_prompts
from grpo.policy.stored import load_tokenizer
from grpo.report import run_files
from grpo.report.ledger import ledger_problems, read_ledger
from grpo.report.metrics_log import read_history

ROOT = Path(__file__).resolve().parents[2]
# Words of the titles that Ray gives its workers, and of the pool's command line.
TITLES = {
    "learner": ("ray::learner",),
    "generator": ("ray::generator", "ray::replica"),
    "verifier": ("rewards.pool.nursery",),
}
TARGETS = (*TITLES, "driver")
# Ray's processes notice the death of the driver within seconds; on a busy machine it takes them longer.
GONE_S = 60.0


def start(config: str, overrides: Sequence[str], log: Path, job: str = "train") -> subprocess.Popen[bytes]:
    """`grpo train` or `grpo sft`, in a process group of its own."""
    command = [sys.executable, "-c", "from grpo.cli.app import app; app()", job, config, *overrides]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    with log.open("ab") as output:
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, process_group=0
        )


def family(driver: int) -> list[psutil.Process]:
    """All that a driver has started."""
    try:
        return psutil.Process(driver).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def of_kind(kind: str, driver: int) -> list[psutil.Process]:
    """The driver's living processes of a kind."""
    if kind == "driver":
        return [psutil.Process(driver)]
    found = []
    for process in family(driver):
        try:
            title = " ".join(process.cmdline()).strip().lower()
        except psutil.Error:
            continue
        if any(word in title for word in TITLES[kind]):
            found.append(process)
    return found


def left_of(processes: Sequence[psutil.Process]) -> list[str]:
    """Those that live on although their driver is dead.

    Ray's two agents of a node are passed over: they look for Ray's servers for a minute before they end too.
    """
    waited = [one for one in processes if "Agent" not in _name(one)]
    _, alive = psutil.wait_procs(waited, timeout=GONE_S)
    return [f"{one.pid} {_name(one)}" for one in alive if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""


def problems_of(run: Path, open_at_most: int = 0) -> list[str]:
    """What the ledger of a run says against it, compared with what its data gives out."""
    settings = load(TrainConfig, run / "config.yaml")
    tokenizer = load_tokenizer(settings.policy.path or "")
    prompts = load_prompts(settings.data, tokenizer, max_tokens=settings.rollout.max_prompt_tokens).prompts
    trained = read_ledger(run)
    drawn = Cursor([prompt.id for prompt in prompts], settings.run.seed).next(2 * len(trained) + open_at_most)
    return ledger_problems(trained, drawn, open_at_most)


def main() -> int:
    """Run, kill, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--every", type=float, default=20.0, help="seconds between kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--config", default="configs/quickstart.yaml")
    parser.add_argument("--folder", type=Path, default=Path("runs/soak"))
    parser.add_argument("--goal", type=float, default=0.90, help="held-out accuracy that the run must reach")
    parser.add_argument("--open-groups", type=int, default=0, help="groups on their way at the end: lag x prompts")
    parser.add_argument("overrides", nargs="*", help="dotted overrides of the config")
    options = parser.parse_args()
    chance, kills = random.Random(options.seed), collections.Counter[str]()
    overrides = [
        f"run.folder={options.folder}",
        "resume=auto",
        "train.checkpoint_every=2",
        "cluster.max_restarts=100000",
        "cluster.max_fruitless_restarts=1000",
        "generator.max_restarts=1000",
        *options.overrides,
    ]
    options.folder.parent.mkdir(parents=True, exist_ok=True)
    log = options.folder.with_suffix(".log")
    begun, left, starts = time.monotonic(), list[str](), 1
    driver = start(options.config, overrides, log)
    next_kill = begun + options.every
    while driver.poll() is None and time.monotonic() - begun < 60 * options.minutes:
        time.sleep(0.2)
        if time.monotonic() < next_kill:
            continue
        next_kill += options.every
        kind = chance.choice([one for one in options.targets if of_kind(one, driver.pid)] or ["driver"])
        victims, relatives = of_kind(kind, driver.pid), family(driver.pid)
        if not victims:
            continue
        victim = chance.choice(victims)
        victim.kill()
        kills[kind] += 1
        step = read_history(options.folder).last_step() if options.folder.exists() else None
        print(f"{time.monotonic() - begun:7.1f} s  step {step}  SIGKILL {kind} ({victim.pid})", flush=True)
        if kind == "driver":
            driver.wait()
            left += left_of(relatives)
            driver, starts = start(options.config, overrides, log), starts + 1
    relatives = family(driver.pid)
    if driver.poll() is None:
        driver.send_signal(signal.SIGTERM)
        driver.wait(600)
    left += left_of(relatives)
    accuracy = read_history(options.folder).curve("eval/accuracy").finite()
    problems = problems_of(options.folder, options.open_groups)
    faults = (
        (options.folder / run_files.FAULTS).read_text().splitlines()
        if (options.folder / run_files.FAULTS).exists()
        else []
    )
    best = max(accuracy.values, default=0.0)
    print(f"kills: {dict(kills)}; starts of the driver: {starts}; its last exit status: {driver.returncode}")
    print(f"restarts by itself: {sum('going on from' in line for line in faults)}; last step {accuracy.steps[-1:]}")
    print(f"held-out accuracy: {dict(zip(accuracy.steps, accuracy.values, strict=True))}; best {best:.3f}")
    print(f"ledger: {problems or 'every group drawn was trained on once'}; processes left: {left or 'none'}")
    return int(bool(problems or left or best < options.goal))


if __name__ == "__main__":
    sys.exit(main())
