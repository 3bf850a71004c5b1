"""`grpo label`: items, keys of the page, hostile text, labels that last, rows that `grpo dpo` reads, and judges."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fake_run import HOSTILE
from fastapi.testclient import TestClient
from judges.judge_server import RUBRIC, choosing, rubric_file, served
from judges.labelled_run import write_groups
from typer.testing import CliRunner

from grpo.cli.app import app
from grpo.config import TrainingRowsConfig
from grpo.data.preferences import ranked_answers
from grpo.labelling.items import LabelItem, read_items, rows_of_file
from grpo.labelling.labels import Label, LabelFile, compare_labellers, preference_rows, read_labels
from grpo.labelling.page import Labelling, make_label_app
from rewards.checks.agreement import agreement

TEMPLATES = Path(__file__).parents[3] / "grpo" / "labelling" / "templates"
GROUPS = {f"question {n}": [f"good {n}", f"bad {n}", f"bad {n}"] for n in range(6)}
ASKS = {"Content-Type": "application/json"}


def items(count: int = 3, answers: int = 2) -> list[LabelItem]:
    return [LabelItem.of(f"p{n}", tuple(f"{n} answer {a}" for a in range(answers))) for n in range(count)]


def label(item: str, labeller: str, *places: str) -> Label:
    return Label(item, labeller, f"prompt of {item}", tuple(tuple(place.split("=")) for place in places))


def browser(labelling: Labelling) -> TestClient:
    client = TestClient(make_label_app(labelling, token="secret"), base_url="http://127.0.0.1:9")
    assert client.get("/?token=secret").status_code == 200
    return client


def test_items_are_different_answers_before_the_chat_template(tmp_path: Path) -> None:
    run = write_groups(tmp_path / "run", {**GROUPS, "same": ["same", "same"]})
    found = read_items(run, show=2, limit=None, seed=0)
    assert len(found.items) == 6 and found.equal == 1
    assert {item.prompt for item in found.items} == set(GROUPS)
    assert all(sorted(item.answers) == [f"bad {item.prompt[-1]}", f"good {item.prompt[-1]}"] for item in found.items)
    assert read_items(run, show=2, limit=2, seed=0).items == found.items[:2], "a limit keeps the order"
    assert [item.id for item in read_items(run, show=2, limit=None, seed=1).items] != [item.id for item in found.items]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"prompt": "p", "answers": ["one"]}, "has 1 answers; expected two or more"),
        ({"prompt": "p", "answers": ["same", "same"]}, "1 have only equal answers"),
        ({"prompt": "p"}, "needs a text `prompt` and a list `answers`"),
        ({"prompt": 1, "answers": ["a", "b"]}, "needs a text `prompt`"),
    ],
)
def test_a_ranking_of_one_and_equal_answers_are_no_items(tmp_path: Path, row: dict[str, Any], why: str) -> None:
    file = tmp_path / "samples.jsonl"
    file.write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=why):
        read_items(file, show=2, limit=None, seed=0)
    with pytest.raises(ValueError, match="no stored groups"):
        read_items(tmp_path, show=2, limit=None, seed=0)


def test_a_page_asks_until_all_is_labelled_and_goes_on_after_a_restart(tmp_path: Path) -> None:
    path, three = tmp_path / "labels.jsonl", items(3)
    file = LabelFile(path)
    client = browser(Labelling(three, file, "ann"))
    shown = client.get("/api/state").json()
    first = shown["item"]
    assert (shown["done"], shown["total"]) == (0, 3) and sorted(first["answers"]) == sorted(three[0].answers)
    after = client.post("/api/label", json={"id": first["id"], "places": [[2], [1]]}, headers=ASKS).json()
    assert after["done"] == 1 and after["item"]["id"] == three[1].id
    client.post("/api/label", json={"id": three[1].id, "places": [[1, 2]]}, headers=ASKS)
    assert client.post("/api/back", json={}, headers=ASKS).json()["item"]["id"] == three[1].id
    client.post("/api/label", json={"id": three[1].id, "places": []}, headers=ASKS)
    file.close()
    (written, skipped) = read_labels(path)
    assert written.places == ((first["answers"][1],), (first["answers"][0],)) and skipped.places == ()
    again = browser(Labelling(three, LabelFile(path), "ann"))
    assert again.get("/api/state").json()["item"]["id"] == three[2].id
    assert again.post("/api/back", json={}, headers=ASKS).json()["item"]["id"] == three[1].id, "a skip is taken back"
    assert browser(Labelling(three, LabelFile(path), "bob")).get("/api/state").json()["done"] == 0


@pytest.mark.parametrize("places", [[[1]], [[1], [1]], [[1], [3]], [[1, 2], []], "12", [["1"], ["2"]], [[True], [2]]])
def test_a_label_must_place_each_answer_once(tmp_path: Path, places: Any) -> None:
    file = LabelFile(tmp_path / "labels.jsonl")
    item = items(1)[0]
    refused = browser(Labelling([item], file, "ann")).post(
        "/api/label", json={"id": item.id, "places": places}, headers=ASKS
    )
    assert refused.status_code == 400 and "label" in refused.json()["detail"]
    assert not read_labels(file.path)


def test_strangers_cannot_read_or_write(tmp_path: Path) -> None:
    labelling = Labelling(items(1), LabelFile(tmp_path / "labels.jsonl"), "ann")
    client = browser(labelling)
    body = json.dumps({"id": labelling.state()["item"]["id"], "places": []})
    stranger = TestClient(make_label_app(labelling, token="secret"), base_url="http://127.0.0.1:9")
    assert stranger.get("/api/state").status_code == 401
    assert stranger.post("/api/label", content=body, headers=ASKS).status_code == 401
    assert "grpo label" in stranger.get("/").json()["detail"]
    assert client.post("/api/label", content=body, headers={"Content-Type": "text/plain"}).status_code == 415
    assert client.post("/api/label", content=body, headers={**ASKS, "Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert client.post("/api/label", content=body, headers={**ASKS, "Host": "evil.example"}).status_code == 421
    assert client.post("/api/label", content=b" " * (1 << 17), headers=ASKS).status_code == 413
    assert client.get("/static/../page.py").status_code == 404
    assert labelling.state()["done"] == 0
    policy = client.get("/").headers["content-security-policy"]
    assert "script-src 'self'" in policy and "unsafe" not in policy


def test_hostile_answers_stay_text(tmp_path: Path) -> None:
    hostile = HOSTILE.replace("\ud800", "?")
    item = LabelItem.of(hostile, (hostile, "plain"))
    shown = browser(Labelling([item], LabelFile(tmp_path / "labels.jsonl"), "ann")).get("/api/state").json()["item"]
    assert "\u202e" not in shown["prompt"] and "⟨U+202E⟩" in shown["prompt"]
    script = (TEMPLATES / "label.js").read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", script)
    assert script.count("textContent") == 7, "each insertion that comes later is looked at"
    page = (TEMPLATES / "label.html").read_text()
    assert not re.search(r"<script>|\son\w+=|style=", page), "the content policy allows no inline code"


KEYS = """
const sent = [];
let listener = null;
const element = () => ({
  children: [], classList: { toggle() {} }, replaceChildren(...c) { this.children = c; }, append() {},
});
const elements = {};
globalThis.document = {
  getElementById: (name) => (elements[name] ??= element()),
  createElement: element,
  addEventListener: (_, heard) => { listener = heard; },
};
const count = Number(process.argv[3]);
const item = { id: "i", prompt: "p", answers: Array(count).fill("x") };
const state = { done: 0, total: 1, labeller: "a", agreement: [], item };
globalThis.fetch = async (path, options) => {
  if (options.body) sent.push([path, JSON.parse(options.body)]);
  return { ok: true, json: async () => state };
};
require(process.argv[2]);
(async () => {
  for (const key of process.argv.slice(4)) {
    await new Promise((done) => setTimeout(done, 1));
    listener({ key, preventDefault() {} });
  }
  await new Promise((done) => setTimeout(done, 1));
  console.log(JSON.stringify(sent));
})();
"""


@pytest.mark.parametrize(
    ("count", "keys", "sent"),
    [
        (2, "2", [[2], [1]]),
        (2, "t", [[1, 2]]),
        (2, "s", []),
        (3, "3 1 2", [[3], [1], [2]]),
        (3, "3 Enter", [[3], [1, 2]]),
        (4, "2 = 4 9 2 1 Enter", [[2, 4], [1], [3]]),
        (3, "1 Backspace 2 = Backspace 3 1", [[2], [3], [1]]),
    ],
)
def test_the_keys_of_the_page(tmp_path: Path, count: int, keys: str, sent: list[list[int]]) -> None:
    harness = tmp_path / "keys.js"
    harness.write_text(KEYS)
    words = ["node", str(harness), str(TEMPLATES / "label.js"), str(count), *keys.split()]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [["/api/label", {"id": "i", "places": sent}]]


def test_labels_become_rows_that_dpo_reads(tmp_path: Path) -> None:
    given = [
        label("i", "ann", "a", "b=c"),
        label("j", "ann", "a=b"),
        label("k", "ann", "a", "b"),
        label("k", "bob", "b", "a"),
    ]
    given += [Label("l", "ann", "skipped", ())]
    pairs = preference_rows(given)
    assert [(row["chosen"], row["rejected"]) for row in pairs.rows] == [("a", "b"), ("a", "c")]
    assert (pairs.ties, pairs.disputed) == (1, 1)
    outvoted = preference_rows([*given, label("k", "cid", "b", "a")])
    assert {"prompt": "prompt of k", "chosen": "b", "rejected": "a"} in outvoted.rows
    rankings = preference_rows(
        [*given, label("m", "ann", "c", "b", "a"), label("m", "bob", "c", "b", "a")], rankings=True
    )
    assert [row["ranking"] for row in rankings.rows] == [["a", "b"], ["c", "b", "a"]] and rankings.disputed == 1
    for name, found in (("pairs", pairs), ("rankings", rankings)):
        found.write(tmp_path / f"{name}.jsonl")
        ranking = {"ranking": "ranking"} if name == "rankings" else {}
        read, _ = ranked_answers(TrainingRowsConfig(path=str(tmp_path / f"{name}.jsonl"), **ranking))
        assert [each.answers[0] for each in read] == [row.get("chosen") or row["ranking"][0] for row in found.rows]


def test_two_labellers_are_compared_over_what_both_decided() -> None:
    given = [label(f"i{n}", "ann", "a", "b") for n in range(8)] + [
        label("t", "ann", "a=b"),
        label("x", "ann", "a", "b"),
    ]
    given += [label(f"i{n}", "bob", "a", "b") for n in range(6)] + [label(f"i{n}", "bob", "b", "a") for n in (6, 7)]
    given += [label("t", "bob", "a=b"), Label("x", "bob", "p", ())]
    found = compare_labellers(given, "ann", "bob")
    assert found.agreement is not None and (found.agreement.agreed.count, found.agreement.agreed.of) == (7, 9)
    # Chance: 8/9 * 6/9 + 0 * 2/9 + 1/9 * 1/9 = 49/81.
    assert found.agreement.kappa == pytest.approx((7 / 9 - 49 / 81) / (1 - 49 / 81))
    assert found.agreement.kappa_low < found.agreement.kappa < found.agreement.kappa_high
    assert [mine.id for mine, _ in found.differing] == ["i6", "i7"]
    assert compare_labellers(given, "ann", "eve").agreement is None
    everywhere = agreement([[("yes", "yes")]] * 4)
    assert everywhere.kappa is None and "not defined" in str(everywhere)
    with pytest.raises(ValueError, match="there is none"):
        agreement([])


def test_a_damaged_file_of_labels_is_named(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text('{"id": "i", "labeller": "ann"}\n')
    with pytest.raises(ValueError, match=r"line 1 of .* is no label"):
        read_labels(path)


def run(*words: str) -> Any:
    return CliRunner(env={"COLUMNS": "300", "TERM": "dumb"}).invoke(app, words)


def judge_file(folder: Path, url: str, **options: Any) -> str:
    given = {"url": url, "model": "small", "rubric": rubric_file(folder, RUBRIC), "patience_s": 5, **options}
    (folder / "judge.yaml").write_text(json.dumps(given))
    return str(folder / "judge.yaml")


def test_people_then_a_judge_in_both_orders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ann labels by the page. The judge prefers `good`, but of the questions 4 and 5 always the first answer."""
    folder = write_groups(tmp_path / "run", GROUPS)

    def label_all(server: uvicorn.Server, _: Any) -> None:
        client = TestClient(server.config.app, base_url="http://127.0.0.1:9")
        client.get(f"/?token={token[0]}")
        for _ in GROUPS:
            item = client.get("/api/state").json()["item"]
            best = next(at for at, text in enumerate(item["answers"], 1) if "good" in text)
            client.post("/api/label", json={"id": item["id"], "places": [[best], [3 - best]]}, headers=ASKS)

    token: list[str] = []
    monkeypatch.setattr("grpo.labelling.command.new_token", lambda: token.append("t") or "t")
    monkeypatch.setattr(uvicorn.Server, "run", label_all)
    done = run("label", str(folder), "--labeller", "ann")
    assert done.exit_code == 0, done.output
    assert "?token=t" in done.output and "6 rows" in done.output
    rows = [json.loads(line) for line in (folder / "preferences.jsonl").read_text().splitlines()]
    assert all(row["chosen"].startswith("good") and row["prompt"] in GROUPS for row in rows)

    def better(texts: dict[str, str]) -> str:
        return "1" if texts["PROMPT"][-1] in "45" or "good" in texts["ANSWER 1"] else "2"

    with served(choosing(better, "better")) as url:
        judged = run("label", str(folder), "--judge", judge_file(tmp_path, url))
    assert judged.exit_code == 0, judged.output
    assert "compared: 6 pairs in both orders; 0 answers from the cache; paid: 600 + 84 tokens" in judged.output
    assert "the first place won 8 of 12 (66.67%" in judged.output and "order decided: 2 of 6" in judged.output
    assert "judge:small and ann: pairs alike: 4 of 6 (66.67%" in judged.output
    assert "4 rows; 2 items are ties" in judged.output
    again = run("label", str(folder), "--judge", judge_file(tmp_path, url))
    assert again.exit_code == 0 and "6 of them have a label of judge:small" in again.output, "nothing is asked again"


