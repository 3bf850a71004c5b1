"""The page of `grpo view`: who may ask, what is refused, that hostile text stays text, and that it can be used."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from chromium import CHROMIUM, Browser
from fake_run import HOSTILE, make_rollout, silent_progress, write_fake_run
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from grpo.cli.app import app
from grpo.report.recorder import RunRecorder
from grpo.types import Group, Prompt
from grpo.view.guards import is_own_host
from grpo.view.page import ASSETS, export, page
from grpo.view.runs import open_runs
from grpo.view.server import make_app, serve
from grpo.visible import visible
from rewards import verdict

TEMPLATES = Path(__file__).parents[3] / "grpo" / "view" / "templates"
SHOWN = visible(HOSTILE.replace("\ud800", "\\ud800"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run like any other, and one in which all that can be chosen from outside is hostile."""
    folder = tmp_path_factory.mktemp("runs")
    write_fake_run(folder / "plain", steps=20)
    evil = folder / "<img src=x onerror=alert(1)>"
    group = Group(
        Prompt(HOSTILE, HOSTILE, (1,), HOSTILE, {"x": HOSTILE}),
        (make_rollout(HOSTILE, {HOSTILE: verdict.wrong(HOSTILE, **{HOSTILE: 1.0})}),) * 2,
    )
    with RunRecorder(evil, progress=silent_progress()) as report:
        report.evaluation(0, [group])
        report.step(0, {"eval/accuracy": 0.5})
        lanes = {"driver": {"learn": [(1000.0, 1001.0)]}, f"verifiers on node {HOSTILE}": {HOSTILE: [(1000.0, 1000.5)]}}
        report.busy(1, 1000.0, lanes)
        named = "verdict/</script><script>document.title='owned'</script>/x"
        report.step(1, {named: 1.0, "time/step_s": 1.0}, [group], [[None, 1.0]])
        report.evaluation(2, [group])
        report.step(2, {"eval/accuracy": 0.5})
    (evil / "config.yaml").write_text("</script><script>document.title='owned'</script>")
    return folder / "plain", evil


@pytest.fixture(scope="module")
def client(runs: tuple[Path, Path]) -> TestClient:
    opened = open_runs(runs)
    for run in opened:
        for index in run.indexes.values():
            index.refresh()
    return TestClient(make_app(opened, hosts=["box.example"]), base_url="http://127.0.0.1:8642")


