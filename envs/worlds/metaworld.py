"""Meta-World's fifty v3 tasks as single environments: ``Meta-World/reach-v3`` and so on.

The ids are registered when this module is imported, which needs the package ``metaworld``.
"""

from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from numpy.typing import NDArray

from mirl.envs.type_aliases import Array, Info

N_STEPS = 500
"""Timesteps of an episode; Meta-World only truncates episodes."""


class MetaWorldEnv(gym.Env[NDArray[np.float32], NDArray[np.float32]]):
    """One Meta-World task as in its multitask benchmarks, with the goal in the observation.

    Each episode draws the positions of objects and goal from the distribution from which the
    benchmarks (MT1, MT10, MT50) draw their fifty fixed positions. Here no position occurs twice, so
    evaluation positions have not been seen in training; the seed of ``reset`` determines them all.
    The observation (39,) is float32 with infinite bounds, because Meta-World's bounds differ
    between tasks and its own first observations violate them.

    Args:
        task: Meta-World's name of the task.
        reward_function_version: ``v2``, Meta-World's default in [0, 10], or ``v1``, that of the
            first release.
        terminate_on_success: whether the first success ends the episode.
        render_mode: render mode of MuJoCo.
        camera_name: camera of the rendered pictures.
    """

    metadata = {  # noqa: RUF012  (gymnasium's own declaration)
        "render_modes": ["rgb_array", "human"],
        "render_fps": 80,
    }

    def __init__(
        self,
        task: str,
        reward_function_version: Literal["v1", "v2"] = "v2",
        terminate_on_success: bool = False,
        render_mode: Literal["rgb_array", "human"] | None = None,
        camera_name: str = "corner2",
    ) -> None:
        self.render_mode = render_mode
        self._terminate_on_success = terminate_on_success
        self._camera_name = camera_name
        build = ALL_V3_ENVIRONMENTS[task]
        self._sawyer: Any = build(
            render_mode=render_mode,
            reward_function_version=reward_function_version,
            camera_name=camera_name,
        )
        # The same as set_task() does for a stored position; here the positions are drawn.
        self._sawyer._set_task_called = True
        self._sawyer._set_task_inner()
        self._sawyer._partially_observable = False
        # This space was computed while the goal was hidden, and steps would be clipped to it.
        del self._sawyer.sawyer_observation_space
        # Draw from the environment's own generator instead of numpy's global one.
        self._sawyer.seeded_rand_vec = True
        self.observation_space = spaces.Box(-np.inf, np.inf, (39,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (4,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: Info | None = None
    ) -> tuple[NDArray[np.float32], Info]:
        """Draw positions of the objects and the goal.

        Args:
            seed: seed of the generator; None continues it.
            options: unused.

        Returns:
            The observation, (39,), and Meta-World's info.
        """
        super().reset(seed=seed)
        if seed is not None:
            self._sawyer.seed(seed)
        # The package's reset() draws all positions twice, and its observation may still show the
        # first ones. So positions are drawn once here and kept during its reset().
        self._sawyer._freeze_rand_vec = False
        self._sawyer.reset_model()
        self._sawyer._freeze_rand_vec = True
        observation, info = self._sawyer.reset()
        return observation.astype(np.float32), info

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], float, bool, bool, Info]:
        """Move the gripper; ``success`` in the info is 1.0 while the task is solved.

        Args:
            action: movement of the gripper and its opening, (4,).

        Returns:
            Observation, reward, terminated, truncated and info.
        """
        # Meta-World itself never terminates, so its flag is ignored.
        observation, reward, _, truncated, info = self._sawyer.step(action)
        terminated = self._terminate_on_success and bool(info["success"])
        return observation.astype(np.float32), float(reward), terminated, bool(truncated), info

    def render(self) -> Array | None:
        """Return the picture, (H, W, 3) in uint8, or None if MuJoCo renders to a window."""
        picture: Array | None = self._sawyer.render()
        if picture is None:
            return None
        # Several of Meta-World's cameras are mounted upside down.
        up = self._sawyer.data.camera(self._camera_name).xmat.reshape(3, 3)[:, 1]
        if up[2] < 0:
            return picture[::-1, ::-1]
        return picture

    def close(self) -> None:
        """Free MuJoCo's renderer."""
        self._sawyer.close()


for _name in ALL_V3_ENVIRONMENTS:
    gym.register(
        f"Meta-World/{_name}",
        entry_point="mirl.envs.worlds.metaworld:MetaWorldEnv",
        kwargs={"task": _name},
    )
