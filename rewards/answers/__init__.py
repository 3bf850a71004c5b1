"""Where an answer stands in a completion: boxes, statements, prose, corrections."""
