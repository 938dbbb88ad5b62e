"""Comparisons of settings over seeds and tasks: ``compare.py``."""
