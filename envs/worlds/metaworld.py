"""Meta-World's fifty v3 tasks, each as one environment with a new goal in every episode: ``Meta-World/reach-v3``, …

Registered when this module is imported, which needs the package ``metaworld``.
"""

from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from numpy.typing import NDArray

N_STEPS = 500
"""Timesteps of an episode; Meta-World ends it by time only."""


class MetaWorldEnv(gym.Env[NDArray[np.float32], NDArray[np.float32]]):
    """One Meta-World task as its multitask benchmarks (MT1, MT10, MT50) have it: the goal is part of the observation.

    Each episode draws where objects and goal are, from the distribution from which the benchmarks draw the fifty
    places that they keep to. Here no place comes twice, so what is evaluated has not been seen in training, and the
    seed of ``reset`` decides all of them. The observation (39,) is float32, and its bounds are infinite: those of
    Meta-World differ from task to task, and are left by its own first observations.

    Args:
        task: Meta-World's name of the task.
        reward_function_version: ``v2``, Meta-World's default, in [0, 10], or ``v1``, of the first release.
        terminate_on_success: end the episode at the first success.
        render_mode: MuJoCo's.
        camera_name: where a rendering looks from.
    """

    metadata = {"render_modes": ["rgb_array", "human"], "render_fps": 80}  # noqa: RUF012  (gymnasium's own declaration)

    def __init__(
        self,
        task: str,
        reward_function_version: Literal["v1", "v2"] = "v2",
        terminate_on_success: bool = False,
        render_mode: Literal["rgb_array", "human"] | None = None,
        camera_name: str = "corner2",
    ) -> None:
        self.render_mode = render_mode
        self._terminate_on_success, self._camera_name = terminate_on_success, camera_name
        build = ALL_V3_ENVIRONMENTS[task]
        self._sawyer: Any = build(
            render_mode=render_mode,
            reward_function_version=reward_function_version,
            camera_name=camera_name,
        )
        # What set_task() does with a stored place, for places that are drawn anew.
        self._sawyer._set_task_called = True
        self._sawyer._set_task_inner()
        self._sawyer._partially_observable = False
        del (
            self._sawyer.sawyer_observation_space
        )  # computed while the goal was hidden; steps are clipped to it
        self._sawyer.seeded_rand_vec = (
            True  # draw by the environment's own generator, not by numpy's global one
        )
        self.observation_space = spaces.Box(-np.inf, np.inf, (39,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (4,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Draw a place for the objects and the goal."""
        super().reset(seed=seed)
        if seed is not None:
            self._sawyer.seed(seed)
        # The package's reset places everything twice, and what it observes may still be from the first time.
        self._sawyer._freeze_rand_vec = False
        self._sawyer.reset_model()
        self._sawyer._freeze_rand_vec = True
        observation, info = self._sawyer.reset()
        return observation.astype(np.float32), info

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Move the gripper; ``success`` in the info is 1.0 while the task is solved."""
        observation, reward, _, truncated, info = self._sawyer.step(action)
        terminated = self._terminate_on_success and bool(info["success"])
        return observation.astype(np.float32), float(reward), terminated, bool(truncated), info

    def render(self) -> Any:
        """The picture (H, W, 3), uint8. Several of Meta-World's cameras hang upside down: theirs is turned."""
        picture = self._sawyer.render()
        up = self._sawyer.data.camera(self._camera_name).xmat.reshape(3, 3)[:, 1]
        return picture[::-1, ::-1] if picture is not None and up[2] < 0 else picture

    def close(self) -> None:
        """Free MuJoCo's renderer."""
        self._sawyer.close()


for _name in ALL_V3_ENVIRONMENTS:
    gym.register(
        f"Meta-World/{_name}",
        entry_point="mirl.envs.worlds.metaworld:MetaWorldEnv",
        kwargs={"task": _name},
    )
