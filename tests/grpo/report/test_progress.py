from __future__ import annotations

import logging
import random
import sys
from io import StringIO

import pytest
from fake_run import make_metrics
from rich.console import Console

from grpo.report.display import GRPO_FIELDS, SFT_FIELDS, sparkline
from grpo.report.live_progress import LiveProgress
from grpo.report.progress import PlainProgress, Progress, open_progress
from grpo.terminal import Terminal
from grpo.types import Phase

SHOW_CURSOR, HIDE_CURSOR = "\x1b[?25h", "\x1b[?25l"


def plain(total_steps: int | None = 200) -> tuple[Progress, StringIO]:
    file = StringIO()
    return open_progress("GRPO", total_steps=total_steps, console=Console(file=file, width=80)), file


def live(width: int = 80) -> tuple[LiveProgress, StringIO]:
    file = StringIO()
    console = Console(file=file, width=width, height=24, force_terminal=True, _environ={"TERM": "xterm"})
    progress = open_progress("GRPO", total_steps=200, console=console)
    assert isinstance(progress, LiveProgress)
    return progress, file


def drawn(progress: LiveProgress, width: int = 80) -> str:
    """The panel as it stands, without colours."""
    console = Console(file=StringIO(), width=width)
    console.print(progress._render())
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_a_log_gets_one_line_per_step_within_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grpo.report.progress._SECONDS_BETWEEN_LINES", 0.0)
    progress, file = plain(total_steps=1000)
    generator = random.Random(0)
    progress.step(0, {"eval/accuracy": 0.45})
    for step in range(1, 31):
        progress.step(step, make_metrics(generator, step, 0.7) | {"throughput/tokens_per_s": 123456.0})
    lines = file.getvalue().splitlines()
    assert isinstance(progress, PlainProgress)
    assert len([line for line in lines if "/1000" in line]) == 31
    assert len([line for line in lines if "reward" in line]) == 2
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in file.getvalue()
    assert "0.450" in lines[1] and "0.700" in lines[2] and "123,456" in lines[2]


def test_every_evaluation_stays_in_the_scrollback() -> None:
    progress, file = live()
    for step, accuracy in ((0, 0.25), (5, 0.5)):
        progress.step(step, {"eval/accuracy": accuracy})
        progress.step(step + 1, {"reward/mean": 0.5})
    progress.close()
    assert [f"step {step}: held-out accuracy" in file.getvalue() for step in (0, 1, 5, 6)] == [True, False, True, False]


def test_a_log_passes_over_fast_steps_but_no_evaluation_and_not_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: seconds[0])
    progress, file = plain(total_steps=50)
    for step in range(1, 51):
        seconds[0] += 0.125  # exact in binary, so that eight of them make a second
        progress.step(step, {"reward/mean": 0.5} | ({"eval/accuracy": 0.9} if step == 12 else {}))
    shown = [int(line.split("/50")[0]) for line in file.getvalue().splitlines() if "/50" in line]
    assert shown == [1, 9, 12, 20, 28, 36, 44, 50]


def test_heads_stand_over_their_figures() -> None:
    progress, file = plain()
    progress.step(7, {field.metric: 0.125 for field in GRPO_FIELDS})
    head, line = file.getvalue().splitlines()
    end = 9
    for field in GRPO_FIELDS:
        end += field.width
        assert head[:end].endswith(" " + field.short), field
        assert line[:end].endswith(field.format(0.125)), field
    assert sum(field.width for field in GRPO_FIELDS) + 9 + 8 <= 80


def test_a_missing_metric_leaves_its_column_blank() -> None:
    progress, file = plain()
    progress.step(1, {"reward/mean": 0.5})
    assert file.getvalue().splitlines()[1].split() == ["1/200", "0.500"]


def test_phases_say_what_they_did_and_how_they_ended() -> None:
    progress, file = plain()
    with progress.phase(Phase.START, "starting 2 generators [x]"):
        assert "starting 2 generators [x] ..." in file.getvalue()
    with pytest.raises(KeyboardInterrupt), progress.phase(Phase.EVALUATE, "evaluating"):
        raise KeyboardInterrupt
    lines = file.getvalue().splitlines()
    assert lines[1] == "GRPO: starting 2 generators [x]: 0.0 s"
    assert lines[3] == "GRPO: evaluating: stopped after 0.0 s (KeyboardInterrupt)"


