"""Measure the torch operations in the training of the default agent.

    python benchmarks/operations.py [OPTION ...]

The agent that the options define (default ``task=goto_local``) trains in one thread under torch's
profiler, which makes small operations slower. Times and calls are those of rollouts and updates,
per gradient step. Writes ``benchmarks/results/operations.json``.
"""

import argparse
import warnings

import torch
from contenders import agent_of_options
from machine import write_results
from torch.profiler import ProfilerActivity, profile

from mirl.agents import PPO

WARM_UP = 2
ITERATIONS = 4
GROUPS: dict[str, tuple[str, ...]] = {
    "convolution, backward": ("convolution_backward",),
    "convolution, forward": ("mkldnn_convolution", "convolution_overrideable", "thnn_conv2d"),
    "matrix products": ("mm", "addmm", "bmm", "baddbmm"),
    "sums over rows of a table": (
        "scatter_add_",
        "index_add_",
        "_embedding_bag",
        "_index_put_impl_",
    ),
    "rows of a table": ("index_select", "index", "gather"),
    "copies": ("copy_", "cat", "clone", "_to_copy"),
    "activations and their gradients": (
        *("clamp_min", "relu", "threshold_backward", "tanh", "tanh_backward"),
        *("_softmax", "_softmax_backward_data", "_log_softmax", "_log_softmax_backward_data"),
    ),
    "optimizer": ("_fused_adam_", "Adam.step", "_foreach_norm", "_foreach_mul_"),
}
"""Names of operations by group; a name counts if it follows ``aten::`` or a ``#``."""
OTHERS = "all others"


def group_of(key: str) -> str:
    """Return the group of an operation.

    Args:
        key: the operation's name in the profiler.
    """
    name = key.removeprefix("aten::").rpartition("#")[2]
    for group, names in GROUPS.items():
        if name in names:
            return group
    return OTHERS


def main() -> None:
    """Profile the agent and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("options", nargs="*", default=["task=goto_local"], metavar="OPTION")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    agent = agent_of_options(*parser.parse_args().options)
    assert isinstance(agent, PPO), "the operations are counted per gradient step of PPO"
    rollout = agent.n_steps * agent.n_envs
    agent.learn(WARM_UP * rollout)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        agent.learn(ITERATIONS * rollout, reset_num_timesteps=False)
    steps = ITERATIONS * agent.n_epochs * rollout / agent.batch_size
    milliseconds = dict.fromkeys([*GROUPS, OTHERS], 0.0)
    calls = dict.fromkeys(milliseconds, 0.0)
    for event in profiler.key_averages():
        group = group_of(event.key)
        milliseconds[group] += event.self_cpu_time_total / 1000 / steps
        calls[group] += event.count / steps
    total = sum(milliseconds.values())
    rows = []
    for group, time in milliseconds.items():
        rows.append([group, f"{time:.1f}", f"{time / total:.0%}", f"{calls[group]:,.0f}"])
    rows.append(["together", f"{total:.1f}", "100%", f"{sum(calls.values()):,.0f}"])
    for row in rows:
        print("  ".join(row))  # noqa: T201
    columns = ["operations", "ms per gradient step", "share", "calls per gradient step"]
    write_results("operations", columns, rows, {"milliseconds": milliseconds, "calls": calls})


if __name__ == "__main__":
    main()
