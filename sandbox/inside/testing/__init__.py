"""Testers, which run in a separate cell from the program: test cases, calls to the program, and a small pytest."""
