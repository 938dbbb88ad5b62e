"""Missions and other texts of observations, as arrays of numbers."""
