"""Judges: language models behind a server that grade, rank or compare answers by a written rubric."""
