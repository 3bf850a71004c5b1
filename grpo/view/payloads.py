"""Make the data for the page of `grpo view` from run folders, as plain data. This module serves and draws nothing.

A text may come from a policy, a dataset or the name of a folder. Every such text goes through `visible`, so that the
text cannot reorder or silently cut the page. The page inserts these texts only as text, never as markup.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from grpo.report import run_files
from grpo.report.charts import MISMATCH
from grpo.report.closing_table import closing_table
from grpo.report.conversations.columns import stored_dialogue
from grpo.report.metrics_log import History
from grpo.report.rollout_store import plain, step_path, stored_steps
from grpo.report.step_time import TIMED_PARTS
from grpo.report.timeline import StepLanes, step_lanes
from grpo.types import ActorId, ActorKind, Phase
from grpo.view.checks import checks
from grpo.view.columns import STATUSES
from grpo.view.curves import charts, main_charts, plain_chart, run_chart
from grpo.view.index import Filter, Order
from grpo.view.recipe import is_supervised, mismatch_alarm_of, recipe
from grpo.view.runs import SOURCES, RunData, shown
from grpo.view.tokens import pieces
from grpo.visible import visible

MISMATCH_METRICS = (
    "sync/probe_mean_difference",
    "learner/ratio_p01",
    "learner/ratio_p99",
    "learner/ratio_max",
    "learner/effective_sample_share",
    "learner/masked_share",
    "learner/importance_weight",
)
# For a run that did not record each actor: the actors that are busy in a phase. If a phase has no entry, the page shows
# the name of the phase.
ACTORS = {"generate": "generators", "verify": "verifiers", "learn": "learner", "sync": "weight sync"}
# Order of the lanes: the order in which data passes through the actors.
_LANES = (ActorKind.GENERATOR, ActorKind.VERIFIERS, ActorKind.LEARNER, ActorKind.DRIVER)
# Largest number of tokens of a completion whose log-probabilities are sent. The whole text is always sent.
_MOST_TOKENS = 4000


def state(runs: Sequence[RunData]) -> dict[str, Any]:
    """The data that changes during a run. When `version` changes, the page requests all other data again."""
    return {
        "version": str(abs(hash(tuple(run.stamp for run in runs)))),
        "unread": sum(index.unread for run in runs for index in run.indexes.values()),
    }


def overview(runs: Sequence[RunData]) -> dict[str, Any]:
    """The runs with their outcomes, the main curves, and the names of all metrics, grouped by their first word."""
    histories = [run.history for run in runs]
    names = sorted({name for history in histories for name in history.names()} - {"time/run_s"})
    sections: dict[str, list[str]] = {}
    for name in names:
        sections.setdefault(name.split("/")[0], []).append(name)
    return shown(
        {
            "runs": [
                {
                    "name": run.name,
                    "folder": str(run.run_dir),
                    "command": f"grpo view {shlex.quote(str(run.run_dir))}",
                    "recipe": recipe(run.settings),
                    "table": closing_table(run.name, history).rows,
                    "ending": run.ending,
                    "without": sections_without(run),
                    "checks": checks(run),
                    "last_step": history.last_step(),
                    "last_time": history.lines[-1].time if history.lines else None,
                    "stored": list(stored_steps(run.run_dir)),
                    "evaluated": list(stored_steps(run.run_dir, run_files.EVALUATIONS)),
                    "timed": timed_steps(history),
                    "config": run.config,
                }
                for run, history in zip(runs, histories, strict=True)
            ],
            "statuses": STATUSES,
            "sections": [{"name": name, "metrics": members} for name, members in sections.items()],
        }
    ) | {"main": main_charts(runs)}


def sections_without(run: RunData) -> list[str]:
    """The sections of the page for which the run will have no data: supervised fine-tuning samples no completions."""
    has_completions = any(stored_steps(run.run_dir, folder) for folder in SOURCES.values())
    return ["groups", "learned", "flags", "mismatch"] if is_supervised(run.settings) and not has_completions else []


def list_groups(
    run: RunData, source: str, wanted: Filter, order: Order = "newest", offset: int = 0, limit: int = 100
) -> dict[str, Any]:
    """The groups in which a completion passes the filter: up to `limit` groups, from number `offset` on."""
    index = run.indexes[source]
    snapshot, result = index.search(wanted, order)
    return {
        "groups": len(result.groups),
        "completions": result.completions,
        "of_groups": len(snapshot.first_N),
        "of_completions": len(snapshot.step_R),
        "unread": index.unread,
        "problems": [visible(problem) for problem in index.problems.values()],
        "rows": shown([row | {"prompt": row["prompt"][:200]} for row in snapshot.rows(result, offset, limit)]),
    }


def group_details(
    run: RunData, source: str, step: int, groups: Sequence[int], *, shaded_tokens: int = 0
) -> list[dict[str, Any]]:
    """Whole groups of a step: prompt, reference, and each completion with its verdicts.

    Args:
        run: the run.
        source: "training" or "held-out".
        step: the step.
        groups: indices of the groups in the step.
        shaded_tokens: a group with at most this number of tokens also gets the log-probability of each token.

    Raises:
        LookupError: the group is not stored, or is not stored any more.
    """
    path = step_path(run.run_dir, step, SOURCES[source])
    if not path.is_file():
        raise LookupError(f"no completions of step {step} are stored")
    rows: dict[int, list[dict[str, Any]]] = {group: [] for group in groups}
    for row in pq.read_table(path, filters=pc.field("group").isin(groups)).to_pylist():
        rows[row["group"]].append(row)
    for group, members in rows.items():
        if not members:
            raise LookupError(f"step {step} has no group {group}")
    return [_group_detail(run, rows[group], shaded_tokens) for group in groups]


def _group_detail(run: RunData, rows: Sequence[Mapping[str, Any]], shaded_tokens: int) -> dict[str, Any]:
    is_shaded = sum(row["completion_tokens"] for row in rows) <= shaded_tokens
    tokenizer = run.tokenizer() if is_shaded else None
    completions = []
    for row in rows:
        versions = sorted({span["policy_version"] for span in row["spans"]})
        names = ("sample", "completion", "completion_tokens", "finish_reason", "verdicts", "reward", "advantage")
        completion = {name: row[name] for name in names} | {"versions": versions} | _conversation(row)
        completions.append(completion | ({"tokens": _tokens(row, tokenizer)} if is_shaded else {}))
    first = rows[0]
    return shown(
        {
            **{name: first[name] for name in ("step", "group", "prompt_id", "prompt")},
            "reference": plain(first["reference"]),
            "has_tokenizer": tokenizer is not None,
            "completions": completions,
        }
    )


def _conversation(row: Mapping[str, Any]) -> dict[str, Any]:
    """What was said after the first prompt, and how it ended; empty for a single turn."""
    dialogue = stored_dialogue(row)
    if dialogue is None:
        return {}
    said = [{"role": each.role, "name": each.name, "content": each.content} for each in dialogue.messages]
    failures = [f"{number} {kind}" for kind, number in dialogue.failures.items()]
    return {
        "turns": said[dialogue.opening :],
        "calls": dialogue.calls,
        "call_failures": ", ".join(failures),
        "ended": ": ".join(filter(None, (dialogue.ended, dialogue.reason))),
        "waited_s": round(dialogue.waited_s, 3),
    }


def _tokens(row: Mapping[str, Any], tokenizer: Tokenizer | None) -> list[list[Any]]:
    """[text, log-probability, policy version] of each token; no log-probability of a token that the world gave."""
    ids = row["token_ids"][:_MOST_TOKENS]
    texts = pieces(tokenizer, ids) if tokenizer else [f"{token} " for token in ids]
    versions = [span["policy_version"] for span in row["spans"] for _ in range(span["start"], span["stop"])]
    logprobs: list[float | None] = [round(logprob, 4) for logprob in row["logprobs"][: len(ids)]]
    for given in row.get("given") or ():
        for at in range(given["start"], min(given["stop"], len(ids))):
            logprobs[at] = None
    return [list(token) for token in zip(texts, logprobs, versions[: len(ids)], strict=True)]


def mismatch(run: RunData) -> dict[str, Any]:
    """The difference between learner and generators, and the metrics of the correction."""
    alarm, chart = mismatch_alarm_of(run.settings), run_chart(run, MISMATCH)
    first = run.history.curve(MISMATCH.metric).finite()
    return shown(
        {
            "alarm": alarm,
            "last": first.values[-1] if first else None,
            "worst": max(first.values) if first else None,
            "worst_step": first.steps[first.values.index(max(first.values))] if first else None,
            "above": [step for step, value in zip(first.steps, first.values, strict=True) if alarm and value > alarm],
        }
    ) | {
        "charts": [
            *([{"metric": MISMATCH.metric} | plain_chart(chart)] if chart else []),
            *charts([run], MISMATCH_METRICS),
        ]
    }


def timed_steps(history: History) -> list[int]:
    """The steps that have a time line."""
    return list(history.curve("time/step_s").finite().steps)


def time_line(run: RunData, step: int) -> dict[str, Any]:
    """The busy times in a step: a lane for each actor, with times in seconds since the step began.

    If the run did not record each actor, there is a lane for each kind of actor. The times of a lane are the waiting
    times of the training loop.

    Raises:
        LookupError: the run did not time that step.
        ValueError: `timeline.jsonl` has a line of a different format.
    """
    line = next((line for line in run.history.lines if line.step == step), None)
    if line is None or not math.isfinite(line.metrics.get("time/step_s", math.nan)):
        raise LookupError(f"step {step} was not timed")
    seconds = line.metrics
    recorded = step_lanes(run.time_lines, step)
    spans = _recorded_spans(recorded) if recorded else _timed_spans(seconds)
    return shown(
        {
            "step": step,
            "seconds": seconds["time/step_s"],
            "end": max([seconds["time/step_s"], *(span["to"] for span in spans)]),
            "recorded": recorded is not None or any(name.endswith("_from_s") for name in seconds),
            "by_actor": recorded is not None,
            "complete": recorded is None or recorded.complete,
            "lanes": [
                {"actor": actor, "spans": [span for span in spans if span["actor"] == actor]}
                for actor in dict.fromkeys(span["actor"] for span in spans)
            ],
            "compute": seconds.get("learner/compute_s"),
        }
    )


def _recorded_spans(recorded: StepLanes) -> list[dict[str, Any]]:
    """The intervals that each actor measured, in the order of lanes and of time."""
    return [
        {"actor": str(actor), "phase": what, "from": begin, "to": end}
        for actor in sorted(recorded.lanes, key=_lane_order)
        for begin, end, what in sorted(
            (begin, end, what) for what, intervals in recorded.lanes[actor].items() for begin, end in intervals
        )
    ]


def _lane_order(actor: ActorId) -> tuple[int, str, int]:
    place = actor.place
    return _LANES.index(actor.kind), place if isinstance(place, str) else "", place if isinstance(place, int) else 0


def _timed_spans(seconds: Mapping[str, float]) -> list[dict[str, Any]]:
    """The phases for which the loop waited in a step, and the evaluation and checkpoint after the step."""
    begins = {phase.value: seconds[name] for phase in Phase if (name := f"time/{phase}_from_s") in seconds}
    at = 0.0
    spans = []
    for phase in sorted(begins, key=begins.__getitem__) or [
        part for part in TIMED_PARTS if f"time/{part}_s" in seconds
    ]:
        begin = begins.get(phase, at)
        at = begin + seconds.get(f"time/{phase}_s", 0.0)
        spans.append({"actor": ACTORS.get(phase, phase), "phase": phase, "from": begin, "to": at})
    end = seconds["time/step_s"]
    for phase, actor in (("eval", "generators"), ("checkpoint", "learner")):
        length = seconds.get(f"time/{phase}_s", 0.0)
        if length:
            spans.append({"actor": actor, "phase": phase, "from": end, "to": end + length})
            end += length
    return spans
