"""What the scores say: intervals, paired tests, verdicts, fidelity, alarms, breakdowns. Numbers in, numbers out."""
