"""Compute the text of each token of a stored completion, with the run's tokenizer. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from grpo.report import run_files

_FILE = "tokenizer.json"


def find_tokenizer(run_dir: Path, policy_path: str | None) -> Path | None:
    """Find the run's tokenizer: in its newest checkpoint, in its `policy/`, or in the run's starting policy."""
    checkpoints = run_dir / run_files.CHECKPOINTS
    newest_first = [checkpoints / run_files.step_name(step) for step in reversed(run_files.steps_in(checkpoints))]
    policies = [folder / run_files.POLICY for folder in (*newest_first, run_dir)]
    policies += [Path(policy_path)] if policy_path else []
    return next((path / _FILE for path in policies if (path / _FILE).is_file()), None)


def pieces(tokenizer: Tokenizer, token_ids: Sequence[int]) -> list[str]:
    """The text that each token adds. If a character needs several tokens, only the last of these tokens adds text."""
    stream = DecodeStream(skip_special_tokens=False)
    return [stream.step(tokenizer, token) or "" for token in token_ids]
