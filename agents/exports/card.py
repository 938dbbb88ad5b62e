"""Model cards: an agent's training, its performance and its limitations."""

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from gymnasium import spaces

from mirl.agents.builder import Policy
from mirl.agents.comparison.machine import versions
from mirl.agents.comparison.tables import markdown_table
from mirl.agents.evaluation import RunEvaluation, evaluate_run
from mirl.agents.policy_loader import restore_policy
from mirl.agents.result_tables import success_cells
from mirl.agents.runs.atomic_files import make_folder, write_text
from mirl.agents.runs.checkpoint import Checkpoint
from mirl.agents.runs.run_directory import RunDirectory
from mirl.agents.statistics import TaskResult
from mirl.configs.commands.pretrained import run_name
from mirl.configs.commands.words import typed_words
from mirl.configs.config import Config
from mirl.configs.schema import CardConfig, EvalConfig, ResolvedConfig
from mirl.configs.texts import printable
from mirl.envs.contract.descriptions import describe_space
from mirl.policies import count_parameters

CARD = "README.md"
"""File of the card, which GitHub and Hugging Face show for a folder."""


class CardContents(NamedTuple):
    """All information that a card is written from."""

    run: RunDirectory
    checkpoint: Checkpoint
    policy: Policy
    evaluation: RunEvaluation
    options: CardConfig


def card_of(run: RunDirectory, options: CardConfig) -> CardContents:
    """Evaluate a checkpoint for its card.

    Args:
        run: the run.
        options: the checkpoint and its test episodes.

    Returns:
        The information that the card is written from.

    Raises:
        ConfigError: there is no such checkpoint, or it cannot be evaluated.
    """
    checkpoint = run.checkpoint(options.checkpoint)
    evaluation = evaluate_run(run, checkpoint, EvalConfig(**options.model_dump()))
    policy = restore_policy(run.config, checkpoint, options.device)
    return CardContents(run, checkpoint, policy, evaluation, options)


def write_card(contents: CardContents) -> Path:
    """Write the model card of a run into its folder.

    Args:
        contents: the run, its checkpoint and its evaluation.

    Returns:
        The file.

    Raises:
        OSError: it cannot be written.
    """
    folder = contents.run.results_dir
    make_folder(folder)
    path = folder / CARD
    write_text(path, card_text(contents))
    return path


def card_text(contents: CardContents) -> str:
    """Return the model card of a run, in Markdown with the metadata that Hugging Face reads.

    Args:
        contents: the run, its checkpoint and its evaluation.
    """
    config = contents.run.config
    paragraphs = [
        _metadata(config),
        f"# {contents.run.path.name}",
        _introduction(config),
        "## Results",
        *_results(contents),
        "## Training",
        _training(contents),
        "## Use",
        _use(contents.run, contents.options),
        "## Limits",
        _bullets(_limits(contents)),
    ]
    return printable("\n\n".join(paragraphs)) + "\n"


def _metadata(config: ResolvedConfig) -> str:
    tags = ["reinforcement-learning", "multiplicative-interactions", config.agent.kind]
    tags += [config.fusion.kind, *(_code(task.env_id, mark="") for task in config.task.tasks)]
    lines = ["---", "library_name: mirl", "pipeline_tag: reinforcement-learning", "tags:"]
    return "\n".join([*lines, *(f'- "{tag}"' for tag in dict.fromkeys(tags)), "---"])


def _introduction(config: ResolvedConfig) -> str:
    context = " and ".join(f"`{key}`" for key in config.context.keys) or "no context"
    memory = "" if config.memory.kind == "none" else f" It has a memory (`{config.memory.kind}`)."
    environments = ", ".join(dict.fromkeys(_code(task.env_id) for task in config.task.tasks))
    return (
        f"An agent trained by {config.agent.kind.upper()} with MIRL on {environments}. "
        f"Its networks fuse the observation with {context} by `fusion={config.fusion.kind}`."
        f"{memory}"
    )


def _results(contents: CardContents) -> Iterable[str]:
    options = contents.options
    actions = "most probable" if options.deterministic else "sampled"
    yield (
        f"On test episodes, none of which was trained on (`{contents.checkpoint.name}`, test seed "
        f"{options.seed}, {actions} actions):"
    )
    rows = [_result_cells(result) for result in contents.evaluation.results]
    columns = ("task", "episodes", "success", "95 % interval", "return", "length")
    yield markdown_table(columns, rows)
    use = contents.evaluation.context_use
    if use is not None:
        yield "\n".join(use.lines())


