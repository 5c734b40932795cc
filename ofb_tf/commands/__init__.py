"""The commands of `ofb`: flags → configuration → one library call."""
