"""From command-line arguments to a valid configuration, or to one error message."""

import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import gymnasium as gym
import minigrid  # noqa: F401  (registers its ids)
import pytest
import yaml
from command_words import EVAL_WORDS, TRAIN_WORDS
from config_errors import error_message
from hypothesis import given, settings
from hypothesis import strategies as st

from mirl.configs import imports
from mirl.configs.agents import PPOConfig
from mirl.configs.compose import (
    GROUPS,
    PRESETS_DIR,
    compose_train,
    parse_flat,
    presets,
    validate,
)
from mirl.configs.errors import ConfigError
from mirl.configs.networks import FilmConfig
from mirl.configs.schema import RUN_NAME, EvalConfig, TrainConfig

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
    ("split", "distractors"): ["task=pole_distractors20"],
    ("split", "weak_actuators"): ["task=point_actuators"],
}
"""Arguments without which a preset is invalid."""


@cache
def compose_preset(group: str, preset: str) -> TrainConfig:
    return compose_train([f"{group}={preset}", *COMPANIONS.get((group, preset), [])])


def through_yaml(config: TrainConfig) -> TrainConfig:
    """Return a config after a round trip through YAML, as in a run directory."""
    text = yaml.safe_dump(config.model_dump(mode="json"))
    return validate(TrainConfig, yaml.safe_load(text))


def test_no_arguments_give_defaults() -> None:
    config = compose_train([])
    assert config.run_name == "goto_door-ppo-seed0"
    assert isinstance(config.agent, PPOConfig)
    assert [task.env_id for task in config.task.tasks] == ["MiniGrid-GoToDoor-5x5-v0"]


@pytest.mark.parametrize(("group", "preset"), PRESETS)
def test_preset_composes(group: str, preset: str) -> None:
    config = compose_preset(group, preset)
    part = getattr(config, group)
    path = PRESETS_DIR / group / f"{preset}.yaml"
    written = yaml.safe_load(path.read_text(encoding="utf-8"))
    if group in ("task", "split"):  # run directories are named after it
        assert part.name == preset
    else:
        assert part.kind == written["kind"]


@pytest.mark.parametrize("preset", presets("task"))
def test_task_preset_uses_registered_ids(preset: str) -> None:
    for task in compose_preset("task", preset).task.tasks:
        if not task.env_id.startswith(("MiniGrid-", "BabyAI-")):
            pytest.skip("registered by an optional package, not by minigrid")
        assert task.env_id in gym.registry


def test_task_preset_overrides_other_groups() -> None:
    """A task preset may override the other groups, and the command line overrides the preset."""
    suite = compose_train(["task=mt5"])
    assert (suite.context.kind, suite.total_timesteps) == ("task_id", 1_000_000)
    asked = compose_train(["total_timesteps=7", "context=mission", "task=mt5"])
    assert (asked.context.kind, asked.total_timesteps) == ("mission", 7)
    assert compose_train(["agent.n_envs=64", "task=minigrid30"]).agent.n_envs == 64


def test_larger_suite_contains_smaller_one() -> None:
    three = compose_train(["task=mt3"]).task.tasks
    five = compose_train(["task=mt5"]).task.tasks
    seven = compose_train(["task=mt7"]).task.tasks
    assert (len(three), len(five), len(seven)) == (3, 5, 7)
    assert (five[:3], seven[:5]) == (three, five)


def test_minigrid30_has_thirty_environments() -> None:
    """The suite has thirty distinct environments with equal numbers of copies."""
    config = compose_train(["task=minigrid30"])
    assert len({task.env_id for task in config.task.tasks}) == 30
    assert config.agent.n_envs % 30 == 0


@pytest.mark.parametrize(("group", "preset"), PRESETS)
def test_config_survives_yaml(group: str, preset: str) -> None:
    config = compose_preset(group, preset)
    assert through_yaml(config) == config


def test_values_reach_the_config() -> None:
    config = compose_train(
        ["fusion=film", "agent.n_steps=64", "sites=[vector]", "seed=3", "total_timesteps=1e6"]
    )
    assert config.fusion == FilmConfig()
    assert config.agent.n_steps == 64
    assert config.sites == ("vector",)
    assert config.run_name == "goto_door-film-ppo-seed3"
    assert config.total_timesteps == 1_000_000


