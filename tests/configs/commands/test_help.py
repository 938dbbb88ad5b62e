"""Pages of ``--help`` are narrow and short, and together they explain every option."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirl.configs.commands.help import compare_help, description_of, eval_help, train_help
from mirl.configs.commands.sweep import OWN_WORDS as SWEEP_WORDS
from mirl.configs.commands.words import option_names, typed_name
from mirl.configs.comparison import OWN_WORDS
from mirl.configs.compose import GROUPS, presets
from mirl.configs.errors import ConfigError
from mirl.configs.schema import EvalConfig, TrainConfig
from mirl.configs.tasks import SuiteConfig

FIRST_PAGES = {"train.py": train_help(), "eval.py": eval_help(()), "compare.py": compare_help(())}


def preset_pages() -> Iterator[str]:
    for group in GROUPS:
        for preset in presets(group):
            yield train_help([f"{group}={preset}", "--help"])


TRAIN_PAGES = [
    *(train_help([group]) for group in GROUPS),
    *(train_help([word]) for word in ("options", "evaluation", "agent.gamma", "success")),
    *preset_pages(),
]
"""All pages of train.py beside the first."""


@pytest.mark.parametrize("page", FIRST_PAGES.values(), ids=FIRST_PAGES)
def test_first_page_has_sixty_lines(page: str) -> None:
    assert page.count("\n") <= 60


def test_pages_have_eighty_columns() -> None:
    for page in (*FIRST_PAGES.values(), *TRAIN_PAGES, eval_help(["options"])):
        for line in page.splitlines():
            assert len(line) <= 80, line


def test_first_page_lists_choices() -> None:
    page = FIRST_PAGES["train.py"]
    words = page.split()
    for group in GROUPS:
        names = [name for name in presets(group) if name not in words and f"{name}*" not in words]
        assert not names
    for preset in ("goto_door*", "auto*", "mission*", "grid*", "ppo*"):
        assert preset in words
    assert "fixed | uniform | lowest_success | learning_progress" in page
    assert "one or several of map, vector, heads" in page


def test_first_page_lists_own_presets(tmp_path: Path) -> None:
    (tmp_path / "fusion").mkdir()
    (tmp_path / "fusion" / "narrow.yaml").write_text("kind: low_rank\nrank: 3\n")
    own = ["--config-dir", str(tmp_path)]
    assert " narrow" in train_help(own)
    assert "fusion.rank=3\n" in train_help([*own, "fusion=narrow", "-h"])
    (tmp_path / "fusion" / "mine.yaml").write_text("kind: own_layers:Mine\nrank: 3\n")
    page = train_help([*own, "fusion=mine", "-h"])
    assert page == "fusion=mine\n  kind: own_layers:Mine; rank: 3\n"
    assert "narrow" not in train_help(["--config-dir", "nowhere"])


def test_pages_explain_every_option() -> None:
    text = "\n".join(TRAIN_PAGES)
    for name in option_names([TrainConfig]):
        if name not in GROUPS and not name.endswith(".kind") and name != "task.tasks":
            option = re.escape(typed_name(name))
            assert re.search(rf"^  {option}=.*\n(      .*\n)*      \S", text, re.M), name


def test_sweep_page_explains_every_option() -> None:
    page = train_help(["--multirun", "--help"])
    assert page == train_help(["--help", "multirun"])
    for name in (*SWEEP_WORDS, "engine", "jobs", "slurm.OPTION"):
        assert re.search(rf"^  {name}=.*\n      \S", page, re.M), name
    assert max(map(len, page.splitlines())) <= 80


def test_eval_page_explains_every_option() -> None:
    for name in EvalConfig.model_fields:
        option = typed_name(name)
        assert re.search(rf"^  {option}=", eval_help(()), re.M)
        assert re.search(rf"^  {option}=.*\n      \S", eval_help([option]), re.M)


def test_compare_page_explains_every_option() -> None:
    for option in ("task", "settings.NAME", *OWN_WORDS):
        assert re.search(rf"^  {re.escape(option)}=.* \S", compare_help(()), re.M)


def test_preset_page_shows_its_values() -> None:
    assert "  split.tasks=[goto_door_8x8]\n" in train_help(["split=rooms"])
    assert "  agent.learning_rate=0.001\n" in train_help(["agent=ppo"])
    assert "      Choices: future, final, episode.\n" in train_help(["agent=sac"])


def test_task_page_shows_what_it_sets() -> None:
    """The page of a task names what its preset sets besides the suite."""
    assert "\n  Sets total_timesteps=150000\n" in train_help(["task=goto_door"])
    page = " ".join(train_help(["task=fetch_reach"]).split())
    assert (
        "Sets agent=sac context=goal encoder=vector agent.net_arch=[64,64] context.dim=16" in page
    )
    assert "  task.name=goto_door\n" in train_help(["task=goto_door"])


def test_description_leaves_out_examples() -> None:
    """Examples are for readers of the code; the site has descriptions on its pages of options."""
    assert ">>>" in str(SuiteConfig.__doc__)
    assert description_of(SuiteConfig) == "An ordered tuple of tasks that are trained together."


def test_shared_option_names_its_kinds() -> None:
    page = train_help(["fusion.rank"])
    assert "Rank R of the factorization.\n      For low_rank.\n" in page


@pytest.mark.parametrize(("word", "meant"), [("agnt", "agent"), ("sed", "seed")])
def test_unknown_page_is_an_error(word: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=rf"no help on '{word}'\. Did you mean '{meant}"):
        train_help([word])