def test_a_judge_of_three_answers_ranks_by_won_pairs(tmp_path: Path) -> None:
    file = tmp_path / "samples.jsonl"
    file.write_text(json.dumps({"prompt": "p", "answers": ["aaa", "a", "aa"]}) + "\n")
    with served(choosing(lambda t: "1" if len(t["ANSWER 1"]) < len(t["ANSWER 2"]) else "2", "better")) as url:
        done = run("label", str(file), "--judge", judge_file(tmp_path, url), "--show", "3", "--rankings")
    assert done.exit_code == 0, done.output
    row = json.loads((tmp_path / "samples_judge_preferences.jsonl").read_text())
    assert row == {"prompt": "p", "ranking": ["a", "aa", "aaa"]}


def test_a_judge_that_answers_prose_labels_nothing(tmp_path: Path) -> None:
    folder = write_groups(tmp_path / "run", dict(itertools.islice(GROUPS.items(), 2)))
    with served(lambda *_: "Both are fine.") as url:
        done = run("label", str(folder), "--judge", judge_file(tmp_path, url))
    assert done.exit_code == 1 and "labelled none of 2 items" in done.output
    assert "2 times: the judge answered 'Both are fine.'" in done.output
    assert not (folder / "judge_preferences.jsonl").exists()
    assert run("label", str(folder), "--labeller", "judge:x").exit_code == 2
    refused = run("label", str(folder), "--judge", judge_file(tmp_path, "http://127.0.0.1:1/v1", key="sk-1"))
    assert refused.exit_code == 2 and "key: {env:" in refused.output and "sk-1" not in refused.output


def test_a_text_with_another_end_of_line_is_one_row(tmp_path: Path) -> None:
    file = tmp_path / "samples.jsonl"
    row = {"prompt": "a\u2028b", "answers": ["1\u0085", "2"]}
    file.write_text(json.dumps(row, ensure_ascii=False) + "\n\n", encoding="utf-8")
    assert rows_of_file(file) == [(f"{file}:1", row)]
