"""Deferred loading of torch's compiler."""

import inspect

from torch.optim import Optimizer

MARK = "__dynamo_disable"
"""Attribute in which torch caches the version of a function that its compiler ignores."""


def load_compiler_late() -> None:
    """Make torch load its compiler at the first gradient step, not with the first optimizer.

    Policies have an optimizer even if they only act. The compiler takes seconds to load, longer
    than a short evaluation.
    """
    method = inspect.unwrap(Optimizer.add_param_group)
    # torch asks the compiler for that version only if the attribute is missing
    if not hasattr(method, MARK):
        setattr(method, MARK, method)
