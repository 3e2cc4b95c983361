"""Training: the optimiser step, checkpoints and the run directory."""
