"""The page of `grpo view`: its shell, and the whole of it as one file that needs no server."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from grpo.report import run_files
from grpo.report.rollout_store import stored_steps
from grpo.view import learned as step_comparison
from grpo.view import payloads as view_data
from grpo.view.index import Filter
from grpo.view.runs import SOURCES, RunData

ASSETS = ("view.css", "view.js")
# What one file holds of each run and source: enough to read for an hour, and a few megabytes.
_GROUPS = 150
_TIMED_STEPS = 60
# Log-probabilities take more room than the text itself: only groups of short completions bring them.
_SHADED_TOKENS = 600


def page(exported: Mapping[str, Any] | None = None) -> str:
    """The page's HTML: with links to its script and style, or with these and `exported` inside."""
    environment = Environment(
        loader=PackageLoader("grpo.view", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sources = {
        name: resources.files("grpo.view").joinpath("templates", name).read_text(encoding="utf-8") for name in ASSETS
    }
    # The data stands in an element that is no script to a browser; without `<` it cannot end that element.
    data = json.dumps(exported, allow_nan=False).replace("<", "\\u003c") if exported is not None else ""
    return environment.get_template("view.html.j2").render(
        exported=exported is not None,
        data=Markup(data),
        style=Markup(sources["view.css"]),
        script=Markup(sources["view.js"]),
        style_hash=_hash(sources["view.css"]),
        script_hash=_hash(sources["view.js"]),
    )


def export(runs: Sequence[RunData], path: Path) -> Path:
    """Write the page as one file, with the curves and findings whole and a selection of groups.

    Of each run the groups are those whose rewards differ most, spread over all stored steps.
    """
    for run in runs:
        for index in run.indexes.values():
            index.refresh()
    data = {
        "made": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "overview": (overview := view_data.overview(runs)),
        "charts": view_data.charts(runs, [name for section in overview["sections"] for name in section["metrics"]]),
        "runs": [_exported(run) for run in runs],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".partial")
    beside.write_text(page(data), encoding="utf-8")
    os.replace(beside, path)
    return path


def _exported(run: RunData) -> dict[str, Any]:
    timed = [line.step for line in run.history.lines if "time/step_s" in line.metrics]
    stored = stored_steps(run.run_dir, run_files.EVALUATIONS)
    steps = stored if len(stored) > 1 else stored_steps(run.run_dir)
    return {
        "groups": {source: _groups(run, source) for source in SOURCES},
        "flags": run.flags(),
        "mismatch": view_data.mismatch(run),
        "learned": step_comparison.learned(run, steps[0], steps[-1]) if len(steps) > 1 else None,
        "timeline": {str(step): view_data.time_line(run, step) for step in _spread(timed, _TIMED_STEPS)},
    }


def _groups(run: RunData, source: str) -> dict[str, Any]:
    """Rows and details of the groups that the file holds."""
    listed = view_data.list_groups(run, source, Filter(), "spread", 0, 1_000_000)
    steps = _spread(sorted({row["step"] for row in listed["rows"]}), _GROUPS)
    each = max(1, _GROUPS // max(1, len(steps)))
    taken = {step: [row for row in listed["rows"] if row["step"] == step][:each] for step in steps}
    rows = [row for step in reversed(steps) for row in taken[step]]
    details = [
        view_data.group_detail(
            run, source, row["step"], row["group"], tokens=row["completions"] * row["tokens"] <= _SHADED_TOKENS
        )
        for row in rows
    ]
    return {**listed, "rows": rows, "details": details}


def _spread(steps: Sequence[int], most: int) -> list[int]:
    if len(steps) <= most:
        return list(steps)
    return sorted({steps[round(at * (len(steps) - 1) / (most - 1))] for at in range(most)})


def _hash(source: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
