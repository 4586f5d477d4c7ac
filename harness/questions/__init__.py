"""Questions in: QA files read and checked, near-duplicates grouped, what needs no model to answer."""
