"""Reward models: losses, statistics of scores, and rewards that are normalised apart."""
