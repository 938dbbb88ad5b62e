"""Errors shown to users, and the suggestion of the nearest valid name."""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches

MAX_LISTED_NAMES = 40
"""Maximum number of valid names that an error message lists."""
MAX_LINES = 20
"""Maximum number of lines of an error message."""


class ConfigError(ValueError):
    """An invalid option or argument. The commands print the message and exit with code 2.

    Examples:
        >>> from mirl.configs.errors import ConfigError
        >>> from mirl.configs.networks import LowRankConfig
        >>> try:
        ...     LowRankConfig(rnk=8)
        ... except ConfigError as error:
        ...     print(error)
        LowRankConfig: unknown option 'rnk'. Did you mean 'rank'?
    """


class ContractError(ConfigError):
    """An environment declares or returns values that agents cannot use; the message has a fix."""


class RunError(RuntimeError):
    """A failure not caused by an option. The commands print the message and exit with code 1."""


class ReportedElsewhereError(RunError):
    """A failure that another process of the same run prints; the commands print nothing here."""


class PlainWarning(UserWarning):
    """A warning to the user of a command, which prints it as one line."""


def is_first_process() -> bool:
    """Return False if ``torchrun`` started this process and another one reports errors."""
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK", "0") == "0"


@contextmanager
def reported_by_first_process() -> Iterator[None]:
    """Let only the first process of ``torchrun`` print an error that occurs in all of them.

    Raises:
        ReportedElsewhereError: this is another process.
    """
    try:
        yield
    except (ConfigError, RunError) as error:
        if is_first_process():
            raise
        raise ReportedElsewhereError(str(error)) from error


def closest(name: object, valid: Iterable[str]) -> str | None:
    """Return the valid name that is most similar to another one; None if none is similar.

    Args:
        name: the other name.
        valid: the valid names.
    """
    # below difflib's default of 0.6, so that short names with one typo still match
    close = get_close_matches(str(name), list(valid), n=1, cutoff=0.5)
    return close[0] if close else None


def nearest(name: object, valid: Iterable[str]) -> str:
    """Return a hint to append to an error message about an unknown name.

    Args:
        name: the unknown name.
        valid: the valid names.

    Returns:
        `` Did you mean 'film'?`` if a valid name is similar, otherwise the list of valid names,
        `` Valid: bilinear, film.``; an empty string if there are none or too many to list.
    """
    options = sorted(set(valid))
    close = closest(name, options)
    if close is not None:
        return f" Did you mean '{close}'?"
    if 0 < len(options) <= MAX_LISTED_NAMES:
        return f" Valid: {', '.join(options)}."
    return ""


def first_lines(lines: Sequence[str]) -> list[str]:
    """Limit the lines of an error message; the last may say how many were left out.

    Args:
        lines: all lines, one for each error.
    """
    if len(lines) <= MAX_LINES:
        return list(lines)
    shown = MAX_LINES - 1
    return [*lines[:shown], f"… and {len(lines) - shown:,} more errors"]
