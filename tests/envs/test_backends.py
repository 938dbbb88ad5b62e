"""What is particular to one backend: workers that fail, EnvPool that is missing, which of the two is chosen."""

import importlib
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, get_args

import gymnasium as gym
import numpy as np
import pytest
import toy_envs
from gymnasium.spaces import Box
from stable_baselines3 import PPO, SAC
from stable_baselines3.her import HerReplayBuffer
from toy_goal_envs import MirrorReachEnv

from mirl.configs.errors import ConfigError
from mirl.configs.tasks import SuiteConfig, TaskConfig
from mirl.envs import EnvironmentFailedError, SuiteVecEnv, make_vec_env
from mirl.envs.actions import checked_actions
from mirl.envs.seeds import SeedSplit, env_seeds

COUNTER = "ToyCounter-v0"
EMPTY = "MiniGrid-Empty-5x5-v0"


def suite_of(env_id: str, **fields: Any) -> SuiteConfig:
    return SuiteConfig(name="suite", tasks=(TaskConfig(name="toy", env_id=env_id, **fields),))


def no_envpool(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def refuse(name: str, *arguments: Any) -> Any:
        if name == "envpool":
            raise ImportError("No module named 'envpool'")
        return real(name, *arguments)

    monkeypatch.setattr("mirl.envs.pools.envpool.importlib.import_module", refuse)


def test_auto_takes_envpool_where_it_can() -> None:
    env = make_vec_env([EMPTY, "BabyAI-GoToLocal-v0"], 2)
    assert env.backend == "envpool"
    env.close()


@pytest.mark.parametrize(
    "suite",
    [
        suite_of("CartPole-v1"),
        suite_of(EMPTY, kwargs={"size": 6}),
        suite_of("MiniGrid-MultiRoom-N4-S5-v1"),
        suite_of(EMPTY).model_copy(update={"observation": "rgb"}),
    ],
    ids=["other id", "kwargs", "unknown to envpool", "rgb"],
)
def test_auto_takes_gymnasium_for_what_envpool_cannot_do(suite: SuiteConfig) -> None:
    env = SuiteVecEnv(suite, 1)
    assert env.backend == "gymnasium"
    env.close()
    with pytest.raises(ConfigError, match="backend=envpool cannot step suite 'suite'"):
        SuiteVecEnv(suite, 1, backend="envpool")


def test_auto_takes_gymnasium_without_envpool(monkeypatch: pytest.MonkeyPatch) -> None:
    no_envpool(monkeypatch)
    env = make_vec_env(EMPTY, 1)
    assert env.backend == "gymnasium"
    env.close()


def test_a_missing_envpool_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    no_envpool(monkeypatch)
    with pytest.raises(ConfigError, match=r'pip install "mirl\[fast\]"'):
        make_vec_env(EMPTY, 1, backend="envpool")


def test_a_package_missed_at_the_first_reset_is_told_at_construction() -> None:
    with pytest.raises(
        ConfigError, match=r"ToyLazy-v0 needs a package that is missing: .*pip install klingon"
    ):
        make_vec_env("ToyLazy-v0", 8)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_environment_that_raises_is_named(workers: int) -> None:
    env = SuiteVecEnv(suite_of(COUNTER), 4, workers=workers, seed=1)
    seeds = env.seed(1)
    env.reset()
    message = rf"task 'toy' \({COUNTER}, seed {seeds[3]}\) failed in step\(\): ZeroDivisionError: a mistake of the toy"
    with pytest.raises(EnvironmentFailedError, match=message):
        env.step(np.array([0, 0, 0, 3]))
    with pytest.raises(RuntimeError, match="a new SuiteVecEnv"):
        env.step(np.zeros(4, int))
    env.close()


def test_a_worker_that_dies_is_an_error_and_no_hang() -> None:
    env = SuiteVecEnv(suite_of(COUNTER), 4, workers=2)
    env.reset()
    start = time.perf_counter()
    with pytest.raises(
        EnvironmentFailedError,
        match=rf"task 'toy' \({COUNTER}, one of the seeds .*\): a worker process died, exit code 7",
    ):
        env.step(np.array([0, 0, 0, 4]))
    assert time.perf_counter() - start < 30
    env.close()


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_the_number_of_workers_does_not_change_the_trajectory(workers: int) -> None:
    plain = SuiteVecEnv(
        suite_of("MiniGrid-DoorKey-5x5-v0"), 5, backend="gymnasium", workers=0, seed=2
    )
    spread = SuiteVecEnv(
        suite_of("MiniGrid-DoorKey-5x5-v0"), 5, backend="gymnasium", workers=workers, seed=2
    )
    np.testing.assert_array_equal(plain.reset()["image"], spread.reset()["image"])
    rng = np.random.default_rng(0)
    for _ in range(20):
        actions = rng.integers(7, size=5)
        np.testing.assert_array_equal(
            plain.step(actions)[0]["image"], spread.step(actions)[0]["image"]
        )
    plain.close()
    spread.close()


def test_an_id_that_only_the_owner_registered_reaches_the_workers() -> None:
    gym.register("ToyLate-v0", entry_point=toy_envs.CounterEnv, kwargs={"size": 3})
    env = SuiteVecEnv(suite_of("ToyLate-v0"), 2, workers=1)
    assert env.reset()["observation"].shape == (2, 3)
    env.close()
    del gym.registry["ToyLate-v0"]


def test_closing_leaves_no_process() -> None:
    before = set(multiprocessing.active_children())
    env = SuiteVecEnv(suite_of(COUNTER), 4, workers=2)
    env.reset()
    assert len(set(multiprocessing.active_children()) - before) == 2
    env.close()
    assert set(multiprocessing.active_children()) == before


@pytest.mark.skipif(not Path("/proc").exists(), reason="needs /proc")
def test_no_worker_outlives_an_owner_that_was_killed(tmp_path: Path) -> None:
    script = tmp_path / "owner.py"
    script.write_text(
        "import multiprocessing, sys, time\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from mirl.configs.tasks import SuiteConfig, TaskConfig\n"
        "from mirl.envs import SuiteVecEnv\n"
        "if __name__ == '__main__':\n"
        f"    task = TaskConfig(name='toy', env_id='{EMPTY}')\n"
        "    env = SuiteVecEnv(SuiteConfig(name='suite', tasks=(task,)), 2, backend='gymnasium', workers=2)\n"
        "    env.reset()\n"
        "    print(*[child.pid for child in multiprocessing.active_children()], flush=True)\n"
        "    time.sleep(600)\n"
    )
    owner = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    workers = [int(pid) for pid in owner.stdout.readline().split()]
    assert len(workers) == 2
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    deadline = time.monotonic() + 30
    while any(alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(alive(pid) for pid in workers)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False
    return state != "Z"


def test_success_can_come_from_the_info() -> None:
    env = SuiteVecEnv(suite_of(COUNTER, success="info", kwargs={"report": True}), 3)
    env.reset()
    _, _, dones, infos = env.step(np.array([0, 1, 2]))
    assert dones.tolist() == [False, True, True]
    assert [info.get("is_success") for info in infos] == [None, True, False]
    env.close()


def test_an_info_without_success_is_an_error_that_names_the_task() -> None:
    env = SuiteVecEnv(suite_of(COUNTER, success="info"), 1)
    env.reset()
    with pytest.raises(
        ConfigError, match=r"task 'toy' has success=info.*no 'is_success'; use success=reward"
    ):
        env.step(np.array([1]))


@pytest.mark.parametrize(
    ("actions", "expected"),
    [((1, 0, 0), True), ((0, 0, 1), True), ((1, 2, 2), True), ((0, 0, 2), False)],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_success_at_any_timestep_is_one_for_ever(
    actions: tuple[int, int, int], expected: bool, workers: int
) -> None:
    env = SuiteVecEnv(suite_of("ToyGlimpse-v0", success="any_step"), 2, workers=workers)
    env.reset()
    for _ in range(2):  # nothing is left over for the second episode
        for action in actions:
            infos = env.step(np.array([action, 0]))[3]
        assert [info["is_success"] for info in infos] == [expected, False]
        for action in (0, 0, 0):
            infos = env.step(np.array([action, 0]))[3]
        assert [info["is_success"] for info in infos] == [False, False]
    env.close()


def test_success_from_the_info_is_that_of_the_last_timestep() -> None:
    env = SuiteVecEnv(suite_of("ToyGlimpse-v0", success="info"), 2)
    env.reset()
    for actions in ((1, 0), (0, 0), (0, 1)):
        infos = env.step(np.array(actions))[3]
    assert [info["is_success"] for info in infos] == [False, True]
    env.close()


def test_a_success_that_no_timestep_reports_is_an_error_that_names_the_task() -> None:
    env = SuiteVecEnv(suite_of("ToyGlimpse-v0", success="any_step"), 1)
    env.reset()
    env.step(np.array([2]))
    env.step(np.array([2]))
    with pytest.raises(
        ConfigError,
        match=r"task 'toy' has success=any_step, but every info of ToyGlimpse-v0 has no",
    ):
        env.step(np.array([2]))


def two_goals() -> SuiteConfig:
    tasks = tuple(TaskConfig(name=f"goal{i}", env_id="ToyRandomGoal-v0") for i in range(2))
    return SuiteConfig(name="goals", tasks=tasks)


def reach(n_envs: int, **arguments: Any) -> SuiteVecEnv:
    if "ToyMirrorReach-v0" not in gym.registry:
        gym.register("ToyMirrorReach-v0", entry_point=MirrorReachEnv)
    return SuiteVecEnv(suite_of("ToyMirrorReach-v0", success="info"), n_envs, **arguments)


@pytest.mark.parametrize("workers", [0, 2])
def test_rewards_of_other_goals_are_the_environments_own(workers: int) -> None:
    env = reach(3, workers=workers)
    achieved, desired = np.random.default_rng(0).uniform(-1, 1, (2, 50, 1)).astype(np.float32)
    expected = MirrorReachEnv().compute_reward(achieved, desired, {})
    assert 0 < (expected == 0).sum() < 50
    for indices, n in (([0], 1), (None, 3), (2, 1)):
        rewards = env.env_method("compute_reward", achieved, desired, [{}] * 50, indices=indices)
        assert len(rewards) == n
        np.testing.assert_array_equal(rewards, [expected] * n)
    env.close()


@pytest.mark.parametrize("copy_info_dict", [False, True])
def test_hindsight_replay_of_sb3_works_on_it(copy_info_dict: bool) -> None:
    env = reach(4, workers=0)
    model = SAC(
        "MultiInputPolicy",
        env,
        replay_buffer_class=HerReplayBuffer,
        replay_buffer_kwargs={"n_sampled_goal": 4, "copy_info_dict": copy_info_dict},
        learning_starts=20,
        buffer_size=400,
        batch_size=16,
        policy_kwargs={"net_arch": [8]},
        seed=0,
        device="cpu",
    )
    model.learn(64)
    buffer = model.replay_buffer
    assert isinstance(buffer, HerReplayBuffer)
    ends = buffer.dones[: buffer.pos] == 1
    assert ends.sum() == buffer.pos * 4 / 2  # episodes of two timesteps
    np.testing.assert_array_equal(buffer.timeouts[: buffer.pos] == 1, ends)  # all of them time-outs
    # the last observation of an episode is its own, not the next one's first, which is at point 0
    np.testing.assert_array_equal(
        buffer.next_observations["desired_goal"][: buffer.pos],
        buffer.observations["desired_goal"][: buffer.pos],
    )
    sample = buffer.sample(256)
    goals, points = (
        sample.next_observations["desired_goal"],
        sample.next_observations["achieved_goal"],
    )
    expected = -((points - goals).abs() > MirrorReachEnv.TOLERANCE).float()
    np.testing.assert_array_equal(sample.rewards, expected)
    assert (
        sample.rewards == 0
    ).float().mean() > 0.3  # hindsight: many reach the goal that they are given
    env.close()


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (lambda: make_vec_env("ToyCounter-v0", 2), "ToyCounter-v0 has no 'compute_reward'"),
        (
            lambda: make_vec_env(EMPTY, 2, backend="envpool"),
            f"suite '{EMPTY}' has 1 and backend=envpool",
        ),
        (
            lambda: SuiteVecEnv(two_goals(), 2, workers=0),
            "suite 'goals' has 2 and backend=gymnasium",
        ),
    ],
)
def test_rewards_of_other_goals_need_a_goal_environment(env: Any, message: str) -> None:
    env = env()
    with pytest.raises(AttributeError, match=message):
        env.env_method("compute_reward", np.zeros((1, 1)), np.zeros((1, 1)), [{}], indices=[0])
    env.close()


def test_tasks_with_other_shapes_are_an_error_that_names_both() -> None:
    tasks = tuple(TaskConfig(name=f"size{n}", env_id=COUNTER, kwargs={"size": n}) for n in (2, 3))
    with pytest.raises(
        ConfigError,
        match=r"'observation' of 'size2' is Box of shape \(2,\).*'size3' Box of shape \(3,\)",
    ):
        SuiteVecEnv(SuiteConfig(name="suite", tasks=tasks), 2)


def test_tasks_with_other_keys_are_an_error_that_names_both() -> None:
    with pytest.raises(
        ConfigError,
        match=r"keys of 'CartPole-v1' is \['observation', 'task'\], of 'ToyText-v0' \['cell'",
    ):
        make_vec_env(["CartPole-v1", "ToyText-v0"], 2)


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.zeros(2, np.float32), r"shape \(2, 2\)"),
        (np.array([[0, 0], [0, np.nan]]), "nan"),
        (np.array([[0, 0], [0, 1.5]]), "1.5"),
    ],
)
def test_invalid_continuous_actions_are_errors(actions: np.ndarray, message: str) -> None:
    env = make_vec_env("ToyRandomGoal-v0", 2)
    env.reset()
    with pytest.raises(ValueError, match=message):
        env.step(actions)
    env.step(np.full((2, 2), 0.5, np.float32))
    env.close()


