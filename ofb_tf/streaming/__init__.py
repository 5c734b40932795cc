"""Streams that do not end: records, examples and labels joined and sampled as they arrive."""
