"""`grpo simulate`: run the simulations of the command line, and print a table or JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from grpo.config import TrainConfig
from grpo.planning.simulation.calibration import speeds_of
from grpo.planning.simulation.lengths import SYNTAX, Lengths, modelled, recorded
from grpo.planning.simulation.loop import Speeds
from grpo.planning.simulation.sweep import ASSUMED, Sweep, best_splits, record_of, table_of
from grpo.terminal import literal

Number = TypeVar("Number", int, float)


@dataclass(frozen=True, slots=True)
class SimulationRequest:
    """The inputs of `grpo simulate`.

    Attributes:
        settings: settings of the run.
        run: folder of a run. If `lengths` is None, the lengths come from this run. Speeds that are not in `speeds`
            always come from this run.
        lengths: description of a distribution, to use instead of the run's lengths.
        speeds: speeds by their names in `Speeds`. These speeds replace those of the run.
        prompt_tokens: length of a prompt, in tokens; None means the longest prompt that the config allows.
        steps: number of steps to measure.
        seed: seed of the lengths.
        scale_batch: whether the number of prompts in a step grows in proportion to the number of GPUs.
    """

    settings: TrainConfig
    run: Path | None
    lengths: str | None
    speeds: Mapping[str, float]
    prompt_tokens: int | None
    steps: int
    seed: int
    scale_batch: bool

    def sweep(self) -> Sweep:
        """Return the sweep, with lengths and speeds from the run or from the options.

        Raises:
            ValueError: neither a run nor a distribution is given, or the given source is not usable.
        """
        rollout = self.settings.rollout
        prompt_tokens = rollout.max_prompt_tokens if self.prompt_tokens is None else self.prompt_tokens
        return Sweep(
            self.settings, self._lengths(), self._speeds(), prompt_tokens, self.steps, self.seed, self.scale_batch
        )

    def _lengths(self) -> Lengths:
        if self.lengths is not None:
            return modelled(self.lengths, self.settings.rollout.max_completion_tokens)
        if self.run is None:
            raise ValueError(f"the lengths are missing; give the folder of a run with --from, or --lengths {SYNTAX}")
        return recorded(self.run)

    def _speeds(self) -> Speeds:
        names = {field.name for field in dataclasses.fields(Speeds)}
        if names <= set(self.speeds):
            return Speeds(**self.speeds)
        return dataclasses.replace(speeds_of(self.run) if self.run else ASSUMED, **self.speeds)


def show(
    request: SimulationRequest, gpus: str, lags: str, shares: str, console: Console, *, all_splits: bool, as_json: bool
) -> None:
    """Run the simulations of a request, and print the results.

    Args:
        request: simulations to run.
        gpus: numbers of GPUs, separated by commas.
        lags: policy lags, separated by commas.
        shares: shares of the GPUs that generate, separated by commas.
        console: console to print to.
        all_splits: whether to show every split of the GPUs, not only the fastest.
        as_json: whether to print JSON. The JSON always contains every split.

    Raises:
        ValueError: a list, or a number in a list, is not usable.
    """
    sweep = request.sweep()
    rows = sweep.rows(
        numbers(gpus, int, "--gpus"), numbers(lags, int, "--lag"), numbers(shares, float, "--generator-share")
    )
    if as_json:
        # Write directly, because rich would wrap the lines.
        console.file.write(json.dumps(record_of(sweep, rows), indent=2) + "\n")
        return
    console.print(table_of(rows if all_splits else best_splits(rows), rows))
    for line in _assumptions(request, sweep):
        console.print(literal(line, "dim"))


def numbers(text: str, kind: Callable[[str], Number], name: str) -> list[Number]:
    """Return the numbers of a list such as `8,64`, sorted and without duplicates.

    Raises:
        ValueError: `text` is not a list of numbers of 0 or more.
    """
    try:
        values = sorted({kind(item) for item in text.split(",")})
    except ValueError:
        raise ValueError(f"{name} is {text!r}; expected numbers separated by commas, for example 8,64") from None
    if values[0] < 0:
        raise ValueError(f"{name} holds {values[0]}; expected numbers of 0 or more")
    return values


def _assumptions(request: SimulationRequest, sweep: Sweep) -> list[str]:
    speeds, rollout = sweep.speeds, request.settings.rollout
    prompts = f"{rollout.prompts_per_step} prompts a step{' (more with more GPUs)' if sweep.scale_batch else ''}"
    origin = f"the run in {request.run}" if request.run else "estimates, not measured: docs/simulator.md"
    return [
        f"Lengths: {request.lengths or f'the stored rollouts of {request.run}'}; {prompts}, {sweep.prompt_tokens} "
        f"tokens each, {rollout.group_size} completions per prompt; {sweep.steps} steps measured; seed {sweep.seed}.",
        f"Engine step {speeds.decode_base_s * 1e3:.3g} ms + {speeds.decode_sequence_s * 1e6:.3g} µs a sequence; "
        f"prefill {speeds.prefill_token_s * 1e6:.3g} µs a token; training step {speeds.learn_base_s:.3g} s + "
        f"{speeds.learn_token_s * 1e6:.3g} GPU-µs a token; push {speeds.push_s:.3g} s.",
        f"Speeds that no option gives are from {origin}." if request.run else f"Speeds that no option gives: {origin}.",
        "Column `over sync`: completions/s, divided by the completions/s of the fastest split with lag 0. In the row "
        "`all GPUs, in turns`, the change between generators and learner takes no time.",
    ]
