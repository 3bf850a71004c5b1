"""Checks of verifiers and of data sets before and after a run."""
