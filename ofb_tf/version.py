"""The only version string of the package."""

__version__ = "0.1.0.dev0"
"""The version of the package, by semantic versioning."""
