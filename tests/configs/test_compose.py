"""From ``key=value`` words to a valid configuration, or to one message."""

from collections.abc import Callable
from functools import cache

import gymnasium as gym
import minigrid  # noqa: F401  (registers its ids)
import pytest
import yaml
from command_words import EVAL_WORDS, TRAIN_WORDS
from hypothesis import given, settings
from hypothesis import strategies as st

from mirl.configs.agents import PPOConfig
from mirl.configs.compose import GROUPS, compose_train, parse_flat, presets, validate
from mirl.configs.compose import PRESETS as FOLDER
from mirl.configs.errors import ConfigError
from mirl.configs.networks import FilmConfig
from mirl.configs.schema import EvalConfig, TrainConfig

PRESETS = [(group, preset) for group in GROUPS for preset in presets(group)]
COMPANIONS = {
    ("encoder", "image"): ["task.observation=rgb"],
    ("encoder", "vector"): ["sites=[vector]"],
    ("context", "task_id"): ["task=doors"],
    ("context", "one_hot"): ["task=doors"],
    ("split", "rooms"): ["task=doors"],
    ("split", "ode"): ["task=ode"],
    ("split", "new_color"): ["task=door_colors"],
    ("split", "angles"): ["task=ode_circle"],
}
"""What a preset needs beside it to make sense."""


@cache
def compose_preset(group: str, preset: str) -> TrainConfig:
    return compose_train([f"{group}={preset}", *COMPANIONS.get((group, preset), [])])


def message_of(*argv: str) -> str:
    with pytest.raises(ConfigError) as caught:
        compose_train(argv)
    message = str(caught.value)
    assert "Traceback" not in message
    return message


def test_no_words_give_the_defaults() -> None:
    config = compose_train([])
    assert config.run_name == "goto_door-bilinear-ppo-seed0"
    assert isinstance(config.agent, PPOConfig)
    assert [task.env_id for task in config.task.tasks] == ["MiniGrid-GoToDoor-5x5-v0"]


@pytest.mark.parametrize(("group", "preset"), PRESETS)
def test_every_preset_composes(group: str, preset: str) -> None:
    config = compose_preset(group, preset)
    part = getattr(config, group)
    written = yaml.safe_load((FOLDER / group / f"{preset}.yaml").read_text(encoding="utf-8"))
    if group in ("task", "split"):  # run directories are named after it
        assert part.name == preset
    else:
        assert part.kind == written["kind"]


@pytest.mark.parametrize("preset", presets("task"))
def test_every_task_preset_names_registered_environments(preset: str) -> None:
    for task in compose_preset("task", preset).task.tasks:
        if not task.env_id.startswith(("MiniGrid-", "BabyAI-")):
            pytest.skip("not of MiniGrid: registered by a package that is optional")
        assert task.env_id in gym.registry


def test_a_task_preset_may_override_other_groups_and_the_command_line_overrides_it() -> None:
    suite = compose_train(["task=mt5"])
    assert (suite.context.kind, suite.total_timesteps) == ("task_id", 1_000_000)
    asked = compose_train(["total_timesteps=7", "context=mission", "task=mt5"])
    assert (asked.context.kind, asked.total_timesteps) == ("mission", 7)
    assert compose_train(["agent.n_envs=64", "task=minigrid30"]).agent.n_envs == 64


def test_each_multitask_suite_contains_the_smaller_one() -> None:
    three, five, seven = (
        compose_train([f"task={name}"]).task.tasks for name in ("mt3", "mt5", "mt7")
    )
    assert (len(three), len(five), len(seven)) == (3, 5, 7)
    assert (five[:3], seven[:5]) == (three, five)


def test_the_thirty_tasks_are_thirty_environments_of_equal_share() -> None:
    config = compose_train(["task=minigrid30"])
    assert len({task.env_id for task in config.task.tasks}) == 30
    assert config.agent.n_envs % 30 == 0


@pytest.mark.parametrize(("group", "preset"), PRESETS)
def test_a_config_survives_yaml(group: str, preset: str) -> None:
    config = compose_preset(group, preset)
    text = yaml.safe_dump(config.model_dump(mode="json"))
    assert validate(TrainConfig, yaml.safe_load(text)) == config


def test_values_reach_the_config() -> None:
    config = compose_train(
        ["fusion=film", "agent.n_steps=64", "sites=[vector]", "seed=3", "total_timesteps=1e6"]
    )
    assert config.fusion == FilmConfig()
    assert config.agent.n_steps == 64
    assert config.sites == ("vector",)
    assert config.run_name == "goto_door-film-ppo-seed3"
    assert config.total_timesteps == 1_000_000


