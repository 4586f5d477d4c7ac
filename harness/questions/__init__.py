"""QA files: reading, checking, grouping of near-duplicates, and model-free baselines."""
