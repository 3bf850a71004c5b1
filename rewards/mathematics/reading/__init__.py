"""From text to expressions: nothing here evaluates what it reads."""