def test_the_order_of_words_does_not_matter() -> None:
    assert compose_train(["fusion.rank=3", "fusion=low_rank"]) == compose_train(
        ["fusion=low_rank", "fusion.rank=3"]
    )


@pytest.mark.parametrize(
    "env_id", ["BabyAI-GoToObj-v0", "MiniGrid-Empty-Random-6x6-v0", "CartPole-v1", "ALE/Pong-v5"]
)
def test_a_task_can_be_any_environment_id(env_id: str) -> None:
    (task,) = compose_train([f"task={env_id}"]).task.tasks
    assert (task.name, task.env_id) == (env_id, env_id)


def test_ids_joined_by_a_plus_make_a_suite() -> None:
    suite = compose_train(["task=BabyAI-GoToObj-v0+BabyAI-GoToLocal-v0", "context=task_id"]).task
    assert [task.env_id for task in suite.tasks] == ["BabyAI-GoToObj-v0", "BabyAI-GoToLocal-v0"]
    assert suite.name == "BabyAI-GoToObj-v0+BabyAI-GoToLocal-v0"


def test_an_id_that_is_joined_to_itself_is_refused_once() -> None:
    message = message_of("task=BabyAI-GoToObj-v0+BabyAI-GoToLocal-v0+BabyAI-GoToObj-v0")
    assert message == "task names must be unique, these come twice: BabyAI-GoToObj-v0"


def test_by_id_context_and_encoder_are_those_that_the_observations_call_for() -> None:
    config = compose_train(["task=FetchReach-v4"])
    assert (config.context.kind, config.encoder.kind) == ("auto", "auto")
    config = compose_train(
        ["task=FetchReach-v4", "context.dim=32", "encoder=vector", "sites=vector"]
    )
    assert (config.context.kind, config.encoder.kind) == ("mission", "vector")


def test_meta_worlds_tasks_by_id_have_its_rule_of_success() -> None:
    tasks = compose_train(["task=Meta-World/reach-v3+FetchReach-v4"]).task.tasks
    assert [task.success for task in tasks] == ["any_step", "auto"]


def test_a_split_without_a_name_is_part_of_the_runs_name() -> None:
    assert (
        compose_train(["split.missions=[red door]"]).run_name
        == "goto_door-bilinear-ppo-split-seed0"
    )


def test_a_suite_can_be_written_on_the_command_line() -> None:
    words = [
        "task.name=two",
        "task.tasks=[{name: a, env_id: MiniGrid-Empty-5x5-v0}, {name: b, env_id: CartPole-v1}]",
    ]
    suite = compose_train(words).task
    assert suite.name == "two"
    assert [task.name for task in suite.tasks] == ["a", "b"]


