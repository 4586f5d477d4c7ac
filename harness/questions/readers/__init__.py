"""Readers of QA files: containers (what the bytes are), documents (where the rows are) and shapes (what a row's columns mean)."""
