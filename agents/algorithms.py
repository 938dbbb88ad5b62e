"""PPO and A2C with Stable-Baselines3's names and semantics."""

from typing import Any, assert_never

from stable_baselines3 import A2C as SB3A2C
from stable_baselines3 import PPO as SB3PPO
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv

from mirl.agents.on_policy_loop import OnPolicyLoop
from mirl.agents.updates import Metrics, a2c_losses, ppo_losses
from mirl.configs.agents import A2CConfig, PPOConfig
from mirl.configs.schema import PrecisionName


class PPO(OnPolicyLoop, SB3PPO):
    """Proximal policy optimisation (Schulman et al., 2017) with SB3's parameters and ``OnPolicyLoop``'s."""

    def train(self) -> None:
        """One update: ``n_epochs`` over the rollout in minibatches of ``batch_size``."""
        weights, parameters = self._begin_update()
        progress = self._current_progress_remaining
        clip_range = self.clip_range(progress)  # type: ignore[operator]
        clip_range_vf = None if self.clip_range_vf is None else self.clip_range_vf(progress)  # type: ignore[operator]
        history: list[Metrics] = []
        self.history = history
        for _ in range(self.n_epochs):
            in_epoch, too_far = 0, False
            for samples in self.rollout_buffer.get(self.batch_size):
                losses, metrics = ppo_losses(self._judge(samples), samples, weights, clip_range, clip_range_vf)
                if not history:
                    self._log_conflict(losses, samples, parameters)
                history.append(metrics)
                in_epoch += 1
                too_far = self.target_kl is not None and float(metrics["train/approx_kl"]) > 1.5 * self.target_kl
                if too_far:
                    break
                self._descend(losses, samples, parameters)
            self._n_updates += 1
            if too_far:
                break
        self._log_update(history, {"train/loss": 1, "train/approx_kl": in_epoch})
        self.logger.record("train/clip_range", clip_range)
        if clip_range_vf is not None:
            self.logger.record("train/clip_range_vf", clip_range_vf)


class A2C(OnPolicyLoop, SB3A2C):
    """Advantage actor-critic (Mnih et al., 2016) with SB3's parameters and ``OnPolicyLoop``'s."""

    def train(self) -> None:
        """One update: a gradient step over the whole rollout."""
        weights, parameters = self._begin_update()
        samples = self.rollout_buffer.whole()
        losses, metrics = a2c_losses(self._judge(samples), samples, weights)
        self._log_conflict(losses, samples, parameters)
        self._descend(losses, samples, parameters)
        self._n_updates += 1
        self.history = [metrics]
        self._log_update(self.history, {})


def build_algorithm(
    config: PPOConfig | A2CConfig,
    policy: type,
    policy_kwargs: dict[str, Any],
    env: VecEnv,
    *,
    seed: int,
    device: str,
    precision: PrecisionName,
    skips_faults: bool = False,
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
        "advantages_per_task": config.advantages_per_task,
        "pcgrad": config.pcgrad,
        "conflict_every": config.conflict_every,
        "sequence_length": config.sequence_length,
        "burn_in": config.burn_in,
        "policy_kwargs": policy_kwargs,
        "seed": seed,
        "device": device,
        "precision": precision,
        "skips_faults": skips_faults,
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
