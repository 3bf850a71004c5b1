"""Judges: language models behind a server that grade, rank or compare answers by a written rubric."""

# Folder with the judges' answers, in the run's folder.
CACHE_FOLDER = "judgements"