def test_a_bound_overshot_by_rounding_is_cut() -> None:
    space = Box(np.float32(-0.2607247), np.float32(0.5759154), (2,), np.float32)
    overshot = np.nextafter(space.high, np.float32(1))[None]
    assert not space.contains(overshot[0])
    assert space.contains(checked_actions(overshot, space, 1)[0])


def test_ppo_acts_in_a_multi_binary_space() -> None:
    env = make_vec_env("ToySwitches-v0", 2)
    PPO("MultiInputPolicy", env, n_steps=8, batch_size=16, device="cpu").learn(16)
    env.close()


def test_actions_that_do_not_count_from_zero_are_refused() -> None:
    task = TaskConfig(name="switches", env_id="ToySwitches-v0", kwargs={"start": 2})
    with pytest.raises(ConfigError, match="SB3 counts actions from 0"):
        make_vec_env(SuiteConfig(name="switches", tasks=(task,)), 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backend": "envpol"}, "unknown backend 'envpol'. Did you mean 'envpool'"),
        ({"split": "tset"}, "unknown split 'tset'. Did you mean 'test'"),
        ({"env": []}, "at least one task"),
        ({"env": ["ToySwitches-v0", "ToySwitches-v0"]}, "task names must be unique"),
    ],
)
def test_a_mistaken_argument_is_a_message(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        make_vec_env(**{"env": "ToySwitches-v0", "n_envs": 2, **arguments})


def test_the_seeds_of_the_splits_never_meet() -> None:
    ends = {
        "train": (0, 2**30),
        "validation": (2**30, 2**30 + 2**29),
        "test": (2**30 + 2**29, 2**31),
    }
    assert set(ends) == set(get_args(SeedSplit))
    for split in get_args(SeedSplit):
        start, end = ends[split]
        for seed in (0, 1, 2**31 - 1):
            assert all(
                start <= value < end
                for task in range(3)
                for value in env_seeds(seed, split, task, 500)
            )


def test_seeds_of_neighboring_seeds_and_tasks_do_not_meet() -> None:
    groups = [set(env_seeds(seed, "train", task, 100)) for seed in range(5) for task in range(5)]
    assert len(set().union(*groups)) == 2500
