"""Checks of what environments declare and return, each with a one-line error message."""
