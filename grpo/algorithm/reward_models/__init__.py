"""Reward models: their losses, and the statistics of their scores."""
