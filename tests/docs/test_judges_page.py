"""The commands of docs/judges.md and of the labels in docs/preferences.md, with the judge of the quickstart."""

from __future__ import annotations

import importlib.util
import json
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import yaml
from click.testing import Result
from docs_pages import ROOT, blocks
from fake_engines import FakeCluster, FakeGenerators, FakeLearner
from fastapi.testclient import TestClient
from judges.labelled_run import write_groups
from tiny_policy import PRINTABLE, make_tiny_policy
from typer.testing import CliRunner

from grpo.cli.app import app
from grpo.config import SftConfig, TrainConfig
from grpo.config.file import load
from rewards.judges.rubric import read_principles, read_rubric

QUICK, RUN = "configs/judge_quickstart.yaml", "runs/judge_quickstart"
GROUPS = {"2+3=?": ["<answer>5</answer>", "<answer>6</answer>"], "9-4=?": ["<answer>1</answer>", "4<answer>5</answer>"]}


def run(*words: str) -> Result:
    return CliRunner(env={"COLUMNS": "300", "TERM": "dumb"}).invoke(app, words)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the files of the quickstart, whose judge runs on a free port."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "configs").mkdir()
    spec = importlib.util.spec_from_file_location("judge_quickstart", ROOT / "configs" / "judge_quickstart.py")
    assert spec is not None and spec.loader is not None
    rule = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rule)
    server = ThreadingHTTPServer(("127.0.0.1", 0), rule.Judge)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    for file in (ROOT / "configs").glob("**/*.yaml"):
        copy = folder / file.relative_to(ROOT)
        copy.parent.mkdir(exist_ok=True)
        copy.write_text(file.read_text().replace(":8765", f":{server.server_address[1]}"))
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        yield folder
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_quickstart_is_checked_and_trains_by_the_judge(reader: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make_tiny_policy(reader / "runs" / "quickstart_sft" / "policy", PRINTABLE)

    class Learner(FakeLearner):
        def export(self, folder: str) -> None:
            pass

    tokens = load(TrainConfig, Path(QUICK)).max_sequence_tokens
    monkeypatch.setattr(
        "grpo.run.training.Cluster", lambda settings, plan: FakeCluster(Learner(ranks=2), FakeGenerators(tokens))
    )
    few = "data.options.count=64"
    checked = run("check", QUICK, few)
    assert checked.exit_code == 0, checked.output
    small = (few, "train.steps=1", "train.checkpoint_every=5", "evaluation.data.options.count=4", "report.trackers=[]")
    trained = run("train", QUICK, *small, "rollout.prompts_per_step=4", f"policy.path={policy}")
    assert trained.exit_code == 0, trained.output
    metrics = [json.loads(line) for line in Path(RUN, "metrics.jsonl").read_text().splitlines()]
    named = {name for line in metrics for name in line}
    assert {"reward/judge/prompt_tokens", "reward/judge/seconds", "verifier/judge/cache_hit_share"} <= named
    assert sum(line.get("verdict/judge/wrong", 0) for line in metrics) > 0
    assert not any(line.get("verdict/judge/error", 0) for line in metrics)
    stored = Path(RUN, "config.yaml").read_text()
    assert "cache: runs/judge_quickstart/judgements" in stored and list(Path(RUN, "judgements").rglob("*.json"))


def test_labels_by_people_and_judge_are_audited_and_criticised(reader: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write_groups(reader / "labelled", {}) and reader / "labelled")
    Path("configs").symlink_to(reader / "configs")
    write_groups(Path(RUN), GROUPS, verifier="judge")

    def as_people_do(server: uvicorn.Server, _: Any) -> None:
        client = TestClient(server.config.app, base_url="http://127.0.0.1:9")
        client.get("/?token=t")
        while item := client.get("/api/state").json()["item"]:
            best = next(at for at, text in enumerate(item["answers"], 1) if "5" in text)
            client.post("/api/label", json={"id": item["id"], "places": [[best], [3 - best]]})

    monkeypatch.setattr("grpo.labelling.command.new_token", lambda: "t")
    monkeypatch.setattr(uvicorn.Server, "run", as_people_do)
    people = run("label", RUN, "--labeller", "ann")
    assert people.exit_code == 0 and "preferences.jsonl: 2 rows" in people.output, people.output
    judged = run("label", RUN, "--judge", "configs/judge_quickstart/judge.yaml")
    assert judged.exit_code == 0, judged.output
    assert "judge:rule and ann: pairs alike: 2 of 2" in judged.output
    assert "the first place won 2 of 4 (50.00%" in judged.output
    labels = f"{RUN}/labels.jsonl"
    stored = run("audit", RUN, "--labels", labels)
    assert stored.exit_code == 0 and "judge says tie, people say" in stored.output, "the stored verdicts are all wrong"
    asked = run("audit", RUN, "--labels", labels, "--judge", "configs/judge_quickstart/judge.yaml")
    assert asked.exit_code == 0 and "4 of 4 (100.00%" in asked.output, asked.output
    critic = ("--critic", "configs/judge_quickstart/critic.yaml", "--out", "runs/critiques.jsonl", "--limit", "200")
    assert "2 rows; failed: 0" in run("critique", RUN, *critic).output
    sft = "run: {folder: runs/s}\npolicy: {path: p}\nsft: {steps: 1}\n" + page_line("data: {path: runs/critiques.jsonl")
    Path("sft.yaml").write_text(sft)
    assert load(SftConfig, Path("sft.yaml")).data.response == "revision"


def page_line(start: str) -> str:
    text = (ROOT / "docs" / "judges.md").read_text()
    return text[text.index(start) :].split("`")[0] + "\n"


def test_the_files_of_the_page_are_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    named = {text.split("\n")[0][2:]: text for text in blocks("judges.md", "yaml")}
    for name, text in named.items():
        Path(name).write_text(text)
    assert read_rubric("politeness.yaml").correct == ("polite",) and len(read_principles("principles.yaml")) == 2
    (tmp_path / "my").mkdir()
    Path("my/politeness.yaml").write_text(named["politeness.yaml"])
    config = yaml.safe_load((ROOT / "configs" / "quickstart.yaml").read_text())
    Path("run.yaml").write_text(yaml.safe_dump(config | yaml.safe_load(named["judged.yaml"])))
    assert load(TrainConfig, Path("run.yaml")).verifiers[0].options["key"] == {"env": "JUDGE_KEY"}
