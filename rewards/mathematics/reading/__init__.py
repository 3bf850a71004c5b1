"""From text to expressions; nothing is evaluated here."""
