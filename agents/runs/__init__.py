"""Run directories: configuration, checkpoints, logs and profiling."""
