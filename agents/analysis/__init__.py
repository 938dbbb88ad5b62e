"""Analysis of how policy outputs depend on the observation, the context and both."""