def test_options_end_with_their_call() -> None:
    """Presets are composed once for several calls, of which none changes them."""
    words = ["fusion=low_rank", "agent.net_arch=[7]"]
    default = compose_train(words[:1])
    assert compose_train([*words, "fusion.rank=3", "task.kwargs.size=7"]).fusion.rank == 3
    assert compose_train(words[:1]) == default
    assert compose_train([]).agent.net_arch != (7,)


def test_argument_order_is_irrelevant() -> None:
    assert compose_train(["fusion.rank=3", "fusion=low_rank"]) == compose_train(
        ["fusion=low_rank", "fusion.rank=3"]
    )


@pytest.mark.parametrize(
    "env_id", ["BabyAI-GoToObj-v0", "MiniGrid-Empty-Random-6x6-v0", "CartPole-v1", "ALE/Pong-v5"]
)
def test_task_accepts_any_environment_id(env_id: str) -> None:
    (task,) = compose_train([f"task={env_id}"]).task.tasks
    assert (task.name, task.env_id) == (env_id, env_id)


@pytest.mark.parametrize(
    "env_id",
    ["my_package:Own/Reach-v0", "my_package.envs:OwnReach", "OwnReach", "Own/reach", "x-v0"],
)
def test_task_accepts_what_gym_takes(env_id: str) -> None:
    """An id may name its module and have no version; nothing is imported while composing."""
    config = compose_train([f"task={env_id}"])
    (task,) = config.task.tasks
    assert (task.name, task.env_id) == (env_id, env_id)
    assert re.fullmatch(RUN_NAME, config.run_name)
    assert "," not in task.name


def test_joined_ids_may_name_modules() -> None:
    suite = compose_train(["task=one:A-v0+two:Space/B+CartPole-v1"]).task
    assert [task.env_id for task in suite.tasks] == ["one:A-v0", "two:Space/B", "CartPole-v1"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("goto_door+CartPole-v1", "only environment ids can be joined by +, got 'goto_door'"),
        ("a:b,c:d", "expected an environment id, or several joined by +, got 'a:b,c:d'"),
        ("a:${seed}", "expected an environment id"),
        ("own_reach", "unknown task 'own_reach': expected a preset or an environment id"),
    ],
)
def test_other_tasks_are_refused(value: str, message: str) -> None:
    assert message in error_message(f"task={value}")


def test_plus_joins_ids_to_suite() -> None:
    suite = compose_train(["task=BabyAI-GoToObj-v0+BabyAI-GoToLocal-v0", "context=task_id"]).task
    assert [task.env_id for task in suite.tasks] == ["BabyAI-GoToObj-v0", "BabyAI-GoToLocal-v0"]
    assert suite.name == "BabyAI-GoToObj-v0+BabyAI-GoToLocal-v0"


def test_repeated_id_is_one_error() -> None:
    message = error_message("task=BabyAI-GoToObj-v0+BabyAI-GoToLocal-v0+BabyAI-GoToObj-v0")
    assert message == "task names must be unique, got more than once: BabyAI-GoToObj-v0"


def test_ids_get_auto_context_and_encoder() -> None:
    """With an environment id, context and encoder are ``auto`` unless an argument sets them."""
    config = compose_train(["task=FetchReach-v4"])
    assert (config.context.kind, config.encoder.kind) == ("auto", "auto")
    config = compose_train(
        ["task=FetchReach-v4", "context.dim=32", "encoder=vector", "sites=vector"]
    )
    assert (config.context.kind, config.encoder.kind) == ("auto", "vector")


def test_metaworld_ids_succeed_at_any_step() -> None:
    tasks = compose_train(["task=Meta-World/reach-v3+FetchReach-v4"]).task.tasks
    assert [task.success for task in tasks] == ["any_step", "auto"]


def test_listed_tasks_get_auto_context() -> None:
    """Tasks listed on the command line may be of any kind, as ids may."""
    tasks = "task.tasks=[{name: a, env_id: own:A/B-v0}, {name: b, env_id: C, kwargs: {x: true}}]"
    config = compose_train(["task.name=two", tasks])
    assert (config.context.kind, config.encoder.kind) == ("auto", "auto")
    assert [task.env_id for task in config.task.tasks] == ["own:A/B-v0", "C"]
    assert config.task.tasks[1].kwargs == {"x": True}


