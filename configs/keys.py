"""Keys of the observations, shared by environments, policies and agents."""

TASK_KEY = "task"
"""Index of the task in its suite, a ``Discrete``."""
ENV_TASK_KEY = "env_task"
"""An environment's own observation ``task``, renamed because ``TASK_KEY`` is the suite's."""
MISSION_KEY = "mission"
"""Token ids of the mission, an integer ``Box`` of shape (length,)."""
DESIRED_GOAL_KEY = "desired_goal"
"""Goal to reach, as in Gymnasium-Robotics."""
ACHIEVED_GOAL_KEY = "achieved_goal"
"""Goal achieved in the current state, as in Gymnasium-Robotics."""
GOAL_KEYS = (ACHIEVED_GOAL_KEY, DESIRED_GOAL_KEY)
"""Keys that hindsight experience replay requires."""
GOAL_NAMES = (DESIRED_GOAL_KEY, "goal", "context")
"""Keys that by convention hold the goal to reach, or what an episode depends on."""
ACTION_MASK_KEY = "action_mask"
"""Mask of the available actions, a ``MultiBinary``; neither an input nor a context."""
CONTEXT_KEYS = (DESIRED_GOAL_KEY, MISSION_KEY, TASK_KEY)
"""Keys that were never inputs before runs stored their ``observation_keys``."""
