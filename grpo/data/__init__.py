"""Read data sources as prompts or supervised rows."""
