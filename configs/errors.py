"""What a user reads after a mistake: what was expected, what came, and the nearest valid name."""

from collections.abc import Iterable
from difflib import get_close_matches


class ConfigError(ValueError):
    """A user's mistake, told in one message; the command line prints it without a traceback and exits with 2."""


class RunError(RuntimeError):
    """What no word of the user's is to blame for; the command line prints it without a traceback and exits with 1."""


def nearest(name: object, valid: Iterable[str]) -> str:
    """``name`` against the valid names: `` Did you mean 'film'?`` or, with nothing near, `` Valid: bilinear, film.``"""
    options = sorted(set(valid))
    if not options:
        return ""
    close = get_close_matches(str(name), options, n=1, cutoff=0.5)
    if close:
        return f" Did you mean '{close[0]}'?"
    return f" Valid: {', '.join(options)}." if len(options) <= 40 else ""
