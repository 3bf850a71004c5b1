"""Checks and estimates before a run: config, memory, gold answers, isolation, profile."""
