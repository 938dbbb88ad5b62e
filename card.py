"""Write the model card of a trained agent: ``python card.py run=runs/goto_door-ppo-seed0``.

See ``--help``.
"""

import sys

from mirl.configs.commands.interrupts import ended_by_interrupt

with ended_by_interrupt():
    from mirl.configs.command_line import console_entry
    from mirl.configs.commands.help import card_help
    from mirl.configs.compose import parse_flat
    from mirl.configs.schema import CardConfig
    from mirl.configs.stored import load_stored


def run(argv: list[str]) -> int:
    """Evaluate a checkpoint and write its card, as the command line specifies.

    Args:
        argv: the arguments of the command.

    Returns:
        The exit code.
    """
    # before torch is imported, so that mistakes are reported at once
    config = parse_flat(CardConfig, argv)
    stored = load_stored(config.run)

    # the other imports load torch, which takes seconds
    with ended_by_interrupt():
        from mirl.agents.exports.card import card_of, write_card
        from mirl.agents.result_tables import PlainConsole
        from mirl.agents.runs.run_directory import RunDirectory

    opened = RunDirectory(config.run, stored)
    console = PlainConsole()
    console.log_line(f"Written: {write_card(card_of(opened, config))}")
    return 0


def main() -> None:
    """Run the console script ``mirl-card``."""
    sys.exit(console_entry(run, card_help))


if __name__ == "__main__":
    main()
