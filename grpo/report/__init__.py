"""The records of a run: metrics, rollouts, logs, figures, and the closing table."""
