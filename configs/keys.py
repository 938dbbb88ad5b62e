"""Keys of the observations, in one place for environments, policies and agents."""

TASK_KEY = "task"
"""Index of the task, a ``Discrete``."""
MISSION_KEY = "mission"
"""Token ids of the mission, a ``Box`` of integers (length,)."""
DESIRED_GOAL_KEY = "desired_goal"
"""Goal to reach, as in Gymnasium's goal environments."""
ACHIEVED_GOAL_KEY = "achieved_goal"
"""Goal that the current state achieves, as in Gymnasium's goal environments."""
GOAL_KEYS = (ACHIEVED_GOAL_KEY, DESIRED_GOAL_KEY)
"""Keys that hindsight experience replay relabels."""
ACTION_MASK_KEY = "action_mask"
"""Mask of the available actions, a ``MultiBinary``; neither an input nor a context."""
CONTEXT_KEYS = (DESIRED_GOAL_KEY, MISSION_KEY, TASK_KEY)
"""Keys that can hold the context, the most specific first; all others are inputs."""