@pytest.mark.parametrize("name", ["ALE/Pong-v5", "../../x-v0", "a b/c-v1", "/etc/x-v0"])
def test_no_task_name_leads_out_of_the_runs_folder(name: str) -> None:
    config = compose_train([f"task={name}"])
    assert config.run_dir.parent == config.runs_dir
    assert config.run_dir.name == config.run_name


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("fusoin=film", "unknown option 'fusoin'. Did you mean 'fusion'?"),
        ("agent.n_step=8", "unknown option 'agent.n_step'. Did you mean 'agent.n_steps'?"),
        ("n_steps=8", "unknown option 'n_steps'. Did you mean 'agent.n_steps'?"),
        ("evaluation.evry=8", "unknown option 'evaluation.evry'. Did you mean 'evaluation.every'?"),
        ("evaluation={evry: 8}", "unknown option 'evaluation.evry'. Did you mean 'every'?"),
        ("task.tasks.env_id=x", "unknown option 'task.tasks.env_id'."),
        ("fusion=flim", "unknown fusion 'flim': expected a preset. Did you mean 'film'?"),
        ("context=misson", "unknown context 'misson': expected a preset. Did you mean 'mission'?"),
        ("encoder=gird", "unknown encoder 'gird': expected a preset. Did you mean 'grid'?"),
        ("agent=pppo", "unknown agent 'pppo': expected a preset. Did you mean 'ppo'?"),
        (
            "agent=impala",
            f"unknown agent 'impala': expected a preset. Valid: {', '.join(presets('agent'))}.",
        ),
        ("split=nothing", "unknown split 'nothing': expected a preset. Did you mean 'none'?"),
        (
            "split=rooms",
            "split.tasks: suite 'goto_door' has no task 'goto_door_8x8'. Did you mean 'goto_door'?",
        ),
        (
            "task=goto_dor",
            "unknown task 'goto_dor': expected a preset or an environment id. Did you mean 'goto_door'?",
        ),
        ("fusion.kind=flim", "unknown fusion 'flim'. Did you mean 'film'?"),
        (
            "device=cdua",
            "device: expected 'auto', 'cpu' or 'cuda', got 'cdua'. Did you mean 'cuda'?",
        ),
        ("backend=envpol", "got 'envpol'. Did you mean 'envpool'?"),
        ("context.encoder=gur", "got 'gur'. Did you mean 'gru'?"),
        (
            "sites=[mpa]",
            "sites.0: expected 'map', 'vector' or 'heads', got 'mpa'. Did you mean 'map'?",
        ),
    ],
)
def test_a_typo_names_the_nearest(word: str, message: str) -> None:
    assert message in message_of(word)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["agent.n_envs=many"], "agent.n_envs: input should be a valid integer"),
        (["agent.n_envs=2.5"], "got 2.5"),
        (["agent.n_envs=0"], "agent.n_envs: input should be greater than 0, got 0"),
        (["agent.learning_rate=nan"], "agent.learning_rate: input should be a finite number"),
        (["agent.gamma=1.5"], "agent.gamma: input should be less than or equal to 1, got 1.5"),
        (["progress=perhaps"], "progress: input should be a valid boolean"),
        (["seed=-1"], "seed: input should be greater than or equal to 0, got -1"),
        (["seed=4294967296"], "seed: input should be less than 2147483648"),
        (["sites=3"], "sites: input should be a valid tuple, got 3"),
        (["fusion=low_rank", "fusion.rank=[1]"], "fusion.rank: input should be a valid integer"),
        (["evaluation=3"], "evaluation: input should be a valid dictionary"),
    ],
)
def test_a_wrong_type_or_range_says_what_came(words: list[str], message: str) -> None:
    assert message in message_of(*words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["agent.batch_size=1000"], "batch_size must divide the rollout, n_envs × n_steps = "),
        (["agent.n_envs=1", "agent.batch_size=1"], "batch_size must be at least 2, got 1"),
        (["context=task_id"], "context=task_id needs several tasks, and 'goto_door' has one"),
        (
            ["sites=[map]", "encoder=vector"],
            "encoder=vector has none; use encoder=grid or sites=[vector]",
        ),
        (["encoder=image"], "encoder=image cannot read task.observation=grid"),
        (["encoder=grid", "task.observation=rgb"], "encoder=grid cannot read task.observation=rgb"),
        (
            ["encoder=image", "task.observation=rgb", "backend=envpool"],
            "rendered by backend=gymnasium",
        ),
        (
            ["task=doors", "agent=a2c", "agent.n_envs=2"],
            "agent.n_envs must be at least one per task, 3, got 2",
        ),
        (
            ["task.tasks=[{name: a, env_id: X-v0}, {name: a, env_id: Y-v0}]"],
            "task names must be unique",
        ),
        (["task.tasks=[]"], "tasks must list at least one task"),
        (
            ["task.tasks=[{name: a, env_id: X-v0, score_low: 2}]"],
            "score_high must exceed score_low=2.0, got 1.0",
        ),
        (
            [
                "task=doors",
                "split=rooms",
                "split.tasks=[goto_door_5x5,goto_door_6x6,goto_door_8x8]",
            ],
            "every task of",
        ),
        (
            ["split.goal_low=[0,0]", "split.goal_high=[1]"],
            "corners of one box, got [0.0, 0.0] and [1.0]",
        ),
        (["sampling=uniform"], "sampling is for several tasks, and 'goto_door' trains one"),
        (["agent.pcgrad=true"], "agent.pcgrad is for several tasks, and 'goto_door' trains one"),
        (
            ["agent=sac", "split.goal_low=[0]", "split.goal_high=[1]"],
            "those that split.goal_low and split.goal_high",
        ),
        (["agent=sac", "agent.gradient_steps=0"], "agent.gradient_steps"),
        (["memory=lsmt"], "unknown memory 'lsmt': expected a preset. Did you mean 'lstm'?"),
        (["memory=lstm", "agent=sac"], "memory=lstm is for agent=ppo and agent=a2c, got agent=sac"),
        (
            ["memory=lstm", "agent.n_steps=48", "agent.batch_size=1024"],
            "agent.batch_size=768 or agent.sequence_length=16 would do",
        ),
        (["memory=lstm", "agent.n_envs=25", "agent.batch_size=25"], "agent.batch_size=32 would do"),
        (
            ["memory=lstm", "agent.burn_in=8"],
            "at most 0, got 8; a sequence_length below n_steps=32",
        ),
        (
            ["memory=lstm", "agent.sequence_length=5"],
            "sequence_length must divide n_steps=32, got 5",
        ),
        (
            ["agent.sequence_length=8"],
            "agent.sequence_length and agent.burn_in are for a memory, and memory=none",
        ),
        (["memory=attention", "memory.window=4096"], "memory.window"),
        (
            ["memory=mi_lstm", "memory.gates=[input,input]"],
            "gates must name at least one gate and none twice",
        ),
        (["memory=mi_lstm", "memory.gates=[inptu]"], "Did you mean 'input'?"),
        (["memory=mi_lstm", "memory.gates=inptu"], "Did you mean 'input'?"),
        (["memory=attention", "memory.heads=3"], "size must be a multiple of heads=3, got 128"),
        (["memory=fast_weights", "memory.heads=3"], "size must be a multiple of heads=3, got 128"),
        (
            ["memory=lstm", "memory.rank=3"],
            "unknown option 'memory.rank' of lstm. It is one of mi_lstm",
        ),
        (["memory.window=8"], "unknown option 'memory.window' of none. It is one of attention"),
        (["sites=[]"], "sites must name at least one site"),
        (["sites=[map,map]"], "none twice"),
        (["context.dim=30"], "dim must be even and a multiple of heads=4, got 30"),
        (["name=../elsewhere"], "name must be a plain folder name"),
        (["name=.hidden"], "name must be a plain folder name"),
        (["name=a/b"], "name must be a plain folder name"),
        (["name=" + "a" * 200], "name must be a plain folder name"),
    ],
)
def test_an_impossible_combination_says_why(words: list[str], message: str) -> None:
    assert message in message_of(*words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fusion=film", "fusion.rank=8"], "unknown option 'fusion.rank' of film."),
        (["agent=a2c", "agent.clip_range=0.1"], "unknown option 'agent.clip_range' of a2c."),
        (
            ["context=task_id", "task=doors", "context.heads=2"],
            "unknown option 'context.heads' of task_id.",
        ),
    ],
)
def test_an_option_of_another_preset_is_refused(words: list[str], message: str) -> None:
    assert message in message_of(*words)