def test_wrapped_presets_get_auto_encoder() -> None:
    """Wrappers may change the observation; what the preset overrides is kept."""
    config = compose_train(["task=mt5", "task.wrappers=[minigrid.wrappers:FullyObsWrapper]"])
    assert (config.context.kind, config.encoder.kind) == ("task_id", "auto")


@pytest.mark.parametrize("word", ["task=CartPole-v1", "task=mt5", "seed=0"])
def test_kwargs_reach_every_task(word: str) -> None:
    argv = [word, "task.kwargs.max_steps=20", "task.kwargs.own.depth=2"]
    for task in compose_train(argv).task.tasks:
        assert task.kwargs == {"max_steps": 20, "own": {"depth": 2}}


def test_success_may_be_short() -> None:
    for word in ("success=info", "task.success=info"):
        assert compose_train([word]).task.tasks[0].success == "info"
    tasks = compose_train(["task=Meta-World/reach-v3", "success=info"]).task.tasks
    assert tasks[0].success == "info"


@pytest.mark.parametrize("value", ["json,csv", "[json,csv]", "[json, csv]"])
def test_import_takes_several_modules(value: str) -> None:
    assert compose_train([f"import={value}"]).imports == ("json", "csv")
    assert parse_flat(EvalConfig, ["run=x", f"import={value}"]).imports == ("json", "csv")


@pytest.mark.parametrize("value", ["csv,tensorboard", "[csv,tensorboard]"])
def test_logger_takes_several_names(value: str) -> None:
    assert compose_train([f"logger={value}"]).logger == ("csv", "tensorboard")
    assert compose_train(["logger=csv"]).logger == ("csv",)
    assert compose_train(["logger=[]"]).logger == ()


@pytest.mark.parametrize("folder", [False, True])
def test_missing_logger_names_its_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: bool
) -> None:
    """A package that is missing is an error, also beside the folder of the same name."""
    (tmp_path / ("wandb" if folder else "other")).mkdir()
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    message = error_message("logger=csv,wandb")
    assert message.startswith(
        'logger=wandb: the package is not installed; pip install "mirl[wandb]"'
    )


def test_import_of_missing_module_is_reported() -> None:
    message = error_message("import=no_such_module_here")
    assert message.startswith("import=no_such_module_here: there is no module")


def test_arguments_allow_their_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """The modules that the arguments name may be imported, and no others."""
    monkeypatch.setattr(imports, "_allowed", set())
    compose_train(["task=pack:A-v0", "task.wrappers=[wraps.deep:Wrap]", "import=json"])
    assert imports.allowed_modules() == ("json", "pack", "wraps.deep")


OWN_PRESETS = {
    "task/mine.yaml": "name: mine\ntasks:\n  - {name: a, env_id: 'own_pack:A-v0'}\n",
    "task/fixed.yaml": (
        "# @package _global_\ndefaults:\n  - override /context: goal\n"
        "task:\n  name: fixed\n  tasks:\n    - {name: a, env_id: A-v0}\n"
    ),
    "fusion/narrow.yaml": "kind: low_rank\nrank: 2\n",
    "fusion/broken.yaml": "kind: [\n",
}


@pytest.fixture
def config_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "my 'own\\' presets, a\\b\\"
    for name, text in OWN_PRESETS.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_own_presets_are_found(config_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Own presets stand beside MIRL's, and what they name may be imported."""
    monkeypatch.setattr(imports, "_allowed", set())
    config = compose_train([f"--config-dir={config_dir}", "task=mine", "fusion=narrow"])
    assert (config.task.name, config.context.kind) == ("mine", "auto")
    assert config.fusion.model_dump()["rank"] == 2
    assert imports.is_allowed("own_pack")
    config = compose_train(["fusion.rank=3", "--config-dir", str(config_dir), "fusion=narrow"])
    assert (config.task.name, config.fusion.model_dump()["rank"]) == ("goto_door", 3)


def test_own_preset_may_override_groups(config_dir: Path) -> None:
    config = compose_train(["--config-dir", str(config_dir), "task=fixed"])
    assert (config.context.kind, config.encoder.kind) == ("goal", "auto")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "fusion=narow",
            "unknown fusion 'narow': expected a preset or module:Class. Did you mean 'narrow'?",
        ),
        ("task=minee", "Did you mean 'mine'?"),
        ("fusion=broken", "--config-dir: a preset could not be read"),
    ],
)
def test_own_presets_are_suggested(config_dir: Path, word: str, message: str) -> None:
    assert message in error_message(f"--config-dir={config_dir}", word)


