"""Instructions that a program can check, and their checks."""
