"""PPO: the loop over minibatches, and its loss."""

from typing import Any

import torch
from stable_baselines3 import PPO as SB3PPO
from stable_baselines3.common.buffers import RolloutBuffer as SB3RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule

from mirl.agents.on_policy.action_evaluation import ActionEvaluation, PerSample
from mirl.agents.on_policy.loop import OnPolicyLoop
from mirl.agents.on_policy.losses import LossWeights, Metrics, value_losses_of
from mirl.agents.on_policy.minibatch import Samples
from mirl.configs.schema import PrecisionName


class PPO(OnPolicyLoop, SB3PPO):
    """Proximal policy optimization, SB3's ``PPO`` with a faster rollout and update.

    The parameters up to ``device`` are SB3's, with SB3's defaults. Those after it are MIRL's; they
    are off by default.

    Args:
        policy: policy class, or one of SB3's aliases ("MlpPolicy", ...).
        env: environment, vectorized or not, or a registered id.
        learning_rate: step size of the optimizer; may be a function of the remaining progress,
            which goes from 1 to 0.
        n_steps: timesteps of each environment per rollout.
        batch_size: timesteps per minibatch.
        n_epochs: passes over each rollout.
        gamma: γ, the discount factor.
        gae_lambda: λ of generalized advantage estimation.
        clip_range: ε, the clipping range of the policy loss; may be a function of the remaining
            progress.
        clip_range_vf: clipping range of the values, in the unit of the returns; None for no
            clipping; may be a function of the remaining progress.
        normalize_advantage: normalize the advantages of each minibatch.
        ent_coef: weight of the entropy loss.
        vf_coef: weight of the value loss.
        max_grad_norm: the gradient is clipped to this norm.
        use_sde: use generalized state-dependent exploration instead of Gaussian noise.
        sde_sample_freq: timesteps between two draws of the exploration matrix; -1 to draw at the
            start of each rollout only.
        rollout_buffer_class: class of the buffer, derived from MIRL's ``RolloutBuffer``, or from
            its ``RecurrentRolloutBuffer`` if the policy is recurrent; None for these two.
        rollout_buffer_kwargs: further arguments of the buffer.
        target_kl: stop the update when the approximate KL divergence exceeds 1.5 times this value;
            None for no limit.
        stats_window_size: number of episodes that logged returns and lengths are averaged over.
        tensorboard_log: folder of the TensorBoard log; None for none.
        policy_kwargs: further arguments of the policy.
        verbose: 0 for no output, 1 for information, 2 for debugging.
        seed: seed of the random number generators; None for a random one.
        device: the training device.
        _init_setup_model: build the networks now.
        precision: "fp32"; "bf16" to compute the policy's trunk in bfloat16; "auto" for the faster.
        advantages_per_task: normalize the advantages per task over the rollout, instead of per
            minibatch; needs ``normalize_advantage``.
        advantage_floor: smallest standard deviation that normalized advantages are divided by, as a
            fraction of the root mean square of the rollout's returns; 0 for none, as in SB3.
        kl_coef: weight of the KL divergence from the policy of the rollout; 0 for none, as in SB3.
        pcgrad: project conflicting gradients of the tasks (PCGrad).
        conflict_every: iterations between two measurements of how the tasks' gradients conflict; 0
            for none.
        skip_faults: warn and continue with the next rollout if an update makes a weight non-finite,
            instead of raising ``NonFiniteError``. The update is rolled back in both cases.
        sequence_length: timesteps of the sequences that a recurrent policy is trained on, a divisor
            of ``n_steps``; 0 for ``batch_size`` if that divides ``n_steps``, else for ``n_steps``.
            ``batch_size`` still counts timesteps, not sequences.
        burn_in: timesteps before each sequence that only recompute its hidden state with the
            current weights, at most ``sequence_length``.

    Raises:
        ConfigError: if the options do not fit each other or the policy.

    References:
        Schulman et al., "Proximal Policy Optimization Algorithms", 2017.

    Examples:
        >>> from mirl.agents import PPO
        >>> from mirl.envs import make_vec_env
        >>> from mirl.policies import FusionPolicy
        >>> env = make_vec_env("MiniGrid-GoToDoor-5x5-v0", n_envs=4)
        >>> agent = PPO(FusionPolicy, env, n_steps=16, batch_size=32, n_epochs=2, device="cpu")
        >>> agent.learn(64).num_timesteps
        64
        >>> actions, _ = agent.predict(env.reset())
        >>> actions.shape
        (4,)
    """

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        n_steps: int = 2048,
        batch_size: int = 64,
        n_epochs: int = 10,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_range: float | Schedule = 0.2,
        clip_range_vf: float | Schedule | None = None,
        normalize_advantage: bool = True,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[SB3RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        target_kl: float | None = None,
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
        kl_coef: float = 0.0,
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
        self.kl_coef = kl_coef
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            batch_size=batch_size,
            n_epochs=n_epochs,
            gamma=gamma,
            gae_lambda=gae_lambda,
            clip_range=clip_range,
            clip_range_vf=clip_range_vf,
            normalize_advantage=normalize_advantage,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=rollout_buffer_kwargs,
            target_kl=target_kl,
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
        log_interval: int | None = 1,
        tb_log_name: str = "PPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> "PPO":
        """Train as ``OnPolicyLoop.learn`` does, with the defaults of SB3's PPO.

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
        """Run one update: ``n_epochs`` passes over the rollout in minibatches of ``batch_size``."""
        update = self.begin_update()
        progress = self._current_progress_remaining
        # SB3 has turned both clip ranges into schedules of the progress.
        clip_range = self.clip_range(progress)  # type: ignore[operator]
        clip_range_vf = None
        if self.clip_range_vf is not None:
            clip_range_vf = self.clip_range_vf(progress)  # type: ignore[operator]
        for _ in range(self.n_epochs):
            n_minibatches = 0
            kl_is_exceeded = False
            for samples in self.rollout_buffer.get(self.batch_size):
                evaluation = update.evaluate_actions(samples)
                losses, metrics = ppo_losses(
                    evaluation, samples, update.weights, clip_range, clip_range_vf, self.kl_coef
                )
                # Before the gradient step, which frees the graph that the conflict is measured on.
                update.record(metrics, losses, samples)
                n_minibatches += 1
                # The factor is SB3's. Read on demand only, because float() waits for the device.
                if self.target_kl is not None:
                    divergence = update.last_metric("train/approx_kl")
                    kl_is_exceeded = divergence > 1.5 * self.target_kl
                # Before the gradient step: the policy is already too far from the rollout's.
                if kl_is_exceeded:
                    break
                update.gradient_step(losses, samples)
            # As in SB3, an epoch that was stopped counts.
            self._n_updates += 1
            if kl_is_exceeded:
                break
        # As SB3 logs them: the loss of the last minibatch, and the KL divergence of the last epoch.
        self.log_update(update, {"train/loss": 1, "train/approx_kl": n_minibatches})
        self.logger.record("train/clip_range", clip_range)
        if clip_range_vf is not None:
            self.logger.record("train/clip_range_vf", clip_range_vf)

    def _minibatch_size(self) -> int:
        return self.batch_size


def ppo_losses(
    evaluation: ActionEvaluation,
    samples: Samples,
    weights: LossWeights,
    clip_range: float,
    clip_range_vf: float | None = None,
    kl_coef: float = 0.0,
) -> tuple[PerSample, Metrics]:
    """Return the losses of PPO's clipped objective.

        ρ = π(a|s) / π_old(a|s)
        L_policy = −min(ρ A, clip(ρ, 1 − ε, 1 + ε) A)
        L_value  = ((R − V) / σ)²
        L_KL     = (ρ − 1) − log ρ
        L = L_policy + ent_coef · L_entropy + vf_coef · L_value + kl_coef · L_KL

    L_KL is an unbiased, low-variance estimate of KL(π_old, π), and so is its gradient.

    Args:
        evaluation: outputs of the current policy, log π, V and σ.
        samples: the minibatch, with log π_old, A and R.
        weights: coefficients of the loss.
        clip_range: ε.
        clip_range_vf: clipping range of the values; None for no clipping.
        kl_coef: weight of L_KL.

    Returns:
        (B,), L of each sample; and the metrics of the minibatch.

    References:
        Schulman et al., "Proximal Policy Optimization Algorithms", 2017, which has the clipped
        objective and a penalty on the divergence, as separate variants.
        Schulman, "Approximating KL Divergence", http://joschu.net/blog/kl-approx.html.
    """
    advantages = weights.advantages(samples)
    log_ratio = evaluation.log_probs - samples.old_log_prob  # log ρ
    ratio = log_ratio.exp()  # ρ
    clipped_ratio = ratio.clamp(1 - clip_range, 1 + clip_range)
    # The minimum leaves no gradient that would push ρ further out of the range.
    policy_losses = -torch.min(advantages * ratio, advantages * clipped_ratio)
    value_losses = value_losses_of(evaluation, samples, clip_range_vf)
    losses, metrics = weights.combine(evaluation, policy_losses, value_losses)
    divergences = log_ratio.expm1() - log_ratio
    if kl_coef:
        losses = losses + kl_coef * divergences
        metrics["train/loss"] = losses.detach().mean()
    with torch.no_grad():
        metrics["train/clip_fraction"] = ((ratio - 1).abs() > clip_range).float().mean()
        metrics["train/approx_kl"] = divergences.mean()
    return losses, metrics
