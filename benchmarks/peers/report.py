"""The one line of JSON in which a driver says what it measured."""

import json
from importlib.metadata import version


def report(package: str, timesteps: int, seconds: float, beside: tuple[str, ...], **settings: object) -> None:
    """Print it; ``beside`` names the packages whose versions also matter."""
    result = {
        "peer": package,
        "version": version(package),
        "steps_per_second": timesteps / seconds,
        "timesteps": timesteps,
        "seconds": seconds,
        "settings": settings | {name: version(name) for name in beside},
    }
    print(json.dumps(result), flush=True)  # noqa: T201
