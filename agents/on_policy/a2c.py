"""A2C: its single gradient step per rollout, and its loss."""

from typing import Any

import torch
from stable_baselines3 import A2C as SB3A2C
from stable_baselines3.common.buffers import RolloutBuffer as SB3RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule

from mirl.agents.on_policy.action_evaluation import ActionEvaluation, PerSample
from mirl.agents.on_policy.loop import OnPolicyLoop
from mirl.agents.on_policy.losses import LossWeights, Metrics, value_losses_of
from mirl.agents.on_policy.minibatch import Samples
from mirl.configs.schema import PrecisionName


class A2C(OnPolicyLoop, SB3A2C):
    """Advantage actor-critic, SB3's ``A2C`` with a faster rollout and update.

    The parameters up to ``device`` are SB3's, with SB3's defaults. Those after it are MIRL's; they
    are off by default.

    Args:
        policy: policy class, or one of SB3's aliases ("MlpPolicy", ...).
        env: environment, vectorized or not, or a registered id.
        learning_rate: step size of the optimizer; may be a function of the remaining progress,
            which goes from 1 to 0.
        n_steps: timesteps of each environment per rollout.
        gamma: γ, the discount factor.
        gae_lambda: λ of generalized advantage estimation.
        ent_coef: weight of the entropy loss.
        vf_coef: weight of the value loss.
        max_grad_norm: the gradient is clipped to this norm.
        rms_prop_eps: ε of RMSprop.
        use_rms_prop: use RMSprop instead of Adam.
        use_sde: use generalized state-dependent exploration instead of Gaussian noise.
        sde_sample_freq: timesteps between two draws of the exploration matrix; -1 to draw at the
            start of each rollout only.
        rollout_buffer_class: class of the buffer, derived from MIRL's ``RolloutBuffer``, or from
            its ``RecurrentRolloutBuffer`` if the policy is recurrent; None for these two.
        rollout_buffer_kwargs: further arguments of the buffer.
        normalize_advantage: normalize the advantages of the rollout.
        stats_window_size: number of episodes that logged returns and lengths are averaged over.
        tensorboard_log: folder of the TensorBoard log; None for none.
        policy_kwargs: further arguments of the policy.
        verbose: 0 for no output, 1 for information, 2 for debugging.
        seed: seed of the random number generators; None for a random one.
        device: the training device.
        _init_setup_model: build the networks now.
        precision: "fp32"; "bf16" to compute the policy's trunk in bfloat16; "auto" for the faster.
        advantages_per_task: normalize the advantages per task; needs ``normalize_advantage``.
        advantage_floor: smallest standard deviation that normalized advantages are divided by, as a
            fraction of the root mean square of the rollout's returns; 0 for none, as in SB3.
        pcgrad: project conflicting gradients of the tasks (PCGrad).
        conflict_every: iterations between two measurements of how the tasks' gradients conflict; 0
            for none.
        skip_faults: warn and continue with the next rollout if an update makes a weight non-finite,
            instead of raising ``NonFiniteError``. The update is rolled back in both cases.
        sequence_length: timesteps of the sequences that a recurrent policy is trained on, a divisor
            of ``n_steps``; 0 for ``n_steps``.
        burn_in: timesteps before each sequence that only recompute its hidden state with the
            current weights, at most ``sequence_length``.

    Raises:
        ConfigError: if the options do not fit each other or the policy.

    References:
        Mnih et al., "Asynchronous Methods for Deep Reinforcement Learning", ICML 2016.

    Examples:
        Two tasks, whose advantages are normalized separately:

        >>> from mirl.agents import A2C
        >>> from mirl.envs import make_vec_env
        >>> from mirl.policies import FusionPolicy
        >>> env = make_vec_env(["BabyAI-GoToObj-v0", "BabyAI-GoToLocal-v0"], n_envs=4)
        >>> options = dict(normalize_advantage=True, advantages_per_task=True)
        >>> agent = A2C(FusionPolicy, env, n_steps=8, device="cpu", **options)
        >>> agent.learn(64).num_timesteps
        64
    """

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 7e-4,
        n_steps: int = 5,
        gamma: float = 0.99,
        gae_lambda: float = 1.0,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        rms_prop_eps: float = 1e-5,
        use_rms_prop: bool = True,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[SB3RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        normalize_advantage: bool = False,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
        *,
        precision: PrecisionName = "fp32",
        advantages_per_task: bool = False,
        advantage_floor: float = 0.0,
        pcgrad: bool = False,
        conflict_every: int = 0,
        skip_faults: bool = False,
        sequence_length: int = 0,
        burn_in: int = 0,
    ) -> None:
        # First, because SB3's constructor builds the buffer and the policy, which need them.
        self._init_options(
            precision=precision,
            advantages_per_task=advantages_per_task,
            advantage_floor=advantage_floor,
            pcgrad=pcgrad,
            conflict_every=conflict_every,
            skip_faults=skip_faults,
            sequence_length=sequence_length,
            burn_in=burn_in,
            normalize_advantage=normalize_advantage,
        )
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            gamma=gamma,
            gae_lambda=gae_lambda,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            rms_prop_eps=rms_prop_eps,
            use_rms_prop=use_rms_prop,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=rollout_buffer_kwargs,
            normalize_advantage=normalize_advantage,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=_init_setup_model,
        )

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int | None = 100,
        tb_log_name: str = "A2C",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> "A2C":
        """Train as ``OnPolicyLoop.learn`` does, with the defaults of SB3's A2C.

        Args:
            total_timesteps: timesteps of training, over all environments.
            callback: called in each timestep and around each rollout.
            log_interval: iterations between two rows of the log; None for no log.
            tb_log_name: name of the run for TensorBoard.
            reset_num_timesteps: start counting timesteps at 0.
            progress_bar: show SB3's progress bar.

        Returns:
            The agent itself.
        """
        return super().learn(
            total_timesteps,
            callback,
            log_interval,
            tb_log_name,
            reset_num_timesteps,
            progress_bar,
        )

    def train(self) -> None:
        """Run one update: a gradient step on the whole rollout."""
        update = self.begin_update()
        samples = self.rollout_buffer.full_batch()
        # The weights are those of the rollout, so there is no importance ratio.
        losses, metrics = a2c_losses(update.evaluate_actions(samples), samples, update.weights)
        # Before the gradient step, which frees the graph that the conflict is measured on.
        update.record(metrics, losses, samples)
        update.gradient_step(losses, samples)
        self._n_updates += 1
        self.log_update(update, {})


def a2c_losses(
    evaluation: ActionEvaluation, samples: Samples, weights: LossWeights
) -> tuple[PerSample, Metrics]:
    """Return the losses of advantage actor-critic.

        L_policy = −A log π(a|s)
        L_value  = ((R − V) / σ)²
        L = L_policy + ent_coef · L_entropy + vf_coef · L_value

    Args:
        evaluation: outputs of the policy, log π, V and σ.
        samples: the rollout, with A and R.
        weights: coefficients of the loss.

    Returns:
        (B,), L of each sample; and the metrics of the rollout.

    References:
        Mnih et al., "Asynchronous Methods for Deep Reinforcement Learning", ICML 2016.
    """
    # The advantages are data of the rollout and carry no gradient.
    policy_losses = -weights.advantages(samples) * evaluation.log_probs
    value_losses = value_losses_of(evaluation, samples)
    losses, metrics = weights.combine(evaluation, policy_losses, value_losses)
    # SB3's A2C logs the policy loss under a different name than its PPO, and no total loss.
    metrics["train/policy_loss"] = metrics.pop("train/policy_gradient_loss")
    del metrics["train/loss"]
    return losses, metrics