def _result_cells(result: TaskResult) -> list[str]:
    rate, interval = success_cells(result)
    return [
        result.label,
        f"{result.n_episodes:,}",
        rate,
        interval,
        f"{result.mean_return:.3f}",
        f"{result.mean_length:.1f}",
    ]


def _training(contents: CardContents) -> str:
    config = contents.run.config
    suite = config.task
    names = ", ".join(f"{task.name} ({_code(task.env_id)})" for task in suite.tasks)
    parameters = count_parameters(contents.policy)
    timesteps = contents.checkpoint.state["num_timesteps"]
    rows = [
        ["tasks", names],
        ["timesteps", f"{timesteps:,} at this checkpoint, of about {config.total_timesteps:,}"],
        ["seed", str(config.seed)],
        ["agent", _part(config.agent)],
        ["fusion", f"{_part(config.fusion)} at {', '.join(config.sites)}"],
        ["context", _part(config.context)],
        ["encoder", _part(config.encoder)],
        ["memory", _part(config.memory)],
        ["held out", _part(config.split) if config.split.holds_out_any else "nothing"],
        ["parameters", f"{parameters:,}"],
        ["observations", ", ".join(_observations(contents.policy))],
        ["actions", _code(describe_space(contents.policy.action_space))],
        ["versions", ", ".join(f"{name} {version}" for name, version in versions().items())],
    ]
    table = markdown_table(("setting", "value"), rows)
    return f"{table}\n\nAll options are in `config.yaml`; the versions are those of this card."


def _observations(policy: Policy) -> Iterable[str]:
    assert isinstance(policy.observation_space, spaces.Dict), "the observation contract is a Dict"
    for key, part in policy.observation_space.items():
        yield f"{_code(key)} {describe_space(part)}"


def _use(run: RunDirectory, options: CardConfig) -> str:
    name = run_name(run.path)
    imports = [f"import {module}  # the environment\n" for module in options.imports]
    words = [f"run={shlex.quote(name)}", *(f"import={module}" for module in options.imports)]
    arguments = repr(name)
    if options.checkpoint != "best":
        words.append(f"checkpoint={options.checkpoint}")
        arguments += f", checkpoint={options.checkpoint!r}"
    typed = " ".join(words)
    return (
        f"```python\n{''.join(imports)}from mirl.agents import load_policy\n\n"
        f"policy = load_policy({arguments})\n"
        "actions, state = policy.predict(observations)\n```\n\n"
        f"```sh\nmirl-watch {typed}\nmirl-eval {typed}\n"
        f"mirl-train start_from={shlex.quote(name)} task=…   # train it further on another task\n"
        "```"
    )


def _limits(contents: CardContents) -> Iterable[str]:
    config = contents.run.config
    results = contents.evaluation.results
    yield (
        "It was trained and tested on the environments above and on nothing else. On other levels, "
        "`mirl-eval task=…` measures how it does."
    )
    yield (
        "The intervals are over the episodes of this one agent. Another seed of the same training "
        "can end higher or lower."
    )
    weakest = min(results, key=_rate)
    if weakest.success_rate is not None and weakest.success_rate < 1:
        yield (
            f"It fails in {1 - weakest.success_rate:.1%} of the episodes of "
            f"{printable(weakest.label)}"
            f"{', its weakest task' if len(results) > 1 else ''}."
        )
    unknown = [result.label for result in results if result.success_rate is None]
    if unknown:
        yield f"No success is reported for {', '.join(unknown)}; their returns are above."
    words = config.task.vocabulary
    if words:
        yield f"It knows {len(words)} words; all others are one and the same unknown word to it."
    if not contents.options.deterministic and config.agent.kind in ("ppo", "a2c"):
        yield (
            "Actions were sampled. The most probable actions (`deterministic=true`) can do better "
            "or worse, and can run in circles."
        )


def _rate(result: TaskResult) -> float:
    return 1.0 if result.success_rate is None else result.success_rate


def _part(part: Config) -> str:
    """Describe a part of the configuration: its kind, and the options that differ from defaults."""
    words = [f"`{word}`" for word in shlex.split(" ".join(typed_words(part)))]
    kind = getattr(part, "kind", None)
    return " ".join(words if kind is None else [f"`{kind}`", *words])


def _code(text: str, mark: str = "`") -> str:
    """Return a text from an environment as code, in one line, without backticks and quotes."""
    plain = " ".join(text.replace("`", "").replace('"', "").split())
    return f"{mark}{plain}{mark}"


def _bullets(sentences: Iterable[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)
