"""Finding the answer in a completion: boxes, statements, prose, corrections."""
