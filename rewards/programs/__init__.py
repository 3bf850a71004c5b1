"""The programs in completions, and the tests in data sets that grade these programs."""