@pytest.mark.parametrize("word", ["fusion", "", "=", "=film", "+", "++=1", "--seed"])
def test_a_word_without_key_and_value_is_refused(word: str) -> None:
    assert message_of(word) == f"expected key=value, got '{word}'. See --help."


def test_a_mistake_inside_a_task_is_told_once() -> None:
    (line,) = message_of("task.tasks=[{name: a, env_id: X-v0, success: rewrad}]").splitlines()
    assert (
        line
        == "task.tasks.0.success: expected 'auto', 'reward', 'info' or 'ever', got 'rewrad'. Did you mean 'reward'?"
    )


def config_or_message(
    build: Callable[[], TrainConfig | EvalConfig],
) -> TrainConfig | EvalConfig | str:
    try:
        return build()
    except ConfigError as error:
        return str(error).strip()


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.lists(TRAIN_WORDS, max_size=3))
def test_any_words_give_a_config_or_one_message(argv: list[str]) -> None:
    config = config_or_message(lambda: compose_train(argv))
    assert config
    if isinstance(config, TrainConfig):
        assert (
            validate(TrainConfig, yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json"))))
            == config
        )
        assert config.run_dir.parent == config.runs_dir


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(EVAL_WORDS, max_size=3))
def test_any_words_to_eval_give_a_config_or_one_message(argv: list[str]) -> None:
    assert config_or_message(lambda: parse_flat(EvalConfig, argv))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["run=x", "chekpoint=last"], "unknown option 'chekpoint'. Did you mean 'checkpoint'?"),
        (["episodes=3"], "run=… is required"),
        (["run=x", "episodes=0"], "episodes: input should be greater than 0"),
        (["run=x", "backend=gymnasum"], "Did you mean 'gymnasium'?"),
        (["run"], "expected key=value, got 'run'"),
    ],
)
def test_mistakes_to_eval_are_told_alike(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_flat(EvalConfig, argv)
    assert message in str(caught.value)


def test_one_site_needs_no_brackets() -> None:
    assert compose_train(["sites=map"]).sites == ("map",)
