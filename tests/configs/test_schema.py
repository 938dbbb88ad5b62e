"""Options that must fit each other, and the names of run directories."""

from pathlib import Path

import pytest
from config_errors import error_message
from pydantic import ValidationError

from mirl.configs.compose import compose_train, validate
from mirl.configs.schema import ResolvedConfig, TrainConfig


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["agent.batch_size=1000"], "batch_size must divide the rollout, n_envs × n_steps = "),
        (["agent.n_envs=1", "agent.batch_size=1"], "batch_size must be at least 2, got 1"),
        (
            ["encoder=image", "task.observation=rgb", "backend=envpool"],
            "task.observation=rgb needs backend=gymnasium, got backend=envpool",
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
            "must leave a task to train on, got every task of",
        ),
        (
            ["split.goal_low=[0,0]", "split.goal_high=[1]"],
            "opposite corners of one box, got [0.0, 0.0] and [1.0]",
        ),
        (
            ["sampling=uniform"],
            "sampling=uniform needs several trained tasks, and 'goto_door' has one",
        ),
        (
            ["agent.pcgrad=true"],
            "agent.pcgrad=true needs several trained tasks, and 'goto_door' has one",
        ),
        (
            ["agent=sac", "split.goal_low=[0]", "split.goal_high=[1]"],
            "those that split.goal_low and split.goal_high hold out; use agent.her=false",
        ),
        (["agent=sac", "agent.gradient_steps=0"], "agent.gradient_steps"),
        (
            ["memory=lsmt"],
            "unknown memory 'lsmt': expected a preset or module:Class. Did you mean 'lstm'?",
        ),
        (["memory=lstm", "agent=sac"], "memory=lstm needs agent=ppo or agent=a2c, got agent=sac"),
        (
            ["memory=lstm", "agent.n_steps=48", "agent.batch_size=1024"],
            "use agent.batch_size=768 or agent.sequence_length=16",
        ),
        (["memory=lstm", "agent.n_envs=25", "agent.batch_size=25"], "use agent.batch_size=32"),
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
            "agent.sequence_length and agent.burn_in need a recurrent core, got memory=none",
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
            "unknown option 'memory.rank' of lstm. It is an option of mi_lstm",
        ),
        (
            ["memory.heads=8"],
            "unknown option 'memory.heads' of none. It is an option of fast_weights, attention",
        ),
        (["sites=[]"], "sites must name at least one site"),
        (["sites=[map,map]"], "none twice"),
        (["context.dim=30"], "dim must be even and a multiple of heads=4, got 30"),
        (["name=../elsewhere"], "name must be a plain folder name"),
        (["name=.hidden"], "name must be a plain folder name"),
        (["name=a/b"], "name must be a plain folder name"),
        (["name=" + "a" * 200], "name must be a plain folder name"),
    ],
)
def test_invalid_combination_explains_itself(argv: list[str], message: str) -> None:
    """Options that do not fit each other are an error that says why, and often what to do."""
    assert message in error_message(*argv)


def test_unnamed_split_is_in_run_name() -> None:
    """A split written on the command line has no name, and appears as ``split``."""
    config = compose_train(["split.missions=[red door]"])
    assert config.run_name == "goto_door-ppo-split-seed0"


def test_given_fusion_is_in_run_name() -> None:
    """A fusion that is chosen, which happens after the run was opened, is not in its name."""
    film = compose_train(["fusion=film", "memory=lstm"])
    assert film.run_name == "goto_door-film-lstm-ppo-seed0"
    assert compose_train(["fusion=auto", "memory=lstm"]).run_name == "goto_door-lstm-ppo-seed0"
    assert compose_train(["fusion.rank=8"]).run_name == "goto_door-ppo-seed0"
    values = {**film.model_dump(), "sites": ("map",)}
    assert ResolvedConfig.model_validate(values).run_name == film.run_name
    chosen = ResolvedConfig.model_validate({**values, "fusion_is_chosen": True})
    assert chosen.run_name == "goto_door-lstm-ppo-seed0"


def test_given_name_replaces_derived_name(tmp_path: Path) -> None:
    config = compose_train(["name=mine", f"runs_dir={tmp_path}"])
    assert config.run_dir == tmp_path / "mine"


@pytest.mark.parametrize("name", ["ALE/Pong-v5", "../../x-v0", "a b/c-v1", "/etc/x-v0"])
def test_run_dir_stays_in_runs_dir(name: str) -> None:
    """No task name leads out of the parent folder of the run directories."""
    config = compose_train([f"task={name}"])
    assert config.run_dir.parent == config.runs_dir
    assert config.run_dir.name == config.run_name


def test_resolved_config_rejects_auto() -> None:
    values = compose_train(["fusion=bilinear", "sites=map"]).model_dump()
    # runs of earlier versions did not store the inputs
    assert not ResolvedConfig.model_validate(values).network.is_resolved
    stored = ResolvedConfig.model_validate({**values, "observation_keys": ["image"]})
    assert stored.network.is_resolved
    with pytest.raises(ValidationError, match="sites"):
        ResolvedConfig.model_validate({**values, "sites": None})
    for part in ("fusion", "context", "encoder"):
        with pytest.raises(ValidationError, match="'auto' found using 'kind'"):
            ResolvedConfig.model_validate({**values, part: {"kind": "auto"}})


def test_unknown_codes_reach_the_suite() -> None:
    """``encoder.unknown=hash`` tells the environments too, which declare the rows."""
    config = compose_train(["encoder=grid", "encoder.unknown=hash"])
    assert config.task.unknown_codes == "hash"
    assert compose_train([]).task.unknown_codes == "error"
    values = {**config.model_dump(), "task": compose_train([]).task}
    assert validate(TrainConfig, values).task.unknown_codes == "hash"


def test_evaluated_episodes_have_a_limit() -> None:
    assert compose_train([]).evaluation.max_steps is None
    assert compose_train(["evaluation.max_steps=7"]).evaluation.max_steps == 7
    assert "evaluation.max_steps" in error_message("evaluation.max_steps=0")


def test_long_run_name_is_cut() -> None:
    """The ids of many environments make a name that a file system takes, and others another one."""
    ids = [f"MiniGrid-GoToDoor-{size}x{size}-v0" for size in range(5, 17)]
    names = [compose_train([f"task={'+'.join(some)}"]).run_name for some in (ids, ids[::-1])]
    assert names[0] != names[1]
    assert {len(name) for name in names} == {100}
    assert compose_train([f"task={'+'.join(ids[:5])}"]).run_name.startswith("+".join(ids[:5]))


def test_videos_are_switch_or_interval() -> None:
    given = {
        word: compose_train([f"videos={word}"]).videos for word in ("every", "false", "1", "9")
    }
    assert given == {"every": True, "false": False, "1": 1, "9": 9}
    assert given["1"] is not True
