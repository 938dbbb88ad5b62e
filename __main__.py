"""Run a command without its script: ``python -m mirl train task=goto_door``."""

import sys
from importlib import import_module

from mirl.configs.commands.interrupts import ended_by_interrupt

with ended_by_interrupt():
    from mirl.configs.command_line import console_entry

COMMANDS = ("train", "eval", "compare", "watch", "play", "card")
"""Commands, each a module with a function ``main``."""
USAGE = """\
usage: python -m mirl COMMAND [argument] …
  train     train an agent, resume a run or train it further
  eval      evaluate, adapt or export a checkpoint
  compare   train settings over seeds and tasks and compare them
  watch     watch a trained agent on a page or in the terminal
  play      play a task yourself, by the keys of the keyboard
  card      write the model card of a trained agent

python -m mirl COMMAND --help says more; mirl-COMMAND is the same command.
"""


def main() -> None:
    """Run the command that the first argument names."""
    name = "".join(sys.argv[1:2])
    if name in COMMANDS:
        del sys.argv[1]
        import_module(f"mirl.{name}").main()
        return
    sys.exit(console_entry(_usage, lambda _argv: USAGE))


def _usage(argv: list[str]) -> int:
    """Print the list of commands, as an error if the argument is not one of them."""
    if not argv:
        sys.stdout.write(USAGE)
        return 0
    sys.stderr.write(f"error: no command '{argv[0]}'; expected {', '.join(COMMANDS)}\n")
    return 2


if __name__ == "__main__":
    main()