def test_remaining_time_follows_the_pace_of_the_last_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("grpo.report.progress.time.monotonic", lambda: now[0])
    progress, file = plain(total_steps=200)
    for step in range(1, 101):
        now[0] += 100.0 if step < 50 else 2.0
        progress.step(step, {})
    assert file.getvalue().splitlines()[-1].split() == ["100/200", "3:20"]


def test_the_panel_shows_the_last_step_and_the_last_evaluation() -> None:
    progress, _ = live()
    try:
        assert drawn(progress).strip() == ""
        progress.step(10, make_metrics(random.Random(0), 10, 0.5) | {"eval/accuracy": 0.625})
        progress.step(11, make_metrics(random.Random(0), 11, 0.75))
        panel = drawn(progress)
    finally:
        progress.close()
    assert "step 11/200" in panel
    assert "reward 0.750" in panel and "accuracy 0.750" in panel
    assert "held-out 0.625 at step 10" in panel
    assert "▁█" in panel
    assert max(map(len, panel.splitlines())) == 80


def test_a_figure_that_the_last_step_lacks_is_not_carried_on() -> None:
    progress, _ = live()
    try:
        progress.step(1, {"reward/mean": 0.5, "rollout/accuracy": 0.25})
        progress.step(2, {"reward/mean": float("nan")})
        panel = drawn(progress)
    finally:
        progress.close()
    assert "0.250" not in panel and "reward nan" in panel


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_the_panel_fits_any_width(width: int) -> None:
    progress, _ = live(width)
    try:
        progress.step(11, make_metrics(random.Random(0), 11, 0.75))
        with progress.phase(Phase.EVALUATE, "evaluating on 512 held-out prompts of a data set with a long name"):
            panel = drawn(progress, width)
    finally:
        progress.close()
    assert max(map(len, panel.splitlines())) <= width


def test_the_terminal_is_given_back_also_after_an_interrupt() -> None:
    before = sys.stdout
    progress, file = live()
    with pytest.raises(KeyboardInterrupt):
        try:
            with progress.phase(Phase.START, "starting 2 generators"):
                raise KeyboardInterrupt
        finally:
            progress.close()
    progress.close()
    output = file.getvalue()
    assert output.count(HIDE_CURSOR) == output.count(SHOW_CURSOR) == 1
    assert output.rindex(SHOW_CURSOR) > output.rindex(HIDE_CURSOR)
    assert "starting 2 generators: stopped after" in output
    assert sys.stdout is before


def test_log_handlers_made_before_are_led_around_the_panel_and_put_back(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("an.engine")
    handler = logging.StreamHandler(sys.stderr)
    logger.addHandler(handler)
    own = sys.stderr
    try:
        progress, file = live()
        try:
            logger.warning("cache is full")
            assert handler.stream is not own
        finally:
            progress.close()
        assert handler.stream is own
    finally:
        logger.removeHandler(handler)
    # Printed through the console that draws the panel, which knows where it stands; not across it.
    assert "cache is full" in file.getvalue()
    assert "cache is full" not in capsys.readouterr().err


def test_colours_in_a_line_without_end_are_no_text() -> None:
    file = StringIO()
    terminal = Terminal(file=file, width=80, height=24, force_terminal=True, _environ={"TERM": "xterm"})
    progress = open_progress("GRPO", total_steps=200, console=terminal)
    stream = sys.stdout
    try:
        print("\x1b[32mhalf a line\x1b[0m", end="", flush=True)
        print("\x1b[0m", end="", flush=True)
        print("whole line")
    finally:
        progress.close()
    # What Ray's colorama does when Python ends.
    stream.write("\x1b[0m")
    printed = file.getvalue()
    stream.flush()
    assert file.getvalue() == printed
    assert "half a line" in printed and "whole line" in printed
    assert "⟨U+001B⟩" not in printed


def test_supervised_fine_tuning_shows_its_loss() -> None:
    file = StringIO()
    progress = open_progress("SFT", total_steps=700, fields=SFT_FIELDS, console=Console(file=file, width=80))
    progress.step(1, {"learner/loss": 3.25, "throughput/tokens_per_s": 5000.0, "learner/learning_rate": 0.004})
    head, line = file.getvalue().splitlines()
    assert head.split() == ["step", "loss", "grad", "lr", "tok/s", "left"]
    assert line.split() == ["1/700", "3.2500", "0.004000", "5,000"]


def test_sparkline_spans_its_values() -> None:
    assert sparkline([0.0, 0.5, 1.0]) == "▁▅█"
    assert sparkline([3.0, 3.0]) == "▁▁"
    assert sparkline([]) == ""
