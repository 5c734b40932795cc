"""`python -m benchmarks`: measured comparisons of ofb-tf with named peers. See README.md."""
