"""Install peers and measure them: ``python -m benchmarks.peers [navix cleanrl …] [--seconds 20] [--install]``."""

import argparse

from . import PEERS, install, run


def main() -> None:
    """A line per peer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peers", nargs="*", metavar="peer", help=f"of {', '.join(PEERS)}; without any, all")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--install", action="store_true", help="install them and measure nothing")
    parser.add_argument("--python", help="the Python to make new environments with")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.peers if name not in PEERS]:
        parser.error(f"unknown peer '{unknown[0]}': expected {', '.join(PEERS)}")
    for name in arguments.peers or PEERS:
        install(name, arguments.python)
        if not arguments.install:
            result = run(name, arguments.seconds)
            print(  # noqa: T201
                f"{name:<16}{result['version']:<8}{result['steps_per_second']:>10,.0f} steps/s", flush=True
            )


if __name__ == "__main__":
    main()
