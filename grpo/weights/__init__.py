"""The way of the weights from the learner to the generators."""
