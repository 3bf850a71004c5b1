"""Reads text as expressions. Nothing is evaluated here."""
