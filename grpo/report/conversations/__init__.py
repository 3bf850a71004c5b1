"""Conversations in what a run leaves."""
