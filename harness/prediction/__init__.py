"""Who is asked which questions: jobs, the processes that run them, the journal, and the fidelity probe."""
