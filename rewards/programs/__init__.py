"""Programs in completions and the tests of data sets that grade them."""
