"""Reading and comparing mathematical answers, without evaluating any text."""
