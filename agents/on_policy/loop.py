"""Training loop of PPO and A2C: Stable-Baselines3's ``learn``, several times faster.

Shapes: T timesteps of a rollout, N environments, H hidden state.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Self

import numpy as np
import torch
from jaxtyping import Float
from stable_baselines3.common.type_aliases import MaybeCallback
from torch import Tensor
from torch.distributions import Distribution

from mirl.agents.faults import INVALID_PARAMETER_MESSAGE, explain_non_finite
from mirl.agents.on_policy.action_evaluation import treats_rows_alike
from mirl.agents.on_policy.losses import LossWeights, explained_variance
from mirl.agents.on_policy.precision import heads_in_float32, resolve_precision
from mirl.agents.on_policy.recurrent_buffer import RecurrentRolloutBuffer
from mirl.agents.on_policy.rollback import Snapshot, are_finite, non_finite_error
from mirl.agents.on_policy.rollout import RolloutCollector
from mirl.agents.on_policy.rollout_buffer import RolloutBuffer, choose_buffer_class
from mirl.agents.on_policy.update import Update, update_unit_and_advantages
from mirl.agents.profiler import IterationProfiler
from mirl.agents.runs.metric_names import DISTINCT
from mirl.agents.runs.ranks import ONE_PROCESS, Ranks
from mirl.agents.vec_normalize import check_not_normalized
from mirl.configs.errors import ConfigError
from mirl.configs.schema import PrecisionName
from mirl.envs import SuiteVecEnv
from mirl.policies import FusionPolicy, RecurrentFusionPolicy

EVERY_FORMAT = ("stdout", "log", "json", "csv", "tensorboard")
"""The formats of SB3's logger, to leave a metric out of each row."""


