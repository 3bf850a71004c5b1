"""Reward models in Ray processes of their own."""
