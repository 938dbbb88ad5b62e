"""Output of a driver: one line of JSON."""

import json
from importlib.metadata import version


def report(
    package: str,
    timesteps: int,
    seconds: float,
    other_packages: tuple[str, ...],
    **settings: object,
) -> None:
    """Print a measurement.

    Args:
        package: The package of the peer.
        timesteps: Number of timesteps measured.
        seconds: The time that they took.
        other_packages: Further packages whose versions are recorded.
        **settings: The environment, the network and the hyperparameters.
    """
    result = {
        "peer": package,
        "version": version(package),
        "steps_per_second": timesteps / seconds,
        "timesteps": timesteps,
        "seconds": seconds,
        "settings": settings | {name: version(name) for name in other_packages},
    }
    print(json.dumps(result), flush=True)  # noqa: T201
