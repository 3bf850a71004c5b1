"""`grpo eval` on a real engine: killed, and gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from grpo.evaluation.store import LINES, TABLE, read_table

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ROOT = Path(__file__).resolve().parents[2]
PROBLEMS, K = 6, 8


def start(policy: str, folder: Path, task: Path, output: Path) -> subprocess.Popen[bytes]:
    """Start `grpo eval` in a process group of its own, over the first problems of the task's file."""
    settings = ["--limit", str(PROBLEMS), "--k", str(K), "--temperature", "1", "--max-tokens", "100"]
    with output.open("wb") as file:
        return subprocess.Popen(
            [
                sys.executable, "-c", "from grpo.cli.app import app; app()", "eval", policy, "--task", str(task),
                "--out", str(folder), *settings, "cluster.device=cpu", "generator.max_sequences=4", "workers=1",
            ],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"},
            stdout=file,
            stderr=subprocess.STDOUT,
            process_group=0,
        )  # fmt: skip


@pytest.mark.long
def test_killed_by_force_it_goes_on_where_it_was(tied_policy: str, tmp_path: Path) -> None:
    data, task, folder, output = (tmp_path / name for name in ("sums.jsonl", "sums.yaml", "out", "output"))
    data.write_text("\n".join(json.dumps({"prompt": f"{n}+{n}=?", "answer": str(2 * n)}) for n in range(3 * PROBLEMS)))
    task.write_text(f"name: sums\nsource: ours\ndata: {{path: {data}}}\nverifier: {{use: math}}\n")
    lines = folder / "sums" / LINES

    killed = start(tied_policy, folder, task, output)
    deadline = time.monotonic() + 400
    while not (lines.exists() and lines.read_bytes().count(b"\n") >= K):
        assert killed.poll() is None and time.monotonic() < deadline, output.read_text()[-4000:]
        time.sleep(0.02)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait(60)
    stored = [json.loads(line) for line in lines.read_bytes().split(b"\n")[:-1]]
    assert K <= len(stored) < PROBLEMS * K, "it was to be killed in the midst"
    assert not (folder / "results.json").exists()

    # A few are taken away, to see that what is sampled again is what was sampled before.
    taken, kept = stored[::3], [one for one in stored if one not in stored[::3]]
    lines.write_text("".join(json.dumps(one) + "\n" for one in kept) + '{"problem": "sums:')
    resumed = start(tied_policy, folder, task, output)
    resumed.wait(600)
    told = output.read_text()
    assert resumed.returncode == 0, told[-4000:]
    assert f"{len(kept)} of {PROBLEMS * K} completions are stored already" in told and "maj@8" in told
    records = {row.record.key: row.record for row in read_table(folder / "sums" / TABLE)}
    assert set(records) == {(f"sums:{n}", 0, sample) for n in range(PROBLEMS) for sample in range(K)}
    assert len({record.completion for record in records.values()}) > PROBLEMS, "samples differ"
    for one in kept + taken:
        again = records[one["problem"], one["seed"], one["sample"]]
        assert (again.completion, again.completion_tokens) == (one["completion"], one["completion_tokens"])
    assert len(lines.read_bytes().splitlines()) == PROBLEMS * K, "nothing was sampled twice"
    card = json.loads((folder / "sums" / "card.json").read_text())
    assert card["identity"]["model"].startswith("sha256:") and card["identity"]["dtype"] == "float32"
    assert card["first_prompt"] == "0+0=?" and any(name.startswith("vllm") for name in card["versions"])
