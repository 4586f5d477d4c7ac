"""Asking the variants of a run: streamed answers for the terminal and for a web page."""