@pytest.mark.parametrize(
    ("host", "is_own"),
    [
        ("localhost:8642", True),
        ("LOCALHOST", True),
        ("127.0.0.1:8642", True),
        ("[::1]:8642", True),
        ("192.168.1.5:8642", True),
        ("box.example:8642", True),
        ("evil.example:8642", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example:80", False),
        ("127.0.0.1@evil.example", False),
        ("", False),
    ],
)
def test_only_own_names_are_answered(client: TestClient, host: str, is_own: bool) -> None:
    assert is_own_host(host, ["box.example"]) is is_own
    for path in ("/", "/api/overview", "/static/view.js", "/nothing"):
        answer = client.get(path, headers={"Host": host})
        assert (answer.status_code == 421) is not is_own
        assert is_own or "plain" not in answer.text


def test_another_site_may_link_here_and_read_nothing(client: TestClient) -> None:
    for site in ("cross-site", "same-site"):
        assert client.get("/api/overview", headers={"Sec-Fetch-Site": site}).status_code == 403
        assert client.get("/", headers={"Sec-Fetch-Site": site}).status_code == 200
    answer = client.get("/api/overview", headers={"Sec-Fetch-Site": "same-origin", "Origin": "http://evil.example"})
    assert answer.status_code == 200 and "access-control-allow-origin" not in answer.headers


def test_every_answer_has_the_strict_policy(client: TestClient) -> None:
    for path in ("/", "/static/view.js", "/api/state", "/nothing", "/api/groups?status=x"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';")
        assert "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"


@pytest.mark.parametrize(
    "path",
    [
        "/static/../view.py",
        "/static/..%2Fview.py",
        "/static/%2e%2e/%2e%2e/pyproject.toml",
        "/static/view.html.j2",
        "/static//etc/passwd",
        "/../../etc/passwd",
        "/docs",
        "/openapi.json",
        "/api/group?run=2&step=1&group=0",
        "/api/group?run=-1&step=1&group=0",
        "/api/group?step=1&group=999",
        "/api/group?step=7&group=0",
    ],
)
def test_there_is_nothing_else(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


NUMBERS = (
    "group?group=0&step=", "group?step=1&group=", "group?step=1&group=0&run=", "groups?offset=", "groups?limit=",
    "groups?run=", "groups?tokens_low=", "groups?tokens_high=-", "groups?step_low=", "groups?step_high=-",
    "learned?before=0&after=", "learned?after=1&before=", "timeline?step=", "flags?run=", "mismatch?run=-",
)  # fmt: skip


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/groups?source=../..", 422),
        ("/api/groups?reward_low=nan", 422),
        ("/api/groups?limit=100000", 422),
        ("/api/groups?order=random", 422),
        ("/api/group?step=..&group=0", 422),
        *((f"/api/{question}{'9' * digits}", 422) for question in NUMBERS for digits in (17, 300, 5000)),
        ("/api/groups?" + "status=wrong&" * 100, 422),
        ("/api/charts?" + "metric=reward/mean&" * 2500, 414),
        ("/api/groups?text=" + "a" * 1001, 422),
        ("/api/groups?status=right", 400),
        ("/api/learned?before=5&after=5", 400),
    ],
)
def test_a_mistaken_question_is_told(client: TestClient, path: str, status: int) -> None:
    answer = client.get(path)
    assert answer.status_code == status and answer.json()["detail"]
    assert client.post("/api/groups").status_code == 405


def test_a_metric_is_drawn_once_however_often_it_is_named(client: TestClient) -> None:
    names = ["metric=reward/mean", "metric=time/step_s"] * 700 + ["metric=unknown"]
    drawn = client.get("/api/charts?" + "&".join(names)).json()
    assert [one["metric"] for one in drawn] == ["reward/mean", "time/step_s"]
    # The largest numbers that pass are no trouble for the columns that they are compared with.
    assert client.get(f"/api/group?step=1&group={2**53}").status_code == 404
    assert client.get(f"/api/groups?tokens_low=-{2**53}&step_high={2**53}&reward_high=1e308").status_code == 200


def test_on_a_network_only_who_has_the_token_reads(runs: tuple[Path, Path]) -> None:
    app = make_app(open_runs(runs), token="a-token")
    client = TestClient(app, base_url="http://192.168.1.5:8642", follow_redirects=False)
    for path in (
        "/",
        "/?token=",
        "/?token=wrong",
        "/?token=%F0%9F%98%80",
        "/api/overview?token=a-token",
        "/static/view.js",
    ):
        answer = client.get(path)
        assert answer.status_code == 401 and "plain" not in answer.text and "set-cookie" not in answer.headers, path
    assert client.get("/?token=a-token", headers={"Host": "evil.example"}).status_code == 421
    answer = client.get("/?token=a-token")
    assert answer.status_code == 303 and answer.headers["location"] == "/"
    assert "HttpOnly" in answer.headers["set-cookie"] and "SameSite=lax" in answer.headers["set-cookie"]
    assert client.get("/").status_code == client.get("/api/overview").status_code == 200
    other = TestClient(make_app(open_runs(runs), token="other"), base_url="http://192.168.1.5", cookies=client.cookies)
    assert other.get("/").status_code == 401


@pytest.mark.parametrize(
    ("host", "ask_token", "asks"),
    [("127.0.0.1", False, False), ("localhost", False, False), ("127.0.0.1", True, True), ("0.0.0.0", False, True)],
)
def test_leaving_this_machine_takes_a_token(
    runs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, host: str, ask_token: bool, asks: bool
) -> None:
    said: list[str] = []
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: sockets[0].close())
    serve(open_runs(runs), host=host, port=0, say=said.append, ask_token=ask_token)
    assert ("?token=" in said[0]) is asks
    assert (len(said) == 2) is (host == "0.0.0.0")


