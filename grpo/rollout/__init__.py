"""Request groups, score them, and choose the groups of each step."""
