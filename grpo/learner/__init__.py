"""One learner rank: DeepSpeed, its optimizer and its schedule. The only wing that imports DeepSpeed."""
