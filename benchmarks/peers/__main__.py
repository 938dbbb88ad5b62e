"""Install peers and measure their throughput.

python -m benchmarks.peers [navix cleanrl …] [--seconds 20]
python -m benchmarks.peers [navix cleanrl …] --install
"""

import argparse

from . import PEERS, install, run


def main() -> None:
    """Install the peers, and print one line each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("peers", nargs="*", metavar="peer", help=f"of {', '.join(PEERS)}")
    parser.add_argument("--seconds", type=float, default=20, help="per peer")
    parser.add_argument("--install", action="store_true", help="install only")
    parser.add_argument("--python", help="the Python of new environments")
    arguments = parser.parse_args()
    for name in arguments.peers:
        if name not in PEERS:
            parser.error(f"expected a peer of {', '.join(PEERS)}, got '{name}'")
    for name in arguments.peers or PEERS:
        install(name, arguments.python)
        if arguments.install:
            continue
        result = run(name, arguments.seconds)
        speed = f"{result['steps_per_second']:>10,.0f} steps/s"
        print(f"{name:<16}{result['version']:<8}{speed}", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
