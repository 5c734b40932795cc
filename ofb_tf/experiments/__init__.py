"""The streaming simulation: serve → record → join → sample → train → measure, and its report."""
