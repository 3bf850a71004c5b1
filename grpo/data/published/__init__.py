"""Rows of published data sets whose shape the keys of `data` cannot name."""
