"""The loop that PPO and A2C share: rollouts, the parts of an update, and the log, as Stable-Baselines3 means them."""

import warnings
from typing import Any, NamedTuple, Self, cast

import numpy as np
import torch
from jaxtyping import Float
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn

from mirl.agents.faults import INVALID_PARAMETER_MESSAGE, explain_non_finite
from mirl.agents.on_policy.advantages import normalize_per_task
from mirl.agents.on_policy.losses import ActionEvaluation, LossWeights, Metrics, explained_variance
from mirl.agents.on_policy.precision import (
    autocast,
    heads_in_float32,
    in_float32,
    resolve_precision,
)
from mirl.agents.on_policy.recurrent_buffer import RecurrentRolloutBuffer
from mirl.agents.on_policy.rollback import Snapshot, are_finite, non_finite_error
from mirl.agents.on_policy.rollout_buffer import RolloutBuffer, Samples
from mirl.agents.on_policy.storage import pad_to_bucket
from mirl.agents.on_policy.task_gradients import (
    assign_gradient,
    conflict,
    project_conflicts,
    random_orders,
    task_gradients,
)
from mirl.agents.runs.metric_names import DISTINCT, GRADIENT_CONFLICT, GRADIENT_COSINE
from mirl.agents.runs.profiler import IterationProfiler
from mirl.configs.errors import ConfigError
from mirl.configs.schema import PrecisionName
from mirl.envs import SuiteVecEnv
from mirl.policies.memory.episodes import Episodes
from mirl.policies.policy import latents, to_env_actions
from mirl.policies.popart import PopArtHead
from mirl.policies.recurrent import RecurrentFusionPolicy


class TimeOut(NamedTuple):
    """An episode that was cut off."""

    timestep: int
    slot: int
    observation: Any
    """What it was cut off at."""
    memory: Float[Tensor, " state"] | None
    """What was remembered there."""


