"""Draw the picture of docs/idea.md: an additive and a multiplicative layer of two numbers.

python benchmarks/idea.py
"""

import numpy as np
from pictures import figure

CONTEXTS = (-1, 0, 1)


def main() -> None:
    """Draw both layers, each with weights 1, over x for three contexts z."""
    x = np.linspace(-1, 1, 3)
    with figure("idea", n_panels=2, size=(7, 3)) as [additive, multiplicative]:
        for z in CONTEXTS:
            additive.plot(x, x + z, label=f"z = {z}")
            multiplicative.plot(x, z * x, label=f"z = {z}")
        additive.set(title="additive: y = x + z", xlabel="x", ylabel="y")
        multiplicative.set(title="multiplicative: y = z x", xlabel="x")
        for panel in (additive, multiplicative):
            panel.set(xlim=(-1, 1), ylim=(-2, 2))
            panel.legend(frameon=False)
            panel.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
