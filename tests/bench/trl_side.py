"""TRL's side of the comparison: GRPOTrainer, with `transformers` generation, on what one of our configs says.

A process of its own, started by `quickstart_against_trl.py`, so that neither side's threads and memory disturb the
other. Policy, prompts (and their order), verifier and hyper-parameters are read from the config of our own run.
"""

from __future__ import annotations

import itertools
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from measurement import Measurement, Step

from grpo.config import TrainConfig
from grpo.config.file import load
from grpo.data.drawing.cursor import Cursor
from grpo.data.prompts import load_prompts
from grpo.policy.stored import load_tokenizer
from rewards.build import build_verifier

INSTALL = ".venv/bin/uv pip install --python .venv/bin/python trl==1.16.0 --constraint launch/requirements-cpu.lock"


def measure(
    config: Annotated[Path, typer.Argument(help="resolved config of our own run")],
    result: Annotated[Path, typer.Argument(help="JSON file to write the measurement to")],
    steps: Annotated[int, typer.Option(help="whole steps to make")],
    microbatch: Annotated[int, typer.Option(help="completions in one forward and backward pass")],
    generation: Annotated[str, typer.Option(help="`batch` (generate) or `continuous` (generate_batch)")] = "batch",
) -> None:
    """Train with TRL for some steps and keep the time of each."""
    try:
        from transformers import TrainerCallback
        from trl import GRPOConfig, GRPOTrainer
    except ImportError as missing:
        typer.echo(f"The comparison needs TRL ({missing}). Install it with: {INSTALL}", err=True)
        raise typer.Exit(2) from missing
    import torch
    from datasets import Dataset

    load_average = os.getloadavg()[0]
    settings = load(TrainConfig, config)
    rollout, algorithm, learner = settings.rollout, settings.algorithm, settings.learner
    if len(settings.verifiers) != 1 or algorithm.needs_reference or learner.schedule != "constant":
        raise ValueError("the comparison is for one verifier, no KL penalty and a constant learning rate")
    if algorithm.advantage not in ("group_std", "group_mean") or algorithm.ratio != "token":
        raise ValueError("the comparison is for GRPO's advantage, with or without deviation, and a clipped token ratio")
    verifier = build_verifier(settings.verifiers[0].use, settings.verifiers[0].options)
    completions_per_step = rollout.prompts_per_step * rollout.group_size
    completions_per_update = completions_per_step // algorithm.minibatches

    tokenizer = load_tokenizer(str(settings.policy.path))
    tokenizer.padding_side = "left"
    prompts = load_prompts(settings.data, tokenizer, max_tokens=rollout.max_prompt_tokens).prompts
    chosen = Cursor(prompts, settings.run.seed).next(rollout.prompts_per_step * steps)
    rows = [{"prompt": prompt.text, "reference": str(prompt.reference)} for prompt in chosen]

    lengths: list[tuple[int, ...]] = []
    rewards: list[float] = []

    def reward(
        completions: Sequence[str], completion_ids: Sequence[Sequence[int]], reference: Sequence[str], **_: Any
    ) -> list[float | None]:
        scores = [
            verifier(completion, answer, {}).score for completion, answer in zip(completions, reference, strict=True)
        ]
        lengths.append(tuple(len(ids) for ids in completion_ids))
        rewards.append(sum(score or 0.0 for score in scores) / len(scores))
        return scores

    epoch = time.time() - time.perf_counter()
    spent = {"generate": 0.0, "verify": 0.0}

    class Timed(GRPOTrainer):
        """The trainer as it is, with a clock at the two phases that it has methods for."""

        def _generate(self, *args: Any, **kwargs: Any) -> Any:
            begun = time.perf_counter()
            output = super()._generate(*args, **kwargs)
            spent["generate"] += time.perf_counter() - begun
            return output

        def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
            begun = time.perf_counter()
            output = super()._calculate_rewards(*args, **kwargs)
            spent["verify"] += time.perf_counter() - begun
            return output

    marks: list[tuple[float, dict[str, float]]] = []

    class Clock(TrainerCallback):
        """Notes the time after each whole step."""

        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            marks.append((time.perf_counter(), dict(spent)))

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step % algorithm.minibatches == 0:
                marks.append((time.perf_counter(), dict(spent)))

    with tempfile.TemporaryDirectory() as folder:
        arguments = GRPOConfig(
            output_dir=folder,
            model_init_kwargs={"dtype": "float32"},
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            dataloader_pin_memory=False,
            # One batch of completions, then `minibatches` optimizer steps on it.
            per_device_train_batch_size=microbatch,
            gradient_accumulation_steps=completions_per_update // microbatch,
            steps_per_generation=completions_per_step // microbatch,
            num_generations=rollout.group_size,
            max_completion_length=rollout.max_completion_tokens,
            temperature=rollout.temperature,
            use_transformers_continuous_batching=generation == "continuous",
            max_steps=steps * algorithm.minibatches,
            shuffle_dataset=False,
            # The objective and the optimizer of our config.
            loss_type="dapo",
            scale_rewards="group" if algorithm.advantage == "group_std" else "none",
            epsilon=algorithm.clip_low,
            epsilon_high=algorithm.clip_high,
            beta=0.0,
            learning_rate=learner.learning_rate,
            lr_scheduler_type="constant",
            warmup_steps=learner.warmup_steps,
            adam_beta1=learner.betas[0],
            adam_beta2=learner.betas[1],
            weight_decay=learner.weight_decay,
            max_grad_norm=learner.gradient_clip,
            seed=settings.run.seed,
            # Nothing is written and nothing is shown.
            report_to="none",
            logging_strategy="no",
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = Timed(
            model=str(settings.policy.path),
            reward_funcs=reward,
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[Clock()],
        )
        trainer.train()

    kept = []
    for number, ((begin, before), (end, after)) in enumerate(itertools.pairwise(marks)):
        generate_s, verify_s = after["generate"] - before["generate"], after["verify"] - before["verify"]
        kept.append(
            Step(
                ended=epoch + end,
                seconds=end - begin,
                generate_s=generate_s,
                verify_s=verify_s,
                learn_s=end - begin - generate_s - verify_s,
                completions=len(lengths[number]),
                tokens=sum(lengths[number]),
                longest=max(lengths[number]),
                reward=rewards[number],
                optimizer_steps=algorithm.minibatches,
            )
        )
    described = f"{torch.get_num_threads()} threads, {microbatch} completions a pass, {generation} generation"
    Measurement("TRL", described, load_average, tuple(kept), dict(enumerate(lengths, start=1))).write(result)


if __name__ == "__main__":
    typer.run(measure)
