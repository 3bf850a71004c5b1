"""Benchmarks of a policy: tasks, sampling, verdicts, statistics, comparison."""
