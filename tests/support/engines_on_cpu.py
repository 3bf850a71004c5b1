"""Importing this imports what a learner rank on a CPU needs, so that ranks can be forked with all of it."""

from __future__ import annotations

import os

os.environ["DS_ACCELERATOR"] = "cpu"

import grpo.learner.rank  # noqa: F401
