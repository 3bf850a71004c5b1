"""Decides whether two expressions have the same value, within a limit on the work."""
