"""Evaluation: held-out preferences and the statistics behind every interval."""
