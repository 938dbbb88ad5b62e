"""Watch a trained agent: ``python watch.py run=runs/goto_door-ppo-seed0``. See ``--help``."""

import sys
import webbrowser

from mirl.configs.commands.interrupts import ended_by_interrupt

with ended_by_interrupt():
    from mirl.configs.command_line import console_entry
    from mirl.configs.commands.help import watch_help
    from mirl.configs.compose import parse_flat
    from mirl.configs.schema import WatchConfig
    from mirl.configs.stored import load_stored


def run(argv: list[str]) -> int:
    """Show the episodes of a checkpoint until Ctrl-C, as the command line specifies.

    Args:
        argv: the arguments of the command.

    Returns:
        The exit code.
    """
    # before torch is imported, so that mistakes are reported at once
    config = parse_flat(WatchConfig, argv)
    load_stored(config.run)

    # the other imports load torch, which takes seconds
    with ended_by_interrupt():
        from mirl.agents.result_tables import PlainConsole
        from mirl.agents.watch import page, terminal
        from mirl.agents.watch.session import Session
        from mirl.agents.watch.window import has_display

    log = PlainConsole().log_line

    def started(address: str) -> None:
        log(f"Watch it at {address} (Ctrl-C ends)")
        if has_display():
            webbrowser.open(address)

    with Session.open(config) as session:
        try:
            if config.view == "terminal":
                terminal.play(session, config.speed, sys.stdout.write)
            else:
                page.serve(session, config.port, started)
        except KeyboardInterrupt:
            # the normal way to end the command, not a failure
            sys.stdout.write("\n")
    return 0


def main() -> None:
    """Run the console script ``mirl-watch``."""
    sys.exit(console_entry(run, watch_help))


if __name__ == "__main__":
    main()
