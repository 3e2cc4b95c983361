"""Over-optimisation: seen early, in the evaluations of a run and in the rollouts of PPO, and acted on."""
