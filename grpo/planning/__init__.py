"""What is known before a run: the check, memory, golds, isolation, profile."""
