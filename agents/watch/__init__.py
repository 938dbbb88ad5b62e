"""A look at a trained agent, one timestep at a time: on a page or in the terminal."""
