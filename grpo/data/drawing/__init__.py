"""Which prompts come next: a shuffled walk that resumes, or pools by measured difficulty."""
