"""Checks of what environments declare and return, each with an error of one line."""
