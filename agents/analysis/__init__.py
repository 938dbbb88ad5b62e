"""Analysis of policies: the dependence of outputs on the observation, the context and both."""
