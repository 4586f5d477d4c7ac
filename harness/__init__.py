"""A benchmarking harness for fine-tuned question answering models."""

__version__ = "0.1.0"
