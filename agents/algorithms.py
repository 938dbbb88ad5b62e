"""PPO and A2C with Stable-Baselines3's names and semantics, and a loop that logs each iteration under its own step."""

import time
from typing import Any, Self, assert_never

from stable_baselines3 import A2C as SB3A2C
from stable_baselines3 import PPO as SB3PPO
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv

from mirl.agents import metrics
from mirl.configs.schema import A2CConfig, AgentConfig, PPOConfig


class OnPolicyLoop(OnPolicyAlgorithm):
    """SB3's ``learn`` with three differences.

    The log is written after the update: SB3 writes it before, so that its losses stand one iteration late
    (``dump_logs`` precedes ``train`` in ``OnPolicyAlgorithm.learn``). And the time of an iteration is split into
    environment, forward and update, in timesteps per second each. A rollout that a callback breaks off is not counted,
    since nothing was learned from it.
    """

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "run",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        clock = IterationClock()
        total_timesteps, callback = self._setup_learn(
            total_timesteps, [*_as_list(callback), clock], reset_num_timesteps, tb_log_name, progress_bar
        )
        iteration = 0
        callback.on_training_start(locals(), globals())
        assert self.env is not None
        while self.num_timesteps < total_timesteps:
            before = self.num_timesteps
            if not self.collect_rollouts(self.env, callback, self.rollout_buffer, n_rollout_steps=self.n_steps):
                self.num_timesteps = before
                break
            iteration += 1
            self._update_current_progress_remaining(self.num_timesteps, total_timesteps)
            self.train()
            clock.record_speeds(self.n_steps * self.n_envs)
            if log_interval is not None and iteration % log_interval == 0:
                self.dump_logs(iteration)
        callback.on_training_end()
        return self


def _as_list(callback: MaybeCallback) -> list[BaseCallback]:
    match callback:
        case None:
            return []
        case list():
            return callback
        case BaseCallback():
            return [callback]
        case _:
            return [ConvertCallback(callback)]


class IterationClock(BaseCallback):
    """Where the wall time of one iteration goes; it stands last, so that other callbacks' work is not counted.

    The environment's share is read off its own count of its ``seconds``, where it keeps one.
    """

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self._start, self._environment = time.perf_counter(), self._environment_seconds()

    def _on_rollout_end(self) -> None:
        self._update_start = time.perf_counter()
        self._environment = self._environment_seconds() - self._environment

    def _environment_seconds(self) -> float:
        return float(getattr(self.training_env, "seconds", 0.0))

    def record_speeds(self, timesteps: int) -> None:
        """Log timesteps per second of the whole and of each part; call after the update."""
        end = time.perf_counter()
        seconds = {
            metrics.SPEED_TOTAL: end - self._start,
            metrics.SPEED_ENVIRONMENT: self._environment,
            metrics.SPEED_FORWARD: self._update_start - self._start - self._environment,
            metrics.SPEED_UPDATE: end - self._update_start,
        }
        for name, value in seconds.items():
            if value > 0:
                self.logger.record(name, timesteps / value)


class PPO(OnPolicyLoop, SB3PPO):
    """Proximal policy optimisation (Schulman et al., 2017); SB3's class over ``OnPolicyLoop``."""


class A2C(OnPolicyLoop, SB3A2C):
    """Advantage actor-critic (Mnih et al., 2016); SB3's class over ``OnPolicyLoop``."""


def build_algorithm(
    config: AgentConfig, policy: type, policy_kwargs: dict[str, Any], env: VecEnv, *, seed: int, device: str
) -> PPO | A2C:
    """The algorithm that ``config`` names, over an environment whose ``num_envs`` is ``config.n_envs``."""
    rate = config.learning_rate
    shared: dict[str, Any] = {
        "learning_rate": LinearSchedule(rate, 0.0, 1.0) if config.anneal else rate,
        "n_steps": config.n_steps,
        "gamma": config.gamma,
        "gae_lambda": config.gae_lambda,
        "ent_coef": config.ent_coef,
        "vf_coef": config.vf_coef,
        "max_grad_norm": config.max_grad_norm,
        "normalize_advantage": config.normalize_advantage,
        "policy_kwargs": policy_kwargs,
        "seed": seed,
        "device": device,
    }
    match config:
        case PPOConfig():
            return PPO(
                policy,
                env,
                batch_size=config.batch_size,
                n_epochs=config.n_epochs,
                clip_range=config.clip_range,
                **shared,
            )
        case A2CConfig():
            return A2C(policy, env, **shared, rms_prop_eps=config.rms_prop_eps)
        case _:
            assert_never(config)