def test_the_server_answers_what_the_page_asks(client: TestClient) -> None:
    overview = client.get("/api/overview").json()
    assert [run["name"] for run in overview["runs"]] == ["plain", "<img src=x onerror=alert(1)>"]
    found = client.get("/api/groups?status=unparseable&tokens_low=2&text=owned&limit=2").json()
    assert found["groups"] > 0 and len(found["rows"]) <= 2
    first = found["rows"][0]
    detail = client.get(f"/api/group?step={first['step']}&group={first['group']}&tokens=true").json()
    texts = [one["completion"] for one in detail["completions"]]
    assert texts.count(SHOWN) == first["matches"]
    assert client.get("/api/timeline?step=5").json()["seconds"] > 0
    assert client.get("/api/charts?metric=reward/mean&metric=x").json()[0]["metric"] == "reward/mean"
    assert client.get("/api/learned?run=1&before=0&after=2").json()["reward_changes"]["same"] == 1


def test_the_script_makes_no_markup_from_data() -> None:
    script = (TEMPLATES / "view.js").read_text()
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "srcdoc"):
        assert way not in script
    for name in ASSETS:
        source = (TEMPLATES / name).read_text()
        assert "</" not in source and not re.search(r"https?://(?!www\.w3\.org/2000/svg)", source)
    assert " style=" not in page() and "<script>" not in page()


def test_one_file_holds_everything_and_lets_nothing_out(runs: tuple[Path, Path], tmp_path: Path) -> None:
    path = export(runs, tmp_path / "made" / "page.html")
    source = path.read_text()
    scripts = re.findall(r"<script([^>]*)>(.*?)</script>", source, re.DOTALL)
    assert [kind for kind, _ in scripts] == [' type="application/json" id="exported"', ""]
    (style,) = re.findall(r"<style>(.*?)</style>", source, re.DOTALL)
    for kind, text in (("script", scripts[1][1]), ("style", style)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in source
    assert not re.search(r'(src|href)="(?!#|data:)', source)
    data = json.loads(scripts[0][1])
    assert "<" not in scripts[0][1]
    assert data["runs"][1]["groups"]["training"]["details"][0]["completions"][0]["completion"] == SHOWN
    steps = {row["step"] for row in data["runs"][0]["groups"]["training"]["rows"]}
    assert steps == {1, 10, 20} and set(data["runs"][0]["timeline"]) == {str(step) for step in range(1, 21)}
    assert len(data["charts"]) > 40


def test_the_command_line_writes_both_and_tells_mistakes(runs: tuple[Path, Path], tmp_path: Path) -> None:
    def invoke(*arguments: object) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["view", *map(str, arguments)])
        return done.exit_code, done.output

    code, output = invoke(*runs, "--export", tmp_path / "a.html", "--png", tmp_path / "png")
    assert code == 0 and str(tmp_path / "a.html") in output.replace("\n", "")
    assert (tmp_path / "png" / "overview.png").read_bytes().startswith(b"\x89PNG")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, output = invoke(runs[0], "--port", taken.getsockname()[1])
    assert code == 1 and "--port 0 takes a free port" in " ".join(output.split())
    code, output = invoke(tmp_path)
    assert code == 2 and "holds no run" in " ".join(output.split())


