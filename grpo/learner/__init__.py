"""One learner rank: DeepSpeed, its optimizer and its schedule. Only this package imports DeepSpeed."""
