"""The base model of a run: its location, its files, and its device."""