class OnPolicyLoop(RolloutCollector):
    """Base class of PPO and A2C without their losses: the training loop and the log.

    With all options off and the same data, it computes the same as SB3. It is faster, because the
    rollout is stored as tensors on the training device, equal observations share one forward pass,
    all truncated episodes of a rollout are bootstrapped in one batch, and metrics stay on the
    device until the update is over.

    One difference: the log is written after the update. SB3 writes it before, so its losses are one
    iteration late.

    An update that makes a weight non-finite is rolled back.
    """

    rollout_buffer: RolloutBuffer
    normalize_advantage: bool

    def _init_options(
        self,
        *,
        precision: PrecisionName,
        advantages_per_task: bool,
        advantage_floor: float,
        pcgrad: bool,
        conflict_every: int,
        skip_faults: bool,
        sequence_length: int,
        burn_in: int,
        normalize_advantage: bool,
    ) -> None:
        """Set MIRL's options. SB3's constructor needs them, because it builds the policy."""
        if advantages_per_task and not normalize_advantage:
            raise ConfigError(
                "advantages_per_task normalizes the advantages, so normalize_advantage must be true"
            )
        self.precision: PrecisionName = precision
        self.advantages_per_task = advantages_per_task
        self.advantage_floor = advantage_floor
        self.pcgrad = pcgrad
        self.conflict_every = conflict_every
        self.skip_faults = skip_faults
        self.sequence_length = sequence_length
        self.burn_in = burn_in
        self.ranks = ONE_PROCESS
        self.hidden_state: Float[Tensor, "n_envs state"] | None = None
        """(N, H), before the next timestep; None if the policy is not recurrent."""

    # ------------------------------------------------------------------------------- building

    def _setup_model(self) -> None:
        check_not_normalized(self.env)
        given_class = self.rollout_buffer_class
        given_kwargs = self.rollout_buffer_kwargs
        # Choose the buffer's class before SB3's _setup_model, which builds it.
        buffer_class = RolloutBuffer
        if issubclass(self.policy_class, RecurrentFusionPolicy):
            buffer_class = RecurrentRolloutBuffer
            self.rollout_buffer_kwargs = {
                **given_kwargs,
                "sequence_length": self.sequence_length or self._default_sequence_length(),
                "burn_in": self.burn_in,
            }
        elif self.sequence_length or self.burn_in:
            raise ConfigError(
                "sequence_length and burn_in are for a recurrent policy, RecurrentFusionPolicy, "
                f"got {self.policy_class.__name__}"
            )
        self.rollout_buffer_class = choose_buffer_class(
            given_class, buffer_class, self.observation_space
        )
        self.profiler = IterationProfiler()
        super()._setup_model()
        # A saved agent keeps the user's argument, so that SB3's own PPO and A2C can load it.
        self.rollout_buffer_class = given_class
        self.rollout_buffer_kwargs = given_kwargs
        # The rest needs the policy, which SB3 builds after the buffer.
        if isinstance(self.policy, RecurrentFusionPolicy):
            self._init_hidden_state(self.policy)
        if isinstance(self.policy, FusionPolicy) and self.policy.grouped_context_key is not None:
            self.rollout_buffer.group_by_context(self.policy.grouped_context_key)
        if treats_rows_alike(self.policy):
            self.rollout_buffer.share_equal_observations()
        self.use_precision(self.precision)
        _enable_fused_optimizer(self.policy.optimizer)

    def _init_hidden_state(self, policy: RecurrentFusionPolicy) -> None:
        assert isinstance(self.rollout_buffer, RecurrentRolloutBuffer)
        minibatch_size = self._minibatch_size()
        if minibatch_size is not None:
            self.rollout_buffer.check_batch_size(minibatch_size)
        self.rollout_buffer.allocate_hidden_states(policy.state_dim)
        self.hidden_state = torch.zeros(self.n_envs, policy.state_dim, device=self.device)

    def _minibatch_size(self) -> int | None:
        """Return the timesteps per minibatch; None for the whole rollout."""
        return None

    def _default_sequence_length(self) -> int:
        """Return the minibatch size if it divides ``n_steps``, else 0 for the whole rollout."""
        minibatch_size = self._minibatch_size()
        # SB3's defaults: rollouts of 2048 timesteps and minibatches of 64.
        if minibatch_size is not None and self.n_steps % minibatch_size == 0:
            return minibatch_size
        return 0

    def use_precision(self, precision: PrecisionName) -> None:
        """Compute in another precision from now on.

        Args:
            precision: "fp32", "bf16", or "auto" for the faster one.
        """
        self.precision = resolve_precision(precision, self.device)
        if self.precision == "bf16":
            heads_in_float32(self.policy)

    def use_ranks(self, ranks: Ranks) -> None:
        """Train with other processes from now on, which each have the same number of environments.

        Args:
            ranks: the processes; each has built the agent with the same seed.

        Raises:
            RunError: the weights differ.
        """
        assert self.seed is not None, "the ranks draw the same initial weights by their seed"
        self.ranks = ranks
        self.rollout_buffer.use_ranks(ranks)
        ranks.check_equal(self.policy)

    @property
    def rollout_size(self) -> int:
        """Return the timesteps of a rollout over all environments of all ranks."""
        return self.n_steps * self.n_envs * self.ranks.size

    def _excluded_save_params(self) -> list[str]:
        excluded = super()._excluded_save_params()
        excluded += ["hidden_state", "profiler", "_update", "ranks"]
        if self.hidden_state is not None:
            # An episode cannot continue without its hidden state: a loaded agent resets instead.
            excluded.append("_last_obs")
        return excluded

    # ------------------------------------------------------------------------------- training

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int | None = 1,
        tb_log_name: str = "OnPolicyAlgorithm",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """Alternate between rollouts and updates, as SB3's ``learn`` does.

        Args:
            total_timesteps: timesteps of training, over all environments.
            callback: called in each timestep and around each rollout.
            log_interval: iterations between two rows of the log; None for no log.
            tb_log_name: name of the run for TensorBoard.
            reset_num_timesteps: start counting timesteps at 0.
            progress_bar: show SB3's progress bar.

        Returns:
            The agent itself.

        Raises:
            NonFiniteError: if an update made a weight non-finite, unless ``skip_faults`` is set.
            RunError: if the policy's outputs are non-finite during a rollout.
        """
        # A new profiler, so that each call of learn has its own warm-up and warning.
        self.profiler = IterationProfiler()
        total_timesteps, callback = self._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar
        )
        iteration = 0
        # SB3 passes the local variables to callbacks, so their names are part of the interface.
        callback.on_training_start(locals(), globals())
        assert self.env is not None
        while self.num_timesteps < total_timesteps:
            with explain_non_finite(self):
                continue_training = self.collect_rollouts(
                    self.env, callback, self.rollout_buffer, n_rollout_steps=self.n_steps
                )
            if not continue_training:
                break
            iteration += 1
            # Before the update, which gets its learning rate and clip range from the progress.
            self._update_current_progress_remaining(self.num_timesteps, total_timesteps)
            with self.profiler.section("update"):
                self._train_with_rollback()
                self.ranks.check_equal(self.policy)
            self.profiler.record(self.logger, self.rollout_size)
            if log_interval is not None and iteration % log_interval == 0:
                self.dump_logs(iteration)
        callback.on_training_end()
        return self

    def dump_logs(self, iteration: int = 0) -> None:
        """Write a row of the log.

        The metrics of the update stay in ``logger.name_to_value``, where SB3's callbacks read them,
        until the next update; they are not written to another row.

        Args:
            iteration: number of the iteration.
        """
        logger = self.logger
        metrics = {}
        for name, value in logger.name_to_value.items():
            is_written = logger.name_to_excluded[name] != EVERY_FORMAT
            if name.startswith("train/") and is_written:
                metrics[name] = value
        super().dump_logs(iteration)
        for name, value in metrics.items():
            logger.record(name, value, exclude=EVERY_FORMAT)

    def _train_with_rollback(self) -> None:
        """Run one update; roll it back if a weight becomes non-finite.

        Then raise, or warn if ``skip_faults`` is set.
        """
        snapshot = Snapshot(self.policy, self.policy.optimizer)
        try:
            # If only one rank raised, the others would wait forever: its gradient is NaN instead.
            with _without_validation(self.ranks.size > 1):
                self.train()
        except ValueError as torch_error:
            # Torch's distributions reject non-finite parameters.
            if not str(torch_error).startswith(INVALID_PARAMETER_MESSAGE):
                raise
        else:
            if are_finite(self.policy):
                return
        snapshot.restore()
        self._discard_train_metrics()
        # Only MIRL's environments name their tasks; the error works without names.
        task_names: list[str] = []
        if isinstance(self.env, SuiteVecEnv):
            task_names = [task.name for task in self.env.suite.tasks]
        history = self._update.history
        error = non_finite_error(self.rollout_buffer, history, self.num_timesteps, task_names)
        if not self.skip_faults:
            raise error
        if self.ranks.is_first:
            warnings.warn(f"{error}; training goes on with the next rollout", stacklevel=2)

    def _discard_train_metrics(self) -> None:
        """Delete the logged metrics of an update that was rolled back."""
        logger = self.logger
        for recorded in (logger.name_to_value, logger.name_to_count, logger.name_to_excluded):
            for name in list(recorded):
                if name.startswith("train/"):
                    del recorded[name]

    # ------------------------------------------------------------------------------- update

    def begin_update(self) -> Update:
        """Prepare the policy and the rollout for an update, and return it."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        # Before the minibatches, because it changes the weights or the values of the value head.
        update_unit_and_advantages(
            self.rollout_buffer,
            self.policy.value_net,
            normalize_per_task=self.advantages_per_task,
            advantage_floor=self.advantage_floor,
        )
        projection_rng: np.random.Generator | None = None
        if self.pcgrad:
            # Seeded by the timesteps, so that a resumed run draws the same orders.
            seed = None if self.seed is None else (self.seed, self.num_timesteps)
            projection_rng = np.random.default_rng(seed)
        # Advantages that are normalized per task are not normalized again per minibatch.
        per_minibatch = self.normalize_advantage and not self.advantages_per_task
        smallest_std = None
        if per_minibatch and self.advantage_floor:
            smallest_std = self.advantage_floor * self.rollout_buffer.returns_rms()
        self._update = Update(
            policy=self.policy,
            precision=self.precision,
            weights=LossWeights(self.ent_coef, self.vf_coef, per_minibatch, smallest_std),
            max_grad_norm=self.max_grad_norm,
            projection_rng=projection_rng,
            measure_conflict=self._measures_conflict(),
            ranks=self.ranks,
        )
        return self._update

    def _measures_conflict(self) -> bool:
        """Return True in the first iteration and in every ``conflict_every``-th after it."""
        # Counted in timesteps, so that a resumed run measures in the same iterations.
        iteration = self.num_timesteps // self.rollout_size
        return self.conflict_every > 0 and (iteration - 1) % self.conflict_every == 0

    def log_update(self, update: Update, last_steps: Mapping[str, int]) -> None:
        """Log the metrics of an update.

        Args:
            update: the update.
            last_steps: for some metrics, the number of last gradient steps to average over.
        """
        buffer = self.rollout_buffer
        means = update.mean_metrics(last_steps)
        means["train/explained_variance"] = explained_variance(buffer.values, buffer.returns)
        if hasattr(self.policy, "log_std"):  # SB3's marker of a Gaussian policy
            means["train/std"] = self.policy.log_std.detach().exp().mean()
        # One transfer for all metrics, because each waits for the device.
        values = torch.stack(list(means.values())).tolist()
        for name, value in zip(means, values, strict=True):
            self.logger.record(name, value)
        # SB3 excludes this counter from TensorBoard, too.
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        # 0 unless equal observations are shared.
        if buffer.n_samples:
            self.logger.record(DISTINCT, 100 * buffer.n_unique / buffer.n_samples)


@contextmanager
def _without_validation(enabled: bool) -> Iterator[None]:
    """Let torch's distributions accept non-finite parameters, if enabled."""
    if not enabled:
        yield
        return
    was_enabled = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(was_enabled)


def _enable_fused_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Use one kernel for all weights instead of several for each; the results stay the same."""
    # RMSprop (A2C) has no fused kernel in torch; foreach is its closest option.
    option = "fused" if isinstance(optimizer, torch.optim.Adam) else "foreach"
    for group in optimizer.param_groups:
        if option in group:
            group[option] = True
