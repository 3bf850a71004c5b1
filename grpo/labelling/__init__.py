"""Labelling: people or judges compare stored answers; the labels become preference rows (docs/preferences.md)."""
