"""A checkpoint is a synchronization point: what follows depends on what it holds, and on nothing else.

Environments cannot be copied on every backend. So at each checkpoint, in every run, whether it was interrupted or not,
episodes and random generators start anew from seeds that are derived from the run's seed and its timesteps.
On a CPU a run that was killed and continued therefore ends with the same weights, to the bit, as one that was not.
"""

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import set_random_seed

from mirl.agents.runs.replay_buffer import end_episodes_under_way

SEEDS = 2**31
"""Seeds of environments lie below."""


def reseed_all(agent: BaseAlgorithm) -> None:
    """Start episodes and generators anew, as they start at these timesteps in every run of this seed."""
    assert agent.env is not None
    assert agent.seed is not None, "a run has a seed"
    sequence = np.random.SeedSequence((agent.seed, agent.num_timesteps))
    of_agent, of_actions, of_environments = (
        int(number) % SEEDS for number in sequence.generate_state(3, np.uint64)
    )
    set_random_seed(of_agent, using_cuda=agent.device.type == "cuda")
    agent.action_space.seed(of_actions)
    agent.env.seed(of_environments)
    agent._last_obs = agent.env.reset()  # type: ignore[assignment]
    agent._last_episode_starts = np.ones(agent.n_envs, dtype=np.bool_)
    end_episodes_under_way(agent)
