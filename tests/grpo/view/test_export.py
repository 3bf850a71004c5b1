"""`report.html`: the page as one file. What it holds, what bounds it, and what a browser makes of it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from chromium import CHROMIUM, Browser
from fake_run import CONFIG, HOSTILE, make_advantages, make_rollout, silent_progress, write_fake_run
from test_geometry import ODD

from grpo.report.recorder import RunRecorder
from grpo.report.rollout_store import write_step
from grpo.types import Group, Prompt
from grpo.view import page as page_module
from grpo.view.page import choose_groups, export, shortened, write_report
from grpo.visible import visible
from rewards import verdict

# What a page can show of the hostile text: the same characters, the invisible ones named.
SHOWN = visible(HOSTILE.replace("\ud800", "\\ud800"))
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


class PageReader(HTMLParser):
    """Collects what a browser would make of a page: elements, attributes, and the text of scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style", "title"):
            self._open = tag
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts[self._open][-1] += data


def read(run_dir: Path) -> PageReader:
    return PageReader((run_dir / "report.html").read_text())


def data_of(path: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(PageReader(path.read_text()).texts["script"][0])
    return data


@pytest.fixture(scope="module")
def fake_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "quickstart"
    write_fake_run(run_dir, steps=20)
    return run_dir


@pytest.fixture(scope="module")
def hostile_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which everything that a policy, a dataset or a config can choose is hostile."""
    run_dir = tmp_path_factory.mktemp("runs") / "<img src=x onerror=alert(1)>"
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text(CONFIG + "evil: " + json.dumps(HOSTILE.replace("\ud800", "")))
    verdicts = {
        "exact": verdict.wrong(HOSTILE, score=0.0, **{HOSTILE: 1.0}),
        HOSTILE.replace("\ud800", "'\">"): verdict.error(HOSTILE),
    }
    group = Group(Prompt(HOSTILE, HOSTILE, (1,), HOSTILE, {"x": HOSTILE}), (make_rollout(HOSTILE, verdicts),) * 2)
    with RunRecorder(run_dir, progress=silent_progress()) as report:
        metric = "verdict/'\"></script><script>document.title='owned'</script>/correct"
        report.step(1, {metric: 1.0, "reward/mean": 0.5}, [group], [[None, 1.0]])
        report.finish(write_report)
    return run_dir


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("chromium") / "profile") as opened:
        yield opened
        assert opened.errors == []
        assert all(url.startswith(("data:", "file:")) for url in opened.requested), opened.requested


def show(browser: Browser, path: Path, section: str, there: str) -> None:
    browser.open(path.as_uri())
    browser.wait(f"document.readyState === 'complete' && location.href === {json.dumps(path.as_uri())}")
    browser.ask(f"location.hash = '{section}'")
    browser.wait(f"!$('section-{section}').hidden && document.querySelector({json.dumps(there)})")


def test_hostile_output_stays_text(hostile_run: Path) -> None:
    page = read(hostile_run)
    assert not {tag for tag, _ in page.elements} & {"img", "template", "iframe", "object", "base", "pre b"}
    assert len(page.texts["script"]) == 2 and len(page.texts["style"]) == 1
    assert "owned" not in page.texts["script"][1] and "<" not in page.texts["script"][0]
    assert page.texts["title"] == ["<img src=x onerror=alert(1)> · VeriGRPO"]
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "style")], (tag, attributes)
        assert (attributes.get("href") or "#").startswith(("#", "data:"))
    # And all of it can still be read: prompt, reference, both completions.
    (group,) = data_of(hostile_run / "report.html")["runs"][0]["groups"]["training"]["details"]
    texts = [group["prompt"], group["reference"], *(one["completion"] for one in group["completions"])]
    assert texts == [SHOWN, visible(HOSTILE), SHOWN, SHOWN]
    source = (hostile_run / "report.html").read_text()
    assert "{{ 7 * 7 }}" in source and not re.search("[\u202e\x1b\x00]", source)


@needs_chromium
def test_a_browser_runs_the_page_and_nothing_else(hostile_run: Path, tmp_path: Path, browser: Browser) -> None:
    # A line is appended that changes the title; the policy must keep even that from running.
    path = tmp_path / "page.html"
    path.write_text((hostile_run / "report.html").read_text() + "<script>document.title='injected'</script>")
    show(browser, path, "groups", "#detail article")
    assert browser.ask("document.title") == "<img src=x onerror=alert(1)> · VeriGRPO"
    assert browser.ask("document.querySelectorAll('main img, main b b, header img, pre b').length") == 0
    assert browser.ask("[...document.querySelectorAll('.completion pre')].map((one) => one.textContent)") == [SHOWN] * 2
    # Chromium reports the script that it refused; nothing else went wrong.
    refused = [error for error in browser.errors if "Content Security Policy" in error]
    assert len(refused) == 1
    browser.errors.remove(refused[0])
    verdicts = browser.ask("[...document.querySelectorAll('.verdicts li')].map((one) => one.textContent)")
    assert sum("bold</b>" in text for text in verdicts) == 4
    told = browser.ask("$('detail').textContent")
    assert told.count("reward none") == 2 and told.count("advantage none") == 1
    assert browser.ask("document.querySelectorAll('.verdicts .status-error').length") == 2


@needs_chromium
def test_what_the_page_of_a_run_shows_is_in_the_file(fake_run: Path, browser: Browser) -> None:
    path = fake_run / "report.html"
    show(browser, path, "curves", "#recipe td")
    links = browser.ask("[...document.querySelectorAll('nav a')].map((one) => one.hash.slice(1))")
    assert browser.ask(f"{json.dumps(links)}.every((name) => $('section-' + name))") and len(links) == 7
    titles = browser.ask("[...document.querySelectorAll('#main-charts figcaption')].map((one) => one.innerText)")
    assert [title.split(" ")[0] for title in titles] == ["Accuracy", "Mean", "Completion", "Step", "Train-inference"]
    assert "held-out accuracy" in browser.ask("$('outcomes').textContent")
    recipe = browser.ask("[...document.querySelectorAll('#recipe td')].map((one) => one.textContent)")
    assert recipe[:2] == ["runs/quickstart/cold-start", "grpo.data.arithmetic:chains"] and "exact, format" in recipe
    # Every curve can be found, and read by the keyboard.
    browser.ask("(input => { input.value = 'entropy'; input.dispatchEvent(new Event('input')); })($('metric-text'))")
    browser.wait("document.querySelector('#all-charts figure')?.textContent.includes('learner/entropy')")
    browser.ask("document.querySelector('#main-charts svg').focus()")
    browser.press("Home")
    assert browser.ask("document.querySelector('#main-charts .readout').textContent") == "step 0: held-out, greedy 0.45"
    browser.ask("location.hash = 'timeline'")
    after = r"^The step took [\d.]+ s; with the work after the step \(eval, checkpoint\), the time line ends at "
    assert re.match(after, browser.wait("$('timeline-text').textContent"))
    browser.ask("location.hash = 'config'")
    browser.wait(f"$('config-text').textContent === {json.dumps(CONFIG)}")


@needs_chromium
def test_groups_of_the_file_are_filtered_and_ordered_as_those_of_the_server(fake_run: Path, browser: Browser) -> None:
    show(browser, fake_run / "report.html", "groups", "#detail article")
    rewards = browser.ask(
        "[...document.querySelectorAll('.completion .score b:first-child')].map((e) => e.textContent)"
    )
    assert len(rewards) == 2 * 8 and rewards[::2] == sorted(rewards[::2], reverse=True), "from the best to the worst"
    assert browser.ask("$('held').textContent") == "This file holds all stored completions."

    def found(**fields: str) -> tuple[str, list[str]]:
        browser.ask("$('filters').reset()")
        for name, value in fields.items():
            browser.ask(f"$('filters').elements.{name}.value = '{value}'")
        browser.ask("filterGroups()")
        rows = browser.ask("[...document.querySelectorAll('#rows .row')].map((row) => row.textContent)")
        return browser.ask("$('found').textContent"), [re.search(r"step (\d+)", row)[1] for row in rows]  # type: ignore[index]

    assert found() == ("12 of 12 groups, 96 of 96 completions", ["20"] * 4 + ["10"] * 4 + ["1"] * 4)
    assert found(order="oldest")[1] == ["1"] * 4 + ["10"] * 4 + ["20"] * 4
    data = data_of(fake_run / "report.html")["runs"][0]["groups"]["training"]
    by_spread = sorted(data["rows"], key=lambda row: -row["spread"])
    assert found(order="spread")[1] == [str(row["step"]) for row in by_spread]
    late = sum(one["completion_tokens"] <= 20 for group in data["details"] for one in group["completions"])
    assert found(tokens_high="20")[0].endswith(f", {late} of 96 completions") and 0 < late < 96


def test_charts_and_readouts_hold_the_values(fake_run: Path) -> None:
    (held_out, points), (training, _) = data_of(fake_run / "report.html")["overview"]["main"][0]["readout"]["series"]
    assert (held_out, training) == ("held-out, greedy", "training, at rollout.temperature")
    assert points[0] == [0, 0.45]
    assert [step for step, _ in points] == [0, 5, 10, 15, 20]


def test_the_mismatch_stands_beside_its_threshold(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("report: {mismatch_alarm: 0.01}")
    with RunRecorder(tmp_path, progress=silent_progress()) as report:
        for step in (1, 2):
            report.step(step, {"learner/mismatch_kl_first": step * 1e-4, "learner/mismatch_kl": step * 1e-3})
        report.finish(write_report)
    data = data_of(tmp_path / "report.html")
    (chart,) = data["overview"]["main"]
    assert dict(chart["readout"]["series"]) == {
        "first update": [[1, 1e-4], [2, 2e-4]],
        "all updates": [[1, 1e-3], [2, 2e-3]],
        "alarm": [[1, 0.01], [2, 0.01]],
    }
    # A threshold has the colour of a warning, not of a third series.
    assert [shape["style"] for shape in chart["shapes"]] == ["s1", "s2", "alarm"]
    assert data["runs"][0]["mismatch"]["charts"][0]["shapes"] == chart["shapes"]


def test_a_config_that_is_no_yaml_is_shown_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    (tmp_path / "config.yaml").write_text("{: broken")
    (run,) = data_of(write_report(tmp_path))["overview"]["runs"]
    assert (run["config"], run["recipe"], run["table"]) == ("{: broken", [], [])


def test_groups_that_differ_are_chosen_and_one_failure() -> None:
    failed = (False, True, False, True, False)
    rows = [{"group": at, "has_failed": has_failed} for at, has_failed in enumerate(failed)]
    assert [row["group"] for row in choose_groups(rows, 3)] == [0, 2, 1]
    assert [row["group"] for row in choose_groups(rows[:1], 3)] == [0]
    assert [row["group"] for row in choose_groups(rows, 1)] == [0]
    assert choose_groups([], 3) == []


def test_long_texts_keep_begin_and_end() -> None:
    short = shortened({"a": ["short", 1, {"b": "a" * 10_000 + "z" * 10_000}]})
    assert short["a"][:2] == ["short", 1]
    text = short["a"][2]["b"]
    assert len(text) < 8100 and text.startswith("aaa") and text.endswith("zzz")
    assert "12,000 characters left out" in text


@needs_chromium
def test_a_large_run_leaves_a_small_file_that_tells_what_is_not_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, browser: Browser
) -> None:
    run_dir = tmp_path / "a run"
    for step in range(1, 31):
        rollouts = [make_rollout("x" * 5, {"exact": verdict.correct(), "late": verdict.timeout("late")})] * 30
        rollouts[3] = make_rollout("Y" * 9000, {"exact": verdict.wrong("no")})
        groups = [Group(Prompt(f"p{at}", "1+1=?", (1,), "2", {}), tuple(rollouts)) for at in range(8)]
        write_step(run_dir, step, groups, make_advantages(groups))
    data = data_of(write_report(run_dir))["runs"][0]["groups"]["training"]
    assert (data["steps"], data["of_steps"], len(data["rows"])) == (24, 30, 24 * 6)
    assert {1, 30} <= {row["step"] for row in data["rows"]}
    for group in data["details"]:
        assert len(group["completions"]) == 16 and group["left_out"] == 14
        assert group["completions"][0]["completion"].startswith("YYY")
        assert "1,000 characters left out" in group["completions"][0]["completion"]
    size = (run_dir / "report.html").stat().st_size
    # Where there is no room for all of them, every step keeps its first groups.
    monkeypatch.setattr(page_module, "_MOST_CHARACTERS", 700_000)
    smaller = data_of(write_report(run_dir))["runs"][0]["groups"]["training"]
    assert (run_dir / "report.html").stat().st_size < min(size - 500_000, 900_000)
    assert smaller["steps"] == 24 and 24 <= len(smaller["rows"]) < 24 * 6
    show(browser, run_dir / "report.html", "groups", "#detail article")
    told = f"This file holds {len(smaller['rows'])} groups of 24 of the 30 stored steps. All of them: "
    assert browser.ask("$('held').textContent") == f"{told}grpo view '{run_dir}'"
    assert "14 completions between the best and the worst are not in this file." in browser.ask("$('detail').innerText")


ODD_STEPS = 70


@needs_chromium
def test_no_column_of_the_compared_metrics_is_cut(tmp_path: Path, browser: Browser) -> None:
    long = "verifier/answers_to_questions_of_the_second_source/cache_hit_share"
    with RunRecorder(tmp_path, progress=silent_progress()) as report:
        for step in (1, 2):
            group = Group(Prompt("a", "1+1=?", (1,), "2", {}), (make_rollout("=2", {"exact": verdict.correct()}),))
            report.step(step, {"reward/mean": 1e-5 * step, long: 123456.0 * step}, [group], [[0.0]])
    show(browser, export([tmp_path], tmp_path / "page.html"), "learned", ".metrics td")
    for width in (2000, 1400, 1000):
        browser.call("Emulation.setDeviceMetricsOverride", width=width, height=768, deviceScaleFactor=1, mobile=False)
        table = browser.ask("(box => [box.scrollWidth, box.clientWidth])(document.querySelector('.metrics'))")
        assert table[0] <= table[1], width
    browser.call("Emulation.setDeviceMetricsOverride", width=1366, height=768, deviceScaleFactor=1, mobile=False)


@needs_chromium
def test_the_page_of_fine_tuning_offers_only_parts_with_data(tmp_path: Path, browser: Browser) -> None:
    with RunRecorder(tmp_path, progress=silent_progress()) as report:
        report.step(1, {"learner/loss": 1.0, "time/step_s": 0.1, "time/learn_s": 0.1})
        (tmp_path / "config.yaml").write_text("sft: {epochs: 1}\n")
        report.finish(write_report)
    show(browser, tmp_path / "report.html", "curves", "#main-charts svg")
    browser.ask("location.hash = 'groups'")
    browser.wait("!$('section-curves').hidden && $('section-groups').hidden")
    offered = "[...document.querySelectorAll('nav li')].filter((one) => !one.hidden).map((one) => one.innerText)"
    assert browser.ask(offered) == ["Curves", "Time line", "Config"]


@needs_chromium
def test_odd_curves_are_drawn_inside_their_cards(tmp_path: Path, browser: Browser) -> None:
    begin = 250_000
    main = {"eval/accuracy": 1.0, "learner/mismatch_kl_first": 1e-17, "rollout/completion_tokens_mean": 0.0}
    with RunRecorder(tmp_path, progress=silent_progress()) as report:
        for at in range(ODD_STEPS):
            odd = {f"odd/{name}": values[at] for name, values in ODD.items() if at < len(values)}
            times = {"time/step_s": math.nan if at == 2 else 1.0, "time/learn_s": 1.0}
            noise = 0.7 + 1e-13 * (at % 3)
            report.step(begin + 1000 * at, {**odd, **main, **times, "reward/mean": noise, "throughput/x": 1e7 + at})
        report.finish(write_report)
    show(browser, tmp_path / "report.html", "curves", "#main-charts polyline")
    browser.ask("document.querySelectorAll('#all-charts details').forEach((one) => { one.open = true; })")
    browser.wait(f"document.querySelectorAll('#all-charts figure').length >= {len(ODD) + 7}")
    outside = browser.ask("""[...document.querySelectorAll('figure')].flatMap((figure) => {
      const card = figure.getBoundingClientRect();
      return [...figure.querySelectorAll('svg text, svg polyline, svg polygon, svg circle')].map((shape) => {
        const box = shape.getBoundingClientRect(), text = shape.textContent;
        const isBeside = box.left >= card.left && box.right <= card.right;
        const isInside = isBeside && box.top >= card.top && box.bottom <= card.bottom;
        return isInside && !/NaN|undefined|Infinity/.test(text + (shape.getAttribute('points') ?? '')) ? null
          : `${figure.querySelector('figcaption').textContent}: ${shape.tagName} ${text}`;
      }).filter(Boolean);
    })""")
    assert outside == []
    overlapping = browser.ask("""[...document.querySelectorAll('figure')].flatMap((figure) => {
      const texts = [...figure.querySelectorAll('svg text')];
      const boxes = texts.map((text) => [text.textContent, text.getBoundingClientRect()]);
      return boxes.flatMap(([first, a], at) => boxes.slice(at + 1)
        .filter(([, b]) => a.left < b.right && b.left < a.right && a.top + 3 < b.bottom && b.top + 3 < a.bottom)
        .map(([second]) => `${figure.querySelector('figcaption').textContent}: ${first} and ${second}`));
    })""")
    assert overlapping == []


def test_several_runs_go_into_one_file(fake_run: Path, hostile_run: Path, tmp_path: Path) -> None:
    data = data_of(export([fake_run, hostile_run], tmp_path / "made" / "both.html"))
    assert [run["name"] for run in data["overview"]["runs"]] == ["quickstart", "<img src=x onerror=alert(1)>"]
    assert [chart["title"] for chart in data["overview"]["main"]][:2] == ["Held-out accuracy", "Mean reward"]
    assert [shape["label"] for shape in data["overview"]["main"][1]["shapes"]] == [
        run["name"] for run in data["overview"]["runs"]
    ]
