"""Training a policy that remembers: against sb3-contrib's RecurrentPPO, against itself, and on what it must recall."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from run_setup import adapt_at, evaluate_at, export_at
from sb3_contrib import RecurrentPPO
from stable_baselines3 import PPO as SB3PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor

from mirl.agents import A2C, PPO, evaluate, load_policy, train
from mirl.agents.builder import build_policy
from mirl.configs.compose import compose_train
from mirl.configs.errors import ConfigError
from mirl.configs.networks import LstmConfig, RecurrentConfig, choose
from mirl.configs.schema import EvalConfig, TrainConfig
from mirl.envs import SuiteVecEnv
from mirl.policies import FusionExtractor, FusionPolicy, RecurrentFusionPolicy, specialize
from mirl.policies import grouped_matmul as grouping

close = torch.testing.assert_close
MEMORIES = ("lstm", "gru", "mi_lstm", "fast_weights", "attention")
DELAY = 3
"""Timesteps between what is shown and what is asked in ``RecallEnv``."""


class RecallEnv(gym.Env[dict[str, Any], Any]):
    """A sign is shown once; some timesteps later it is asked for, or, if the task says so, its opposite.

    Episodes end or are cut off at different lengths; what is not asked for gives no reward.
    """

    def __init__(self, cut_off: bool = False, continuous: bool = False) -> None:
        self.observation_space = spaces.Dict(
            observation=spaces.Box(-1, 1, (2,), np.float32), task=spaces.Discrete(2)
        )
        self.action_space = spaces.Box(-1, 1, (1,)) if continuous else spaces.Discrete(2)
        self.cut_off = cut_off

    def reset(
        self, *, seed: int | None = None, options: Any = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        self.sign, self.task = int(self.np_random.choice([-1, 1])), int(self.np_random.integers(2))
        self.left = DELAY
        return self.seen(self.sign), {}

    def seen(self, shown: int) -> dict[str, Any]:
        return {
            "observation": np.array([shown, self.left == 0], np.float32),
            "task": np.int64(self.task),
        }

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        if self.left:
            self.left -= 1
            cut_off = self.cut_off and self.left == 1 and bool(self.np_random.random() < 0.3)
            return self.seen(0), 0.0, False, cut_off, {}
        assert self.action_space.contains(action)
        right = (2 * int(np.sum(action) > 0) - 1) * (2 * self.task - 1) == self.sign
        return self.seen(0), float(right), True, False, {"is_success": right}


def recall_envs(n_envs: int = 4, **options: Any) -> DummyVecEnv:
    return DummyVecEnv([lambda: RecallEnv(**options)] * n_envs)


# --------------------------------------------------------------------------------------------------------- the oracle

SIZE = 8
SHARED: dict[str, Any] = {
    "n_steps": 32,
    "batch_size": 128,
    "n_epochs": 1,
    "seed": 3,
    "device": "cpu",
    "ent_coef": 0.01,
}
NETWORKS: dict[str, Any] = {"net_arch": [16], "share_features_extractor": False}


def ours_and_theirs(**options: Any) -> tuple[PPO, RecurrentPPO]:
    """The same networks, with the same weights."""
    shared, envs = {**SHARED, **options}, [recall_envs(cut_off=True) for _ in range(2)]
    of_ours = {**NETWORKS, "sites": ("vector",), "memory": LstmConfig(size=SIZE, normalize=False)}
    of_theirs = {**NETWORKS, "features_extractor_class": FusionExtractor, "lstm_hidden_size": SIZE}
    ours = PPO(RecurrentFusionPolicy, envs[0], policy_kwargs=of_ours, **shared)
    theirs = RecurrentPPO("MultiInputLstmPolicy", envs[1], policy_kwargs=of_theirs, **shared)
    names = set(theirs.policy.state_dict())
    assert names == {as_theirs(name) for name in ours.policy.state_dict()}
    ours.policy.load_state_dict(
        {n: theirs.policy.state_dict()[as_theirs(n)] for n in ours.policy.state_dict()}
    )
    return ours, theirs


def as_theirs(name: str) -> str:
    """What sb3-contrib calls a weight of ours."""
    for our_part, their_part in (
        ("critic_core.network", "lstm_critic"),
        ("core.network", "lstm_actor"),
        ("action_net.linear", "action_net"),
        ("value_net.linear", "value_net"),
    ):
        name = name.replace(our_part, their_part)
    return name


def one_iteration(model: Any) -> tuple[dict[str, float], dict[str, Tensor]]:
    update, step, losses, gradients = (
        model.train,
        model.policy.optimizer.step,
        dict[str, float](),
        dict[str, Tensor](),
    )

    def noted_update() -> None:
        update()
        losses.update(
            {
                name: float(value)
                for name, value in model.logger.name_to_value.items()
                if "train/" in name
            }
        )

    def noted_step() -> None:
        gradients.update({n: weight.grad.clone() for n, weight in model.policy.named_parameters()})
        step()

    model.train, model.policy.optimizer.step = noted_update, noted_step
    torch.manual_seed(0)  # the actions
    model.learn(model.n_steps * model.n_envs)
    return losses, gradients


@pytest.mark.parametrize(
    "options", [{}, {"gae_lambda": 0.5, "gamma": 0.9}, {"normalize_advantage": False}], ids=str
)
def test_losses_and_gradients_are_those_of_sb3_contribs_recurrent_ppo(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    # it begins its minibatches at a random place and would cut a sequence there
    monkeypatch.setattr(np.random, "randint", lambda *_: 0)
    ours, theirs = ours_and_theirs(**options)
    our_losses, our_gradients = one_iteration(ours)
    their_losses, their_gradients = one_iteration(theirs)
    assert ours.rollout_buffer.episode_starts[1:].any()
    close(our_losses, their_losses, rtol=1e-5, atol=1e-5)
    close(
        {as_theirs(n): g for n, g in our_gradients.items()}, their_gradients, rtol=1e-5, atol=1e-5
    )


# ------------------------------------------------------------------------------------------------- rollout and update


def agent(
    kind: type[PPO | A2C] = PPO, memory: str | RecurrentConfig = "lstm", **options: Any
) -> Any:
    core = choose(memory, RecurrentConfig)
    core = core.model_copy(
        update={"skip_connection": options.pop("skip_connection", core.skip_connection)}
    )
    policy_kwargs = {
        "memory": core,
        "sites": ("vector", "heads"),
        **options.pop("policy_kwargs", {}),
    }
    env = recall_envs(cut_off=True, continuous=options.pop("continuous", False))
    model = kind(RecurrentFusionPolicy, env, policy_kwargs=policy_kwargs, seed=0, **options)
    for name, weight in model.policy.named_parameters():
        if name.endswith("core.add.weight"):  # starts at zero, which would hide what is remembered
            torch.nn.init.normal_(weight)
    return model


def judged(model: Any) -> list[tuple[Any, Any]]:
    """Each minibatch of an epoch, and what the policy says about it."""
    return [
        (samples, model._evaluate_actions(samples))
        for samples in model.rollout_buffer.get(getattr(model, "batch_size", None))
    ]


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("share", [True, False], ids=["one trunk", "two trunks"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sequence_length": 8},
        {"sequence_length": 8, "burn_in": 5},
        {"precision": "bf16"},
        {"skip_connection": True},
        {"continuous": True, "use_sde": True, "sde_sample_freq": 4},
    ],
    ids=str,
)
def test_what_was_played_is_judged_as_it_was_played(
    monkeypatch: pytest.MonkeyPatch, memory: str, share: bool, options: dict[str, Any]
) -> None:
    monkeypatch.setattr(
        grouping, "GROUP_OVERHEAD", 0
    )  # a minibatch computes by groups of contexts, a timestep does not
    model = agent(
        memory=memory,
        n_steps=32,
        batch_size=64,
        policy_kwargs={"share_features_extractor": share},
        **options,
    )
    model.train = lambda: None
    model.learn(2 * 32 * 4)
    seen, off = 0, 1e-2 if "precision" in options else 1e-5
    for samples, evaluation in judged(model):
        close(evaluation.log_probs, samples.old_log_prob, rtol=10 * off, atol=off)
        close(evaluation.values, samples.old_values, rtol=10 * off, atol=off)
        seen += len(samples.actions)
    assert seen == 32 * 4


def test_a_rollout_begins_with_what_the_last_one_left() -> None:
    model = agent(n_steps=6, batch_size=24)
    model.train = lambda: None
    model.learn(6 * 4)
    left = model.memory.clone()
    model.learn(6 * 4, reset_num_timesteps=False)
    close(model.rollout_buffer.states[0], left)
    assert left.abs().min() > 0
    assert not model.rollout_buffer.starts[0].all()


def test_burn_in_reads_with_the_present_weights() -> None:
    model = agent(n_steps=32, batch_size=128, sequence_length=8, burn_in=8)
    model.train = lambda: None
    model.learn(32 * 4)
    policy, buffer = model.policy, model.rollout_buffer
    samples = buffer.full_batch()
    sequences = samples.sequences
    assert sequences.burn_in.sequences.tolist() == list(range(4, 16)), (
        "the first of each environment has none"
    )
    with torch.no_grad():
        for weight in policy.core.parameters():
            weight.mul_(1.5)
        refreshed = [buffer.states[0]]
        for begin in (
            0,
            8,
            16,
        ):  # burn-in is as long as a sequence here: it begins where the one before does
            observations, own = buffer._distinct(np.arange(begin * 4, (begin + 8) * 4))
            features = policy.extract_features(observations).index_select(
                0, torch.from_numpy(own), keep_order=False
            )
            starts = torch.from_numpy(buffer.starts[begin : begin + 8])
            refreshed.append(policy.run_cores(features, buffer.states[begin // 8 + 1], starts)[1])
        features = policy.extract_features(samples.observations)
        read = [
            policy.run_sequences(
                features, samples.rows, sequences._replace(burn_in=burn_in, state=state)
            ).vector
            for burn_in, state in (
                (sequences.burn_in, sequences.state),
                (None, torch.cat(refreshed)),
                (None, sequences.state),
            )
        ]
    close(read[0], read[1])
    by_burn_in, by_state = (
        torch.autograd.grad(
            policy.run_sequences(
                policy.extract_features(samples.observations), samples.rows, each
            ).vector.sum(),
            list(policy.core.parameters()),
        )
        for each in (sequences, sequences._replace(burn_in=None, state=torch.cat(refreshed)))
    )
    close(by_burn_in, by_state)  # no gradient flows through what is burnt in
    assert (read[0] - read[2]).abs().max() > 1e-3, "otherwise nothing was burnt in"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_steps": 32, "sequence_length": 5}, "sequence_length must divide n_steps=32, got 5"),
        (
            {"n_steps": 32, "sequence_length": 8, "burn_in": 9},
            "burn_in reads timesteps of the sequence before, at most 8, got 9",
        ),
        (
            {"n_steps": 32, "burn_in": 1},
            "burn_in reads timesteps of the sequence before, at most 0, got 1; a sequence_length below n_steps=32",
        ),
        (
            {"n_steps": 32, "sequence_length": 16, "batch_size": 8},
            "got 8; batch_size=16 or sequence_length=8 would do",
        ),
        (
            {"n_steps": 32, "sequence_length": -8},
            "sequence_length must be a whole number of timesteps, 0 or more, got -8",
        ),
        (
            {"n_steps": 32, "burn_in": -3},
            "burn_in must be a whole number of timesteps, 0 or more, got -3",
        ),
    ],
)
def test_rollouts_that_are_no_whole_sequences_are_refused(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        agent(**{"batch_size": 64, **options})


def test_a_batch_size_of_later_is_refused_too() -> None:
    model = agent(n_steps=8, batch_size=32)
    model.batch_size = 12
    with pytest.raises(
        ConfigError, match="batch_size must be a multiple of a sequence's 8 timesteps, got 12"
    ):
        model.learn(32)


def test_what_needs_a_memory_says_so() -> None:
    with pytest.raises(
        ConfigError, match="sequence_length and burn_in are for a policy with a memory"
    ):
        PPO(FusionPolicy, recall_envs(), sequence_length=8)
    with pytest.raises(ConfigError, match=r"memory=… is for mirl\.policies\.RecurrentFusionPolicy"):
        PPO(FusionPolicy, recall_envs(), policy_kwargs={"memory": "lstm"})
    with pytest.raises(TypeError, match=r"train it with mirl\.agents\.PPO or A2C"):
        SB3PPO(RecurrentFusionPolicy, recall_envs(), n_steps=16).learn(64)
    policy = agent(n_steps=16).policy
    for stateless in (policy.evaluate_actions, policy.get_distribution, policy._predict):
        with pytest.raises(TypeError, match="needs what it remembers"):
            stateless({})


class BreakOff(BaseCallback):
    def _on_step(self) -> bool:
        return self.n_calls < 3


def test_a_rollout_that_is_broken_off_reads_no_observation_twice() -> None:
    model = agent(n_steps=8, batch_size=32, sequence_length=1)
    model.learn(32, callback=BreakOff())
    close(
        model.memory, model.rollout_buffer.states[2]
    )  # before what is seen now, in the third timestep


# --------------------------------------------------------------------------------------------------- acting elsewhere


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("share", [True, False], ids=["one trunk", "two trunks"])
def test_predict_acts_as_the_rollout_did(memory: str, share: bool) -> None:
    model = agent(
        memory=memory, n_steps=16, batch_size=64, policy_kwargs={"share_features_extractor": share}
    )
    model.train = lambda: None
    model.learn(16 * 4)
    policy, env = model.policy, recall_envs()
    env.seed(1)
    observation, state, starts = env.reset(), None, np.ones(4, np.bool_)
    flat, differ = torch.zeros(4, policy.state_dim), 0
    for _ in range(20):
        actions, state = policy.predict(observation, state, starts, deterministic=True)
        seen = policy.obs_to_tensor(observation)[0]
        with torch.no_grad():
            expected, _, _, flat = policy(
                seen, flat, torch.from_numpy(starts[None]), deterministic=True
            )
        np.testing.assert_array_equal(actions, expected.numpy())
        differ += len(set(actions.tolist())) > 1
        observation, _, starts, _ = env.step(actions)


@pytest.mark.parametrize("use_sde", [False, True])
def test_predict_keeps_to_the_space_of_actions(use_sde: bool) -> None:
    model, env = agent(n_steps=16, continuous=True, use_sde=use_sde), recall_envs(continuous=True)
    with torch.no_grad():
        model.policy.log_std.fill_(4.0)  # what is drawn lies far outside
    if use_sde:
        model.policy.reset_noise(4)
    observation, state = env.reset(), None
    for _ in range(5):
        actions, state = model.predict(observation, state)
        assert np.abs(actions).max() == 1.0
        observation, *_ = env.step(actions)


def test_predict_takes_a_single_observation() -> None:
    model = agent(n_steps=16)
    action, state = model.predict(RecallEnv().reset(seed=0)[0])
    assert np.shape(action) == ()
    action, state = model.predict(RecallEnv().reset(seed=0)[0], state)
    assert np.shape(action) == ()


@pytest.mark.parametrize(
    ("state", "starts", "message"),
    [
        ((), None, r"a tuple of one array \(4, 256\)"),
        (np.zeros((4, 16)), None, r"a tuple of one array \(4, 256\)"),
        ((np.zeros((4, 8)), np.zeros((4, 8))), None, r"a tuple of one array \(4, 256\)"),
        (
            None,
            np.zeros(3, np.bool_),
            r"expected episode_start for 4 environments, got shape \(3,\)",
        ),
    ],
)
def test_predict_tells_what_state_it_takes(state: Any, starts: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        agent(n_steps=16).predict(recall_envs().reset(), state, starts)


def test_a_loaded_agent_begins_new_episodes(tmp_path: Path) -> None:
    model = agent(n_steps=6, batch_size=24)
    model.learn(6 * 4)
    model.save(tmp_path / "agent.zip")
    loaded = PPO.load(tmp_path / "agent.zip", recall_envs(), force_reset=False)
    loaded.train = lambda: None  # type: ignore[method-assign]
    loaded.learn(6 * 4, reset_num_timesteps=False)
    assert loaded.rollout_buffer.starts[0].all()  # type: ignore[attr-defined]


def test_no_form_for_one_context_alone() -> None:
    with pytest.raises(ConfigError, match="memory=lstm has no form for one context alone"):
        specialize(agent(n_steps=16).policy, 0)


Build = Callable[..., TrainConfig]
MEMORY = ("task=memory_s7", "memory=mi_lstm", "memory.size=8")


def test_slots_that_are_done_take_no_memory_with_them() -> None:
    config = compose_train(
        [
            *MEMORY,
            "task=MiniGrid-Dynamic-Obstacles-Random-6x6-v0",
            "encoder.features_dim=16",
            "context.dim=8",
        ]
    )
    suite, seed, episodes = config.task, 5, 7
    with closing(SuiteVecEnv(suite, 3, seed=seed, seed_split="test")) as env:
        torch.manual_seed(0)
        policy = build_policy(config, env.observation_space, env.action_space)
        for weight in policy.parameters():
            weight.data.mul_(3.0)  # so that what is remembered decides
        [result] = evaluate(policy, env, episodes=episodes, seed=seed, deterministic=True)
    quota, played = [3, 2, 2], [[], [], []]
    with closing(SuiteVecEnv(suite, 3, seed=seed, seed_split="test")) as env:
        env.seed(seed)
        observation, state, starts = env.reset(), None, np.ones(3, np.bool_)
        while any(len(done) < most for done, most in zip(played, quota, strict=True)):
            actions, state = policy.predict(observation, state, starts, deterministic=True)
            observation, _, starts, infos = env.step(actions)
            for slot in np.flatnonzero(starts):
                played[slot].append(infos[slot]["episode"]["l"])
    expected = [length for done, most in zip(played, quota, strict=True) for length in done[:most]]
    assert result.lengths.tolist() == expected
    assert len(set(expected)) > 1


@pytest.mark.parametrize("backend", ["envpool", "gymnasium"])
def test_a_run_with_a_memory_is_trained_and_evaluated(tiny: Build, backend: str) -> None:
    config = tiny(*MEMORY, f"backend={backend}", "agent.sequence_length=16", "agent.burn_in=4")
    assert config.run_name == "memory_s7-bilinear-mi_lstm-ppo-seed0"
    train(config)
    results, written = evaluate_at(
        EvalConfig(run=config.run_dir, episodes=4, checkpoint="last", gif=True)
    )
    assert len(results[0].success) == 4
    assert written[1].suffix == ".gif"
    with closing(SuiteVecEnv(config.task, 2)) as env:
        policy = load_policy(config.run_dir, "last", "cpu")
        _, state = policy.predict(env.reset())
    assert state[0].shape == (2, 16)


def test_it_is_adapted_and_not_exported(tiny: Build) -> None:
    config = tiny(*MEMORY, "agent.sequence_length=16", "agent.burn_in=4")
    train(config)
    few = {
        "run": config.run_dir,
        "episodes": 4,
        "adapt": "network",
        "task": "memory_s7",
        "adapt_episodes": (1,),
    }
    [(_, curve, _)] = adapt_at(EvalConfig(**few))
    assert [point.episodes >= least for point, least in zip(curve, (0, 1), strict=True)] == [
        True,
        True,
    ]
    with pytest.raises(ConfigError, match="no form for one context alone"):
        export_at(
            EvalConfig(
                run=config.run_dir, export="go to the matching object at the end of the hallway"
            )
        )


# ------------------------------------------------------------------------------------------------------ what it learns


PLENTY: dict[str, Any] = {
    "n_steps": 15,
    "learning_rate": 3e-3,
    "gamma": 0.9,
    "ent_coef": 0.01,
    "seed": 0,
}
MINIBATCHES = {"batch_size": 240, "n_epochs": 4}


def success_after(model: Any, timesteps: int) -> float:
    model.learn(timesteps)
    success, _ = evaluate_policy(model, recall_envs(), n_eval_episodes=200, warn=False)
    return float(np.mean(success))


@pytest.mark.learning
@pytest.mark.parametrize("memory", MEMORIES)
def test_what_was_shown_once_is_recalled(memory: str) -> None:
    policy_kwargs = {"memory": memory, "sites": ("vector", "heads")}
    model = PPO(
        RecurrentFusionPolicy, recall_envs(64), policy_kwargs=policy_kwargs, **PLENTY, **MINIBATCHES
    )
    assert success_after(model, 50_000) > 0.95


@pytest.mark.learning
def test_a2c_recalls_too() -> None:
    policy_kwargs = {"memory": "lstm", "sites": ("vector", "heads")}
    model = A2C(RecurrentFusionPolicy, recall_envs(64), policy_kwargs=policy_kwargs, **PLENTY)
    assert success_after(model, 200_000) > 0.95


@pytest.mark.learning
def test_without_a_memory_it_is_not() -> None:
    model = PPO(FusionPolicy, recall_envs(64), **PLENTY, **MINIBATCHES)
    assert success_after(model, 50_000) < 0.65
