"""Prediction: one job per variant, the processes that run the jobs, the journal, and the fidelity probe."""