def test_config_dir_has_to_hold_presets(config_dir: Path, tmp_path: Path) -> None:
    assert "expected a folder of presets" in error_message("--config-dir=nowhere")
    assert "expected a folder of presets, got ''" in error_message("--config-dir")
    assert "holds no presets" in error_message("--config-dir", str(tmp_path))
    (config_dir / "fusion" / "film.yaml").write_text("kind: film\n")
    message = error_message("--config-dir", str(config_dir))
    assert "MIRL has a preset fusion=film; rename fusion/film.yaml" in message


def test_suite_from_command_line() -> None:
    argv = [
        "task.name=two",
        "task.tasks=[{name: a, env_id: MiniGrid-Empty-5x5-v0}, {name: b, env_id: CartPole-v1}]",
    ]
    suite = compose_train(argv).task
    assert suite.name == "two"
    assert [task.name for task in suite.tasks] == ["a", "b"]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("fusoin=film", "unknown option 'fusoin'. Did you mean 'fusion'?"),
        ("agent.n_step=8", "unknown option 'agent.n_step'. Did you mean 'agent.n_steps'?"),
        ("n_steps=8", "unknown option 'n_steps'. Did you mean 'agent.n_steps'?"),
        ("evaluation.evry=8", "unknown option 'evaluation.evry'. Did you mean 'evaluation.every'?"),
        ("evaluation={evry: 8}", "unknown option 'evaluation.evry'. Did you mean 'every'?"),
        ("task.tasks.env_id=x", "unknown option 'task.tasks.env_id'."),
        (
            "fusion=flim",
            "unknown fusion 'flim': expected a preset or module:Class. Did you mean 'film'?",
        ),
        (
            "context=misson",
            "unknown context 'misson': expected a preset or module:Class. Did you mean 'mission'?",
        ),
        (
            "encoder=gird",
            "unknown encoder 'gird': expected a preset or module:Class. Did you mean 'grid'?",
        ),
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
            "unknown task 'goto_dor': expected a preset or an environment id. "
            "Did you mean 'goto_door'?",
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
def test_typo_suggests_nearest_name(word: str, message: str) -> None:
    assert message in error_message(word)


@pytest.mark.parametrize("word", ["fusion", "", "=", "=film", "+", "++=1", "--seed"])
def test_argument_needs_key_and_value(word: str) -> None:
    assert error_message(word) == f"expected key=value, got '{word}'. See --help."


def config_or_message(
    build: Callable[[], TrainConfig | EvalConfig],
) -> TrainConfig | EvalConfig | str:
    try:
        return build()
    except ConfigError as error:
        return str(error).strip()


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.lists(TRAIN_WORDS, max_size=3))
def test_any_arguments_give_config_or_message(argv: list[str]) -> None:
    config = config_or_message(lambda: compose_train(argv))
    assert config
    if isinstance(config, TrainConfig):
        assert through_yaml(config) == config
        assert config.run_dir.parent == config.runs_dir


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(EVAL_WORDS, max_size=3))
def test_any_eval_arguments_are_answered(argv: list[str]) -> None:
    """Any arguments of eval.py give a config or one message."""
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
def test_eval_errors_read_like_train_errors(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_flat(EvalConfig, argv)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["task=Own-v0+Other-v0", "success=maybe"], "task 'Own-v0', task 'Other-v0': success: "),
        (
            ["task.tasks=[{name: reach, env_id: Own-v0, kwarg: info}]"],
            "task 'reach': unknown option 'kwarg'. Did you mean 'kwargs'?",
        ),
        (["task.tasks=[{name: reach, env_id: 3.5, kwargs: 3}]"], "task 'reach': kwargs: "),
    ],
)
def test_task_error_names_the_task(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        compose_train(words)
    assert str(raised.value).startswith(message)
    assert "tasks.0" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_eval_takes_presets_and_rule(config_dir: Path) -> None:
    words = ["run=runs/x", "success='return >= 5'", "--config-dir", str(config_dir)]
    config = parse_flat(EvalConfig, words)
    assert config.success == "return>=5"
    assert config.config_dir == config_dir
    for word in ("success=often", "--config-dir=nowhere"):
        with pytest.raises(ConfigError) as raised:
            parse_flat(EvalConfig, ["run=runs/x", word])
        assert "\n" not in str(raised.value)
