"""Signals for single tokens: rewards of steps, and a teacher's scores."""
