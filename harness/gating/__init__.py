"""Is a run worse than its baseline? The baseline file, the limits, and the non-inferiority tests."""
