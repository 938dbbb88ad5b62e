"""Compare settings over seeds: ``python compare.py task=goto_door fusion=concat,film seeds=3``.

See ``--help``.
"""

import sys

from mirl.configs.commands.interrupts import ended_by_interrupt

with ended_by_interrupt():
    from mirl.configs.command_line import console_entry, limit_kernel_caches
    from mirl.configs.commands.help import compare_help
    from mirl.configs.comparison import RunComparisonConfig, parse_comparison
    from mirl.configs.errors import RunError


def run(argv: list[str]) -> int:
    """Compare settings or existing runs as the command line specifies.

    Args:
        argv: the arguments of the command.

    Returns:
        The exit code: 0, or 130 if the comparison was stopped.

    Raises:
        RunError: some runs failed.
    """
    config = parse_comparison(argv)  # before torch is imported

    limit_kernel_caches()
    # imported here and below as needed, because torch takes seconds to load
    from mirl.agents.comparison.tables import to_rich
    from mirl.agents.result_tables import PlainConsole

    console = PlainConsole()
    log = console.log_line

    if isinstance(config, RunComparisonConfig):
        from mirl.agents.comparison.existing_runs import compare_runs

        console.print(to_rich(compare_runs(config, log)))
        log(f"Written: {config.folder}")
        return 0

    from mirl.agents.comparison.experiment import compare

    result = compare(config, log)
    for table in result.tables:
        console.print(to_rich(table))
    if result.ignoring:
        log(
            "Warning: these agents ignore their context, or their success does not depend on it: "
            f"{', '.join(result.ignoring)}. They say nothing about how it is fused."
        )
    if result.tables:
        log(f"Written: {config.folder}")
    if result.failures:
        lines = [f"{name}: {reason}" for name, reason in result.failures.items()]
        raise RunError("runs failed; the same command tries them again\n" + "\n".join(lines))
    if result.missing:
        log(f"Stopped, {result.missing} runs are missing; run the same command again to go on.")
        return 130  # as after Ctrl-C in a shell
    return 0


def main() -> None:
    """Run the console script ``mirl-compare``."""
    sys.exit(console_entry(run, compare_help))


if __name__ == "__main__":
    main()
