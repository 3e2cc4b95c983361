"""Inputs nobody meant: mutated files, words, replies and templates, and what may come of them."""
