"""How a model is trained: loaded, planned, stepped, and watched. The stage is `harness.stages.train`."""
