"""Entry point of the commands: ``--help`` and ``--version``, errors as one message.

Exit codes: 0 for success, 1 for a failure that no argument caused, 2 for an invalid argument, 130
after Ctrl-C.
"""

import codecs
import io
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TextIO

from mirl.configs.aliases import RenamedWarning
from mirl.configs.commands.help import HELP_WORDS
from mirl.configs.errors import (
    ConfigError,
    PlainWarning,
    ReportedElsewhereError,
    RunError,
    is_first_process,
)
from mirl.configs.imports import PluginWarning, load_plugins
from mirl.configs.texts import printable

PLAIN_SPELLING = "mirl_plain_spelling"
"""Name of the error handler for characters that an encoding lacks."""
SPELLINGS = {
    "…": "...",
    "–": "-",
    "−": "-",
    "×": "x",
    "→": "->",
    "≥": ">=",
    "≤": "<=",
    "ε": "epsilon",
    "λ": "lambda",
    "ᵀ": "^T",
    "𝕎": "W",
}
"""Plain spellings of the characters in MIRL's own texts; any other becomes a question mark."""
SECONDS_TO_REPORT = 10
"""Seconds that a process of ``torchrun`` waits for the one that prints their common error."""
KERNEL_CACHES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128", "LRU_CACHE_CAPACITY": "128"}
"""Capacity of torch's CPU kernel caches, which hold a kernel per matrix size and default to 1024.

A long run sees many sizes: the share of distinct observations changes as the agent learns.
"""


def limit_kernel_caches() -> None:
    """Limit torch's kernel caches, here and in the processes that this one starts.

    Call it before torch compiles its first kernel.
    """
    for name, capacity in KERNEL_CACHES.items():
        os.environ.setdefault(name, capacity)


def console_entry(run: Callable[[list[str]], int], help_text: Callable[[list[str]], str]) -> int:
    """Run a command on ``sys.argv``.

    Args:
        run: takes the command-line arguments and returns the exit code.
        help_text: takes the command-line arguments and returns the text of ``--help``.

    Returns:
        The exit code.
    """
    argv = sys.argv[1:]
    print_any_character()
    try:
        # before anything else, so that --help also works with invalid options
        if any(word in HELP_WORDS for word in argv):
            sys.stdout.write(help_text(argv))
            sys.stdout.flush()
            return 0
        if "--version" in argv:
            sys.stdout.write(f"mirl {version()}\n")
            return 0
        with _plain_warnings():
            load_plugins()
            code = run(argv)
        sys.stdout.flush()
        return code
    except ConfigError as error:
        sys.stderr.write(f"error: {printable(str(error))}\n")
        return 2
    except ReportedElsewhereError:
        # torchrun ends all processes when the first one fails, which must not be this one
        time.sleep(SECONDS_TO_REPORT)
        return 1
    except RunError as error:
        sys.stderr.write(f"error: {printable(str(error))}\n")
        return 1
    except BrokenPipeError:
        # the reader of the pipe has exited, like head; the flush at Python's exit would fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.filename is None:  # not about a file, so perhaps a bug in MIRL
            raise
        sys.stderr.write(f"error: {printable(str(error))}\n")
        return 1
    except KeyboardInterrupt:  # outside of the training loop, which saves a checkpoint first
        sys.stderr.write("stopped\n")
        return 130  # 128 + 2, the number of SIGINT, as in a shell


def version() -> str:
    """Return the installed version of MIRL."""
    try:
        return metadata.version("mirl")
    except metadata.PackageNotFoundError:
        return "unknown (not installed)"


def print_any_character() -> None:
    """Make printing replace characters that the terminal's encoding lacks, instead of raising."""
    codecs.register_error(PLAIN_SPELLING, _plain_spelling)
    for stream in (sys.stdout, sys.stderr):
        # a caller may have replaced the streams by others that are not text files
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=PLAIN_SPELLING)


def _plain_spelling(error: UnicodeError) -> tuple[str, int]:
    """Return the plain spelling of characters that cannot be encoded, as a codecs error handler."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    return "".join(SPELLINGS.get(character, "?") for character in text), error.end


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Print MIRL's own warnings as one line, without Python's file name and source line."""
    show_as_usual = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, RenamedWarning | PlainWarning | PluginWarning):
            if is_first_process():
                sys.stderr.write(f"warning: {message}\n")
        else:
            show_as_usual(message, category, filename, lineno, file, line)

    # Python prints every warning through this function
    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = show_as_usual


def command(name: str) -> str:
    """Return the path of a command that is installed next to this Python interpreter.

    Args:
        name: name of the command, e.g. ``tensorboard``.

    Returns:
        Its path, relative to the current folder if it is inside: ``.venv/bin/tensorboard``.
    """
    path = Path(sys.executable).with_name(name)
    if path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    return str(path)
