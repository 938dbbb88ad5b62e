"""Sweeps: grids of runs, and studies with Optuna."""
