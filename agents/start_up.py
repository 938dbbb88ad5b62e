"""Loading of torch's compiler, put off until it is needed."""

import inspect

from torch.optim import Optimizer

MARK = "__dynamo_disable"
"""Attribute in which torch keeps the form of a function that its compiler leaves alone."""


def load_compiler_late() -> None:
    """Let torch load its compiler with the first gradient step, not with the first optimizer.

    Policies have an optimizer even where they only act. The compiler takes seconds to load, which
    is longer than a short evaluation.
    """
    method = inspect.unwrap(Optimizer.add_param_group)
    # torch asks the compiler for that form only where there is none
    if not hasattr(method, MARK):
        setattr(method, MARK, method)
