"""Move the weights from the learner to the generators."""
