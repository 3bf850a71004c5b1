"""Scored groups: which may be requested, which a step takes, and those under way."""
