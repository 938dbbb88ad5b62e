"""Watching a trained agent, one timestep at a time, on a web page or in the terminal."""