@pytest.fixture(scope="module")
def url(runs: tuple[Path, Path]) -> Iterator[str]:
    opened = open_runs(runs)
    for run in opened:
        for index in run.indexes.values():
            index.refresh()
    server = uvicorn.Server(uvicorn.Config(make_app(opened), log_level="error"))
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
    server.should_exit = True
    thread.join(20)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_person_can_look_through_it_by_keyboard(url: str, runs: tuple[Path, Path], tmp_path: Path) -> None:
    with Browser(tmp_path / "profile") as browser:
        browser.open(url)
        browser.wait("document.querySelectorAll('#main-charts polyline').length >= 4")
        # Down through the groups, back, and to the last one; the chosen one is what is shown.
        browser.press("/", "/")
        browser.wait("document.activeElement.name === 'text' && document.querySelector('#detail h2')")
        browser.ask("$('list').focus()")
        shown = [browser.ask("document.querySelector('#detail h2').textContent")]
        for key in ("ArrowDown", "ArrowDown", "ArrowUp", "End"):
            before = browser.ask("$('list').getAttribute('aria-activedescendant')")
            browser.press(key)
            now = "$('list').getAttribute('aria-activedescendant')"
            browser.wait(f"{now} && {now} !== {json.dumps(before)}")
            browser.wait(f"document.querySelector('#detail h2').textContent !== {json.dumps(shown[-1])}")
            shown.append(browser.ask("document.querySelector('#detail h2').textContent"))
        assert shown == [f"step {step}, group {group}" for step, group in ((20, 0), (20, 1), (20, 2), (20, 1), (1, 3))]
        # A text that only the hostile completions have.
        browser.press("/", "/")
        browser.wait("document.activeElement.name === 'text'")
        browser.type("OWNED")
        browser.wait("document.querySelector('#detail mark')")
        shown_text = browser.ask("[...document.querySelectorAll('.completion pre')].map((one) => one.textContent)")
        assert SHOWN in shown_text
        # The shaded tokens are the same text; without a tokenizer they are told by number.
        browser.ask("document.querySelector('#detail input').click()")
        browser.wait("document.querySelectorAll('.tokens span[title]').length > 100")
        assert "policy" in browser.ask("document.querySelector('.tokens span').title")
        browser.ask("document.querySelector('#detail input').click()")
        # Every section of the hostile run, and of the exported file.
        for place in (None, export(runs, tmp_path / "page.html").as_uri()):
            if place:
                browser.open(place)
                browser.wait("document.querySelectorAll('#main-charts polyline').length >= 4")
            browser.ask("(run => { run.value = '1'; run.dispatchEvent(new Event('change')); })($('run'))")
            for section, there in {
                "curves": "#all-charts summary",
                "groups": "#detail article",
                "learned": "#learned-body article",
                "flags": "#flag-list *",
                "timeline": ".lane .key",
                "mismatch": "#mismatch-text",
                "config": "#config-text",
            }.items():
                browser.ask(f"location.hash = '{section}'")
                browser.wait(f"!$('section-{section}').hidden && document.querySelector('{there}')")
                assert browser.ask("$('problem').hidden"), browser.ask("document.body.innerText")
            assert browser.ask("document.querySelectorAll('main img, main iframe, main b b, header img').length") == 0
            assert "owned" not in browser.ask("document.title")
            assert SHOWN in browser.ask("document.querySelector('.completion pre').textContent")
        assert browser.errors == []
        assert all(one.startswith((url, "data:", "file:")) for one in browser.requested), browser.requested


def test_the_page_follows_a_run_that_goes_on(tmp_path: Path) -> None:
    with RunRecorder(tmp_path, progress=silent_progress()) as report:
        report.step(0, {"eval/accuracy": 0.5})
        opened = open_runs([tmp_path])
        client = TestClient(make_app(opened), base_url="http://127.0.0.1")
        before = client.get("/api/state").json()
        assert client.get("/api/state").json() == before
        time.sleep(0.01)
        report.step(1, {"reward/mean": 0.25})
        assert client.get("/api/state").json() != before
        assert client.get("/api/overview").json()["runs"][0]["last_step"] == 1
