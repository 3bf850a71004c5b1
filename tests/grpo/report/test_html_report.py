from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
import unicodedata
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fake_run import CONFIG, HOSTILE, make_rollout, silent_progress, write_fake_run

from grpo.report.page import choose_groups, shortened, write_html
from grpo.report.recorder import RunRecorder
from grpo.report.rollout_store import StoredGroup, StoredRollout
from grpo.types import Group, Prompt
from grpo.visible import visible
from rewards import verdict

# What a page can show of the hostile text: the same characters, the invisible ones named.
SHOWN = visible(HOSTILE.replace("\ud800", "\\ud800"))


class PageReader(HTMLParser):
    """Collects what a browser would make of a page: elements, attributes, and the text of some of them."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("pre", "script", "style", "summary", "figcaption", "li", "dd", "h1"):
            self._open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        if self._open and self._open[-1] == tag:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts[self._open[-1]][-1] += data


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
        report.finish()
    return run_dir


def read(run_dir: Path) -> PageReader:
    return PageReader((run_dir / "report.html").read_text())


def test_hostile_output_stays_text(hostile_run: Path) -> None:
    page = read(hostile_run)
    assert {tag for tag, _ in page.elements} & {"img", "b", "template", "iframe", "object", "link", "base"} == {"b"}
    assert len(page.texts["script"]) == len(page.texts["style"]) == 1
    assert "owned" not in page.texts["script"][0]
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
    # And all of it can still be read: prompt, reference, both completions.
    assert page.texts["pre"][:4] == [SHOWN, visible(HOSTILE), SHOWN, SHOWN]
    assert sum("bold</b>" in text for text in page.texts["li"]) == 4


def test_bold_elements_are_only_ours(hostile_run: Path) -> None:
    source = (hostile_run / "report.html").read_text()
    assert "<b>bold" not in source
    assert "{{ 7 * 7 }}" in source and "49" not in SHOWN


def test_page_is_self_contained_and_names_the_hash_of_its_script_and_style(fake_run: Path) -> None:
    page = read(fake_run)
    policy = next(a["content"] for tag, a in page.elements if tag == "meta" and "http-equiv" in a)
    assert policy is not None and policy.startswith("default-src 'none';")
    for element in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(page.texts[element][0].encode()).digest()).decode()
        assert f"{element}-src 'sha256-{digest}'" in policy
    for _, attributes in page.elements:
        assert "src" not in attributes and "style" not in attributes
        assert (attributes.get("href") or "#").startswith("#")
    assert "http" not in re.sub(r"http-equiv", "", page.texts["style"][0] + page.texts["script"][0])


def test_every_link_has_its_target(fake_run: Path) -> None:
    page = read(fake_run)
    targets = {attributes.get("id") for _, attributes in page.elements}
    links = [attributes["href"] for tag, attributes in page.elements if tag == "a"]
    assert len(links) == 7
    assert all(link is not None and link[1:] in targets for link in links)


def test_samples_come_from_first_middle_and_last_step(fake_run: Path) -> None:
    source = (fake_run / "report.html").read_text()
    assert re.findall(r'<section id="step-(\d+)"', source) == ["1", "10", "20"]
    assert source.count("<article") == 3 * 3 * 8


def test_charts_summary_and_config_are_there(fake_run: Path) -> None:
    page = read(fake_run)
    titles = [title.split("\n")[0].strip() for title in page.texts["figcaption"]]
    assert [title.split(" ")[0] for title in titles[:4]] == ["Accuracy", "Mean", "Completion", "Step"]
    assert "learner/entropy" in titles
    assert page.texts["dd"][:2] == ["runs/quickstart/cold-start", "grpo.data.arithmetic:chains"]
    assert "exact, format" in page.texts["dd"]
    assert page.texts["pre"][-1] == CONFIG


def test_chart_readouts_hold_the_values(fake_run: Path) -> None:
    readout = next(json.loads(a["data-readout"] or "") for tag, a in read(fake_run).elements if tag == "figure")
    (held_out, points), (training, _) = readout["series"]
    assert (held_out, training) == ("held-out", "training samples")
    assert points[0] == [0, 0.45]
    assert [step for step, _ in points] == [0, 5, 10, 15, 20]


def test_the_mismatch_stands_beside_its_threshold(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("report: {mismatch_alarm: 0.01}")
    with RunRecorder(tmp_path, progress=silent_progress()) as report:
        for step in (1, 2):
            report.step(step, {"learner/mismatch_kl_first": step * 1e-4, "learner/mismatch_kl": step * 1e-3})
        report.finish()
    figures = [attributes for tag, attributes in read(tmp_path).elements if tag == "figure"]
    series = dict(json.loads(figures[0]["data-readout"] or "")["series"])
    assert series["first update"] == [[1, 1e-4], [2, 2e-4]]
    assert series["all updates"] == [[1, 1e-3], [2, 2e-3]]
    assert series["alarm"] == [[1, 0.01], [2, 0.01]]
    # A threshold has the colour of a warning, not of a third series.
    lines = [attributes["class"] for tag, attributes in read(tmp_path).elements if tag == "polyline"]
    assert lines[:3] == ["line alarm", "line s2", "line s1"]


def test_a_config_that_is_no_yaml_is_shown_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("{: broken")
    page = PageReader(write_html(tmp_path).read_text())
    assert page.texts["pre"] == ["{: broken"]
    assert "dd" not in page.texts


def test_failures_and_missing_gradients_are_told(hostile_run: Path) -> None:
    source = re.sub(r"\s+", " ", (hostile_run / "report.html").read_text())
    assert source.count("reward <b>none</b>") == 2
    assert source.count("advantage <b>none</b>") == 1
    assert "status-error" in source


def rollout(sample: int, reward: float | None) -> StoredRollout:
    return StoredRollout(sample, "text", 4, "stop", reward, None, (), (0,))


def group(index: int, *rewards: float | None) -> StoredGroup:
    rollouts = tuple(rollout(sample, reward) for sample, reward in enumerate(rewards))
    return StoredGroup(1, index, f"p{index}", "prompt", '"1"', rollouts)


def test_groups_that_differ_are_shown_and_one_failure() -> None:
    groups = [group(0, 1, 1), group(1, 0, 1), group(2, None, 0.5), group(3, 0, 0.5), group(4, None, None)]
    assert [one.index for one in choose_groups(groups, 3)] == [1, 3, 2]
    assert [one.index for one in choose_groups(groups[:2], 3)] == [1, 0]
    assert choose_groups([], 3) == ()


def test_invisible_characters_are_named_and_ordinary_text_is_not_touched() -> None:
    assert visible("a\u202eb\x1b[0m\u200bc\x00") == "a⟨U+202E⟩b⟨U+001B⟩[0m⟨U+200B⟩c⟨U+0000⟩"
    ordinary = "x² ≤ 5\n\t日本 é 👩\u200d🔬 👍🏽 🏃🏽\u200d♀\ufe0f ❤\ufe0f مرحبا 12\u00a0km"
    assert visible(ordinary) == ordinary


# One of each kind, ends of ranges included: fillers, selectors, tags, joiners, controls of old scripts and of music.
HIDDEN = (
    0x00, 0x0D, 0x1B, 0x7F, 0x85, 0x9B, 0xAD, 0x34F, 0x61C, 0x115F, 0x1160, 0x17B4, 0x180B, 0x180E, 0x180F, 0x200B,
    0x200C, 0x200D, 0x200F, 0x2028, 0x202A, 0x202E, 0x2060, 0x2065, 0x206A, 0x206F, 0x2800, 0x3164, 0xD800, 0xDFFF,
    0xFE00, 0xFE0E, 0xFE0F, 0xFEFF, 0xFFA0, 0xFFF0, 0xFFFB, 0x13430, 0x1BCA0, 0x1D159, 0x1D173, 0xE0000, 0xE0041,
    0xE007F, 0xE0100, 0xE01EF, 0xE0FFF,
)  # fmt: skip


@pytest.mark.parametrize("hidden", HIDDEN, ids=lambda code: f"U+{code:04X}")
def test_every_hidden_character_is_named(hidden: int) -> None:
    named = f"⟨U+{hidden:04X}⟩"
    assert visible(f"a{chr(hidden)}b") == f"a{named}b"
    # Behind an emoji as well, where it could carry a bit: a selector that picks its form may stand there once.
    assert visible(f"👍{chr(hidden) * 2}b").endswith(f"{named}b")


def test_every_format_character_but_visible_ones_is_named() -> None:
    drawn = {0x06DD, 0x070F, 0x0890, 0x0891, 0x08E2, 0x110BD, 0x110CD, *range(0x600, 0x606)}
    found = {at for at in range(0x110000) if unicodedata.category(chr(at)) == "Cf"} - drawn
    assert {at for at in found if visible(chr(at)) == chr(at)} == set()


def test_long_texts_keep_begin_and_end() -> None:
    text = "a" * 10_000 + "z" * 10_000
    short = shortened(text)
    assert len(short) < 8100
    assert short.startswith("aaa") and short.endswith("zzz")
    assert "12,000 characters left out" in short
    assert shortened("short") == "short"


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_browser_runs_our_script_and_nothing_else(hostile_run: Path, tmp_path: Path) -> None:
    assert CHROMIUM is not None
    # A line is appended that reports what the page became; the policy must keep even that from running.
    page = tmp_path / "page.html"
    page.write_text((hostile_run / "report.html").read_text() + "<script>document.title='injected'</script>")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command = [CHROMIUM, *flags, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()]
    dump = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    title = re.search(r"<title>(.*?)</title>", dump)
    assert title is not None
    assert "owned" not in title.group(1) and "injected" not in title.group(1)
    assert "VeriGRPO" in title.group(1)
