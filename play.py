"""Play a task yourself: ``python play.py task=goto_local``. See ``--help``."""

import sys
from contextlib import closing

from mirl.configs.commands.interrupts import ended_by_interrupt

with ended_by_interrupt():
    from mirl.configs.command_line import console_entry
    from mirl.configs.commands.help import play_help
    from mirl.configs.compose import compose_suite, parse_flat
    from mirl.configs.errors import ConfigError
    from mirl.configs.schema import PlayConfig


def run(argv: list[str]) -> int:
    """Let a person play episodes of a task, as the command line specifies.

    Args:
        argv: the arguments of the command.

    Returns:
        The exit code.
    """
    # before torch is imported, so that mistakes are reported at once
    config = parse_flat(PlayConfig, argv)
    suite = compose_suite(config.task, config.config_dir)
    index = suite.task_index(config.level) if config.level else 0
    task = suite.tasks[index].name

    # the other imports load torch, which takes seconds
    with ended_by_interrupt():
        from mirl.agents.watch import keyboard, window
        from mirl.agents.watch.episode import EpisodePlayer
        from mirl.agents.watch.single_env import open_env
        from mirl.envs import env_seeds

    env = open_env(suite, index)
    if env is None:
        raise ConfigError(
            f"task '{task}' cannot be played: its environment renders no rgb_array, or is a game "
            "of several agents; choose another task"
        )
    [seed] = env_seeds(config.seed, "test", index, 1)
    with closing(env):
        has_keys = window.has_keys(env)
        if config.view == "window" and not has_keys:
            raise ConfigError(
                f"task '{task}' cannot be played in a window: it is none of MiniGrid's, and its "
                "environment has no get_keys_to_action; use view=terminal"
            )
        in_window = config.view == "window"
        if config.view == "auto":
            in_window = has_keys and window.has_display()
        try:
            if in_window:
                window.play(env, suite, index, seed, _write)
            else:
                keyboard.play(EpisodePlayer(env, suite, index), seed, _write)
        except KeyboardInterrupt:
            # a way to end the game, not a failure
            _write("\n")
    return 0


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def main() -> None:
    """Run the console script ``mirl-play``."""
    sys.exit(console_entry(run, play_help))


if __name__ == "__main__":
    main()
