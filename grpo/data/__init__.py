"""From a data source to prompts and supervised rows."""
