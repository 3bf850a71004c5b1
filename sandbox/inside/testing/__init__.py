"""The testers that run beside the program: cases, calls and a small pytest."""
