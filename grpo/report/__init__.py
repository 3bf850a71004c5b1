"""What a run leaves behind: metrics, rollouts, figures, the closing table."""
