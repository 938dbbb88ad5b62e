"""Measure NAVIX's PPO on its own DoorKey-8x8: environment and agent in one compiled JAX program.

The network is NAVIX's default, two tanh layers of 64 each for actor and critic. As in NAVIX's
baselines it sees the whole grid, 8 x 8 x 3 symbols, flattened. All hyperparameters are NAVIX's
defaults, with one epoch and a budget of a million timesteps, except 64 environments instead of 16,
which was fastest on two cores. Training from scratch is repeated until the time is up; compilation
and a first repetition are not timed. In this environment the start of the agent is fixed, which is
cheaper. Use ``--env-id Navix-DoorKey-Random-8x8-v0`` for a random start as in MiniGrid's DoorKey.
"""

import argparse
import math
import os
import time

os.environ["JAX_PLATFORMS"] = "cpu"  # must be set before JAX is imported

import jax
import jax.numpy as jnp
import navix
from navix.agents import PPO, ActorCritic, PPOHparams
from navix.environments import Environment
from report import report


def flatten_observation(env: Environment) -> Environment:
    """Return an environment with its observation as a vector, for an MLP.

    Args:
        env: The environment.
    """
    size = math.prod(env.observation_space.shape)
    observation_fn = env.observation_fn
    return env.replace(
        observation_fn=lambda state: jnp.ravel(observation_fn(state)),
        observation_space=env.observation_space.replace(shape=(size,)),
    )


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--env-id", default="Navix-DoorKey-8x8-v0")
    parser.add_argument("--n-envs", type=int, default=64)
    parser.add_argument("--n-steps", type=int, default=128)
    parser.add_argument("--n-epochs", type=int, default=1)
    parser.add_argument("--n-minibatches", type=int, default=8)
    options = parser.parse_args()

    env = flatten_observation(navix.make(options.env_id))
    hparams = PPOHparams(
        num_envs=options.n_envs,
        num_steps=options.n_steps,
        num_epochs=options.n_epochs,
        num_minibatches=options.n_minibatches,
    )
    network = ActorCritic(action_dim=len(env.action_set))
    agent = PPO(hparams=hparams, network=network, env=env)
    rollout = options.n_envs * options.n_steps
    timesteps_per_training = hparams.budget // rollout * rollout
    train = jax.jit(agent.train).lower(jax.random.PRNGKey(0)).compile()
    jax.block_until_ready(train(jax.random.PRNGKey(0)))

    timesteps = 0
    start = time.perf_counter()
    while (seconds := time.perf_counter() - start) < options.seconds:
        jax.block_until_ready(train(jax.random.PRNGKey(timesteps)))
        timesteps += timesteps_per_training
    report(
        "navix",
        timesteps,
        seconds,
        ("jax",),
        environment=options.env_id,
        observation="symbolic, whole grid, flattened",
        network="MLP 64-64 tanh, actor and critic apart",
        n_envs=options.n_envs,
        n_steps=options.n_steps,
        n_epochs=options.n_epochs,
        batch_size=rollout // options.n_minibatches,
    )


if __name__ == "__main__":
    main()
