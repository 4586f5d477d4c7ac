"""Whether a running server answers as the run measured: what it is asked, what it replies, and what is wrong with it."""