class OnPolicyLoop(OnPolicyAlgorithm):
    """SB3's ``learn``: the same results from the same data, several times faster.

    - RolloutBuffer are tensors on the training device, and no environment is looped over: only ended episodes are.
    - Observations of a minibatch that are equal share one pass through the network; in small worlds many are.
    - All time-outs of a rollout are bootstrapped in one batch.
    - The losses' statistics stay on the device until the update is over.
    - The log is written after the update: SB3 writes it before, so that its losses stand one iteration late
      (``dump_logs`` precedes ``train`` in ``OnPolicyAlgorithm.learn``).
    - A rollout that a callback breaks off is not counted, since nothing was learned from it.

    Where the observations say which ``task`` each is of, an update can keep the tasks apart. All of it is off by
    default, as it is in SB3:

    - With a ``PopArtHead`` (``FusionPolicy(popart=True)``) values and advantages are compared in each task's own unit.
    - ``advantages_per_task`` has_running_norm the advantages of each task by themselves, over the rollout.
    - ``pcgrad`` takes out of each task's gradient what conflicts with another's.
    - ``conflict_every`` iterations it is logged how the gradients conflict.

    An update that would make weights NaN or infinite is undone.

    A ``RecurrentFusionPolicy`` is trained on sequences of ``sequence_length`` timesteps (by default whole rollouts, a
    divisor of them else), each begun with what was remembered when it was played; with ``burn_in``, with what so many
    timesteps before it leave by the present weights. ``batch_size`` counts timesteps all the same.

    :param skip_faults: whether training then goes on with the next rollout, or ends with a ``NonFiniteError``.
    :param precision: ``bf16`` computes the policy's trunk in bfloat16, ``auto`` where that is faster.
    :raises ConfigError: when advantages are to be normalized per task, and not to be normalized.
    """

    rollout_buffer: RolloutBuffer
    normalize_advantage: bool

    def __init__(
        self,
        *args: Any,
        precision: PrecisionName = "fp32",
        advantages_per_task: bool = False,
        pcgrad: bool = False,
        conflict_every: int = 0,
        skip_faults: bool = False,
        sequence_length: int = 0,
        burn_in: int = 0,
        **kwargs: Any,
    ) -> None:
        self.skip_faults = skip_faults
        self.sequence_length, self.burn_in = sequence_length, burn_in
        self.memory: Tensor | None = None
        """What a policy with a memory remembers of each environment."""
        self.history: list[Metrics] = []
        """The metrics of the last update's gradient steps."""
        self.precision: PrecisionName = precision
        self.advantages_per_task, self.pcgrad, self.conflict_every = (
            advantages_per_task,
            pcgrad,
            conflict_every,
        )
        super().__init__(*args, **kwargs)
        if advantages_per_task and not self.normalize_advantage:
            raise ConfigError(
                "advantages_per_task has_running_norm the advantages, so normalize_advantage must be true"
            )

    def _setup_model(self) -> None:
        self.rollout_buffer_class = RolloutBuffer
        if issubclass(self.policy_class, RecurrentFusionPolicy):
            self.rollout_buffer_class = RecurrentRolloutBuffer
            self.rollout_buffer_kwargs = {
                "sequence_length": self.sequence_length,
                "burn_in": self.burn_in,
            }
        elif self.sequence_length or self.burn_in:
            raise ConfigError(
                "sequence_length and burn_in are for a policy with a memory, RecurrentFusionPolicy"
            )
        self.profiler = IterationProfiler()
        super()._setup_model()
        if isinstance(self.policy, RecurrentFusionPolicy):
            self._init_hidden_state(self.policy)
        context_key = getattr(self.policy, "grouped_context_key", None)
        if context_key is not None:
            self.rollout_buffer.intern(context_key)
        if _is_rowwise(self.policy):
            self.rollout_buffer.share_equal_observations()
        self.use_precision(self.precision)
        _enable_fused_optimizer(self.policy.optimizer)

    def _init_hidden_state(self, policy: RecurrentFusionPolicy) -> None:
        assert isinstance(self.rollout_buffer, RecurrentRolloutBuffer)
        self.rollout_buffer.check_batch_size(
            getattr(self, "batch_size", self.rollout_buffer.length)
        )
        self.rollout_buffer.allocate_states(policy.state_dim)
        self.memory = torch.zeros(self.n_envs, policy.state_dim, device=self.device)

    def use_precision(self, precision: PrecisionName) -> None:
        """Compute in ``fp32``, ``bf16``, or, with ``auto``, in what is faster."""
        self.precision = resolve_precision(precision, self.device)
        if self.precision == "bf16":
            heads_in_float32(self.policy)

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "run",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        self.profiler = IterationProfiler()
        total_timesteps, callback = self._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar
        )
        iteration = 0
        callback.on_training_start(locals(), globals())
        assert self.env is not None
        while self.num_timesteps < total_timesteps:
            before = self.num_timesteps
            with explain_non_finite(self):
                goes_on = self.collect_rollouts(
                    self.env, callback, self.rollout_buffer, n_rollout_steps=self.n_steps
                )
            if not goes_on:
                self.num_timesteps = before
                break
            iteration += 1
            self._update_current_progress_remaining(self.num_timesteps, total_timesteps)
            with self.profiler.section("update"):
                self._train_with_rollback()
            self.profiler.record(self.logger, self.n_steps * self.n_envs)
            if log_interval is not None and iteration % log_interval == 0:
                self.dump_logs(iteration)
        callback.on_training_end()
        return self

    def _train_with_rollback(self) -> None:
        """One update; one that makes numbers that are none is undone, and an error, or passed over with a warning."""
        before = Snapshot(self.policy, self.policy.optimizer)
        try:
            self.train()
        except ValueError as refusal:
            if not str(refusal).startswith(INVALID_PARAMETER_MESSAGE):
                raise
        else:
            if are_finite(self.policy):
                return
        before.restore()
        for recorded in (
            self.logger.name_to_value,
            self.logger.name_to_count,
            self.logger.name_to_excluded,
        ):
            for name in [name for name in recorded if name.startswith("train/")]:
                del recorded[name]  # it tells of what did not happen
        tasks = (
            [task.name for task in self.env.suite.tasks]
            if isinstance(self.env, SuiteVecEnv)
            else []
        )
        error = non_finite_error(self.rollout_buffer, self.history, self.num_timesteps, tasks)
        if not self.skip_faults:
            raise error
        warnings.warn(f"{error}; training goes on with the next rollout", stacklevel=2)

    def collect_rollouts(  # type: ignore[override]
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: RolloutBuffer,
        n_rollout_steps: int,
    ) -> bool:
        """As SB3's, with the same local variables for callbacks."""
        assert self._last_obs is not None
        assert self._last_episode_starts is not None
        self.policy.set_training_mode(False)
        rollout_buffer.reset()
        if self.use_sde:
            self.policy.reset_noise(env.num_envs)
        callback.on_rollout_start()
        self.profiler.start()
        time_outs: list[TimeOut] = []
        for n_steps in range(n_rollout_steps):
            if self.use_sde and self.sde_sample_freq > 0 and n_steps % self.sde_sample_freq == 0:
                self.policy.reset_noise(env.num_envs)
            with (
                self.profiler.section("forward"),
                torch.no_grad(),
                autocast(self.precision, self.device),
            ):
                obs_tensor = rollout_buffer.add_observation(self._last_obs)
                actions_tensor, values, log_probs, memory = self._act(obs_tensor)
                actions = actions_tensor.cpu().numpy()
            clipped_actions = to_env_actions(self.policy, actions)
            with self.profiler.section("environment"):
                new_obs, rewards, dones, infos = env.step(clipped_actions)
            self.num_timesteps += env.num_envs
            callback.update_locals(locals())
            if not callback.on_step():
                return False
            ended = np.flatnonzero(dones)
            self._update_info_buffer([infos[slot] for slot in ended], dones[ended])
            for slot in ended.tolist():
                if (
                    infos[slot].get("TimeLimit.truncated", False)
                    and "terminal_observation" in infos[slot]
                ):
                    remembered = None if memory is None else memory[slot].clone()
                    time_outs.append(
                        TimeOut(n_steps, slot, infos[slot]["terminal_observation"], remembered)
                    )
            rollout_buffer.add(
                actions_tensor, rewards, self._last_episode_starts, values, log_probs
            )
            self._last_obs, self._last_episode_starts = new_obs, dones  # type: ignore[assignment]
            self.memory = memory
        with self.profiler.section("forward"):
            last_values = self._bootstrap(time_outs, new_obs)
        rollout_buffer.compute_returns_and_advantage(last_values=last_values, dones=dones)
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def _act(self, observation: Any) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Actions, values and log-probabilities, by what is seen and remembered, and what is remembered then."""
        if self.memory is None:
            return (*self.policy(observation), None)
        assert isinstance(self.rollout_buffer, RecurrentRolloutBuffer)
        assert self._last_episode_starts is not None
        self.rollout_buffer.store_hidden_state(self.memory, self._last_episode_starts)
        starts = Episodes(self._last_episode_starts[None], self.device)
        actions, values, log_probs, memory = self.policy(observation, self.memory, starts)
        return actions, values, log_probs, memory

    def _excluded_save_params(self) -> list[str]:
        # without what is remembered an episode cannot go on: one that is loaded begins anew
        return [
            *super()._excluded_save_params(),
            "memory",
            *([] if self.memory is None else ["_last_obs"]),
        ]

    def _bootstrap(self, time_outs: list[TimeOut], last_observation: Any) -> Tensor:
        """The values of the last observation; on the way, γ V of its last observation joins each time-out's reward.

        See SB3's issue 633.
        """
        cut_off = [
            time_outs[row] for row in pad_to_bucket(np.arange(len(time_outs)), 4 * self.n_envs)
        ]  # four sizes do
        joined = _join([time_out.observation for time_out in cut_off], last_observation)
        memory: tuple[Tensor, ...] = ()
        if self.memory is not None:
            remembered = [
                time_out.memory[None] for time_out in cut_off if time_out.memory is not None
            ]
            memory = (torch.cat([*remembered, self.memory]),)
        with torch.no_grad(), autocast(self.precision, self.device):
            values = self.policy.predict_values(
                obs_as_tensor(joined, self.device), *memory
            ).flatten()
        if time_outs:
            steps, slots = (
                [time_out.timestep for time_out in time_outs],
                [time_out.slot for time_out in time_outs],
            )
            self.rollout_buffer.rewards[steps, slots] += self.gamma * values[: len(time_outs)]
        return values[len(cut_off) :]

    def _begin_update(self) -> tuple[LossWeights, list[nn.Parameter]]:
        """How the losses of this update are weighed, and what it moves."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        self._scale_advantages()
        # from where the run stands, so that a run that is continued draws what it would have drawn
        self._projection_rng = np.random.default_rng(
            None if self.seed is None else (self.seed, self.num_timesteps)
        )
        per_minibatch = self.normalize_advantage and not self.advantages_per_task
        parameters = [
            parameter for parameter in self.policy.parameters() if parameter.requires_grad
        ]
        return LossWeights(self.ent_coef, self.vf_coef, per_minibatch), parameters

    def _scale_advantages(self) -> None:
        """Put what the tasks of the rollout weigh on one scale, as far as that is asked for.

        PopArt trains the policy on advantages in units of the value's deviation, (R − V) / σ_t (Hessel et al., 2019).
        """
        buffer, value_net = self.rollout_buffer, self.policy.value_net
        buffer.policy_advantages = buffer.advantages
        if isinstance(value_net, PopArtHead):
            tasks = buffer.task_ids.flatten()
            if value_net.weight.requires_grad:  # frozen statistics belong to frozen weights
                value_net.update(buffer.returns.flatten(), tasks)
            buffer.policy_advantages = buffer.advantages / value_net.scale(tasks).view_as(
                buffer.advantages
            )
        if self.advantages_per_task:
            buffer.policy_advantages = normalize_per_task(buffer.advantages, buffer.task_ids)

    def _evaluate_actions(self, samples: Samples) -> ActionEvaluation:
        policy, rows = self.policy, samples.rows
        with autocast(self.precision, self.device):
            if rows is None:
                values, log_probs, entropy = policy.evaluate_actions(
                    samples.observations, samples.actions
                )
                return ActionEvaluation(
                    values.flatten(), log_probs, entropy, self._value_scale(samples)
                )
            # What evaluate_actions does, with one pass for equal observations.
            features = policy.extract_features(samples.observations)
            if samples.sequences is not None:
                distinct = self._sum_in_float32(features)
                features, rows = (
                    cast(RecurrentFusionPolicy, policy).run_sequences(
                        distinct, rows, samples.sequences
                    ),
                    None,
                )
            latent_pi, latent_vf = latents(policy, features)
            latent_pi = self._sum_in_float32(latent_pi)
            values = policy.value_net(latent_vf).flatten()
            if rows is not None:
                latent_pi, values = latent_pi.index_select(0, rows), values.index_select(0, rows)
            distribution = policy._get_action_dist_from_latent(latent_pi)
            log_probs, entropy = distribution.log_prob(samples.actions), distribution.entropy()
            return ActionEvaluation(values, log_probs, entropy, self._value_scale(samples))

    def _sum_in_float32(self, distinct: Any) -> Any:
        """In float32 what rows are taken of: what they sum up to in the backward pass is a long sum."""
        return in_float32(distinct) if self.precision == "bf16" else distinct

    def _value_scale(self, samples: Samples) -> Tensor | None:
        value_net = self.policy.value_net
        if not isinstance(value_net, PopArtHead):
            return None
        one_task = torch.zeros(len(samples.returns), dtype=torch.int64, device=self.device)
        return value_net.scale(one_task if samples.tasks is None else samples.tasks)

    def _gradient_step(
        self, losses: Tensor, samples: Samples, parameters: list[nn.Parameter]
    ) -> None:
        """One gradient step along the mean of the losses."""
        self.policy.optimizer.zero_grad()
        if self.pcgrad and samples.tasks is not None:
            gradients = task_gradients(losses, samples.tasks, parameters)
            orders = random_orders(len(gradients), self._projection_rng)
            assign_gradient(project_conflicts(gradients, orders), parameters)
        else:
            losses.mean().backward()
        nn.utils.clip_grad_norm_(parameters, self.max_grad_norm, foreach=True)
        self.policy.optimizer.step()

    def _log_conflict(
        self, losses: Tensor, samples: Samples, parameters: list[nn.Parameter]
    ) -> None:
        """How the tasks' gradients conflict, where this iteration is to be measured; nothing is drawn or changed."""
        iteration = self.num_timesteps // (self.n_steps * self.n_envs)
        if (
            samples.tasks is None
            or not self.conflict_every
            or (iteration - 1) % self.conflict_every
        ):
            return
        gradients = task_gradients(losses, samples.tasks, parameters)
        if len(gradients) > 1:
            cosine, share = conflict(gradients)
            self.logger.record(GRADIENT_COSINE, float(cosine))
            self.logger.record(GRADIENT_CONFLICT, float(share))

    def _log_update(self, history: list[Metrics], averaged_over: dict[str, int]) -> None:
        """The mean of each metric over its last so many gradient steps (all by default); asks the device once."""
        means = {
            name: torch.stack(
                [metrics[name] for metrics in history[-averaged_over.get(name, len(history)) :]]
            ).mean()
            for name in history[-1]
        }
        means["train/explained_variance"] = explained_variance(
            self.rollout_buffer.values, self.rollout_buffer.returns
        )
        if hasattr(self.policy, "log_std"):
            means["train/std"] = self.policy.log_std.detach().exp().mean()
        for name, value in zip(means, torch.stack(list(means.values())).tolist(), strict=True):
            self.logger.record(name, value)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        if self.rollout_buffer.n_samples:
            self.logger.record(
                DISTINCT, 100 * self.rollout_buffer.n_unique / self.rollout_buffer.n_samples
            )


def _join(single: list[Any], batch: Any) -> Any:
    """Single observations, and behind them a batch, as one batch."""
    if isinstance(batch, dict):
        return {
            key: _join([observation[key] for observation in single], values)
            for key, values in batch.items()
        }
    return np.concatenate([np.stack(single), batch]) if single else batch


def _is_rowwise(policy: ActorCriticPolicy) -> bool:
    """Whether the policy answers equal observations equally, whatever else is in the batch, as far as can be told."""
    known = (ActorCriticPolicy.evaluate_actions, RecurrentFusionPolicy.evaluate_actions)
    return type(policy).evaluate_actions in known and not any(
        isinstance(module, nn.modules.batchnorm._NormBase)
        or (isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0)
        for module in policy.modules()
    )


def _enable_fused_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """One kernel for all weights instead of several for each; what an optimizer does stays the same."""
    kernels = "fused" if isinstance(optimizer, torch.optim.Adam) else "foreach"
    for group in optimizer.param_groups:
        if kernels in group:
            group[kernels] = True
