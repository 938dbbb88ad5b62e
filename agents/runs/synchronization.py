"""Synchronization points: after a checkpoint, training depends only on the checkpoint.

Not every backend can copy the state of its environments. Therefore every run, interrupted or not,
restarts its episodes and its random generators at each checkpoint, from seeds that are derived from
the run's seed and the timesteps. On a CPU, a run that was killed and resumed ends with exactly the
same weights as one that was not. If several processes train, the seeds also depend on the rank.
"""

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import set_random_seed

from mirl.agents.runs.ranks import ONE_PROCESS
from mirl.agents.runs.replay_buffer import truncate_unfinished_episodes

MAX_SEED = 2**31
"""Exclusive upper bound of the seeds of environments."""


def reseed_all(agent: BaseAlgorithm) -> None:
    """Restart episodes and random generators from the run's seed, timesteps and rank only.

    Args:
        agent: an agent with a seed and an environment.
    """
    assert agent.env is not None
    assert agent.seed is not None, "a run has a seed"
    ranks = getattr(agent, "ranks", ONE_PROCESS)  # off-policy agents have none
    key = (ranks.rank,) if ranks.rank else ()
    sequence = np.random.SeedSequence((agent.seed, agent.num_timesteps), spawn_key=key)
    # one seed each for torch and NumPy, for random actions, and for the environments
    numbers = sequence.generate_state(3, np.uint64)
    torch_seed, action_seed, env_seed = (int(number) % MAX_SEED for number in numbers)
    set_random_seed(torch_seed, using_cuda=agent.device.type == "cuda")
    agent.action_space.seed(action_seed)
    agent.env.seed(env_seed)
    # SB3 keeps the last observation between rollouts
    agent._last_obs = agent.env.reset()  # type: ignore[assignment]
    # also clears the hidden state of a recurrent policy
    agent._last_episode_starts = np.ones(agent.n_envs, dtype=np.bool_)
    truncate_unfinished_episodes(agent)
