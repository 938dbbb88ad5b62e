"""A look inside a policy: numbers, a figure, and TensorBoard's summaries of its outputs."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from stable_baselines3.common.policies import BasePolicy

from mirl.agents.analysis.interaction import (
    CONTEXT,
    Outputs,
    VarianceShares,
    context_similarity,
    crossed_outputs,
    variance_shares,
)
from mirl.agents.analysis.modulation import Distribution, distribution, recorded_modulation
from mirl.agents.analysis.recording import RecordedEpisodes
from mirl.agents.runs.atomic_files import JsonObject, make_folder, write_json
from mirl.configs.errors import PlainWarning

COLORS = ("#0072B2", "#E69F00", "#009E73")
"""Colors of observation, context and interaction, which color-blind readers can distinguish."""


class InsideView(NamedTuple):
    """Outputs of a policy for all pairs of an observation and a context."""

    outputs: Mapping[str, Outputs]
    """Outputs of each part of the policy, (N, M, O)."""
    tasks: NDArray[np.int64]
    """Task of each observation, (N,)."""
    task_names: Sequence[str]
    """Names of the tasks of the suite."""
    contexts: Sequence[str]
    """Names of the contexts, (M,)."""
    factors: Mapping[str, NDArray[np.float32]]
    """Values of the factors by which the context acts, (n,) each, by the names from
    ``recorded_modulation``; empty for fusions without such factors."""

    def shares(self) -> dict[str, VarianceShares]:
        """Return the variance shares of each part except the context itself."""
        return {
            name: variance_shares(values)
            for name, values in self.outputs.items()
            if name != CONTEXT
        }

    def shares_by_task(self) -> dict[str, dict[str, VarianceShares]]:
        """Return the same for the observations of each task; empty for a single task."""
        present = np.unique(self.tasks).tolist()
        if len(present) < 2:
            return {}
        by_task = {}
        for task in present:
            rows = self.tasks == task
            of_task = {name: values[rows] for name, values in self.outputs.items()}
            by_task[self.task_names[task]] = self._replace(outputs=of_task).shares()
        return by_task

    def distributions(self) -> dict[str, Distribution]:
        """Return the distribution of each factor."""
        return {name: distribution(values) for name, values in self.factors.items()}

    @property
    def last_part(self) -> str:
        """The part on which contexts are compared: the action, or the features if recurrent."""
        return "action" if "action" in self.outputs else "features"

    def similarity(self) -> Float[np.ndarray, "contexts contexts"]:
        """Return the similarity of each pair of contexts in ``last_part``'s outputs, (M, M)."""
        return context_similarity(self.outputs[self.last_part])

    def lines(self) -> list[str]:
        """Return a line with the shares of ``last_part``, for the terminal."""
        shares = self.shares()[self.last_part]
        return [
            f"Inside: {shares.interaction:.1%} of the variance of the {self.last_part} is an "
            f"interaction of observation and context; the observation alone explains "
            f"{shares.observation:.1%}, the context alone {shares.context:.1%}"
        ]

    def summary(self) -> JsonObject:
        """Return all numbers, for a JSON file."""
        by_task = {}
        for task, shares in self.shares_by_task().items():
            by_task[task] = {name: each._asdict() for name, each in shares.items()}
        return {
            "observations": len(self.tasks),
            "contexts": list(self.contexts),
            "variance_shares": {name: each._asdict() for name, each in self.shares().items()},
            "variance_shares_by_task": by_task,
            "similarity_of": self.last_part,
            "similarity": np.round(self.similarity(), 4).tolist(),
            "factors": {name: each._asdict() for name, each in self.distributions().items()},
        }


def look_inside(policy: BasePolicy, recorded: RecordedEpisodes) -> InsideView | None:
    """Compute the outputs for all pairs of recorded observations and contexts.

    Args:
        policy: the policy, in evaluation mode.
        recorded: the episodes.

    Returns:
        The outputs; None, with a warning, if all episodes have the same context.
    """
    names, contexts = recorded.contexts
    if len(names) < 2:
        warnings.warn(
            "inside=true compares contexts, and all episodes have the same one, so nothing is "
            "compared; choose a run with several missions, goals or tasks",
            PlainWarning,
            stacklevel=2,
        )
        return None
    with recorded_modulation(policy) as factors:
        outputs = crossed_outputs(policy, recorded.observations, contexts)
    task_names = [task.name for task in recorded.suite.tasks]
    return InsideView(outputs, recorded.tasks, task_names, names, factors)


def write_inside(view: InsideView, stem: Path, step: int) -> list[Path]:
    """Write the numbers as JSON, the figure as PNG, and both for TensorBoard.

    Args:
        view: the numbers to write.
        stem: path of the files without their suffixes; the events are in a folder of this name.
        step: timesteps of the checkpoint.

    Returns:
        The written files, and the folder of the events.
    """
    make_folder(stem.parent)
    numbers = stem.with_name(f"{stem.name}.json")
    write_json(numbers, view.summary())
    picture = stem.with_name(f"{stem.name}.png")
    _draw(view, picture)
    _write_events(view, picture, stem, step)
    return [numbers, picture, stem]


def _write_events(view: InsideView, picture: Path, folder: Path, step: int) -> None:
    # imported here because it is slow to load
    from PIL import Image
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for name, shares in view.shares().items():
            writer.add_scalar(f"inside/interaction/{name}", shares.interaction, step)
        for task, of_task in view.shares_by_task().items():
            for name, shares in of_task.items():
                writer.add_scalar(f"inside/{task}/interaction/{name}", shares.interaction, step)
        for name, values in view.factors.items():
            writer.add_histogram(f"inside/factors/{name}", values, step)
        with Image.open(picture) as image:
            pixels = np.asarray(image.convert("RGB"))
        writer.add_image("inside", pixels, step, dataformats="HWC")
        if CONTEXT in view.outputs:
            encoded = view.outputs[CONTEXT][0]  # the same for every observation
            writer.add_histogram("inside/context", encoded, step)
            writer.add_embedding(encoded, list(view.contexts), global_step=step, tag=CONTEXT)


# ------------------------------------------------------------------------------------------- figure


def _draw(view: InsideView, path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")  # draws without a display
    from matplotlib import pyplot as plt

    n_panels = 2 + (CONTEXT in view.outputs) + bool(view.factors)
    height = max(4.0, 1.5 + 0.22 * len(view.contexts))
    figure, panels = plt.subplots(
        1, n_panels, figsize=(4.2 * n_panels + 3, height), layout="constrained"
    )
    _draw_shares(panels[0], view.shares())
    _draw_similarity(figure, panels[1], view)
    if CONTEXT in view.outputs:
        _draw_contexts(panels[2], view)
    if view.factors:
        _draw_factors(panels[-1], view.distributions())
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_shares(axes: Any, shares: Mapping[str, VarianceShares]) -> None:
    names = list(shares)
    left = np.zeros(len(names))
    for part, color, hatch in zip(VarianceShares._fields, COLORS, ("", "//", ".."), strict=True):
        widths = np.array([getattr(shares[name], part) for name in names])
        axes.barh(names, widths, left=left, color=color, hatch=hatch, edgecolor="white", label=part)
        left += widths
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of the variance")
    axes.set_title("What the outputs depend on")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3, frameon=False)


def _draw_similarity(figure: Any, axes: Any, view: InsideView) -> None:
    image = axes.imshow(view.similarity(), vmin=-1, vmax=1, cmap="PuOr")
    numbers = range(len(view.contexts))
    axes.set_yticks(numbers, view.contexts, fontsize=8)
    axes.set_xticks(numbers, view.contexts, fontsize=8, rotation=90)
    axes.set_title(f"Similarity of the contexts in the {view.last_part}")
    figure.colorbar(image, ax=axes, shrink=0.7, label="cosine of their effects")


def _draw_contexts(axes: Any, view: InsideView) -> None:
    """Draw the encoded contexts by their first two principal components."""
    encoded = view.outputs[CONTEXT][0].astype(np.float64)
    centered = encoded - encoded.mean(0)
    _, sizes, directions = np.linalg.svd(centered, full_matrices=False)
    places = np.zeros((len(encoded), 2))
    components = min(2, len(sizes))
    places[:, :components] = centered @ directions[:components].T
    axes.scatter(places[:, 0], places[:, 1], s=14, color=COLORS[0])
    for place, name in zip(places, view.contexts, strict=True):
        axes.annotate(name, place, fontsize=6.5, xytext=(3, 3), textcoords="offset points")
    explained = sizes[:2] ** 2 / max(float((sizes**2).sum()), np.finfo(float).tiny)
    axes.set_xlabel(f"first component ({explained[0]:.0%} of the variance)")
    second = f" ({explained[1]:.0%})" if components == 2 else ""
    axes.set_ylabel(f"second component{second}")
    axes.set_title("Encoded contexts z")
    axes.margins(0.4)


def _draw_factors(axes: Any, distributions: Mapping[str, Distribution]) -> None:
    """Draw a bar from the 5 % to the 95 % quantile of each factor, and its median."""
    rows = range(len(distributions))
    low = np.array([each.q05 for each in distributions.values()])
    high = np.array([each.q95 for each in distributions.values()])
    axes.barh(rows, high - low, left=low, height=0.5, color=COLORS[1])
    medians = [each.q50 for each in distributions.values()]
    axes.plot(medians, rows, marker="|", markersize=12, linestyle="", color="black")
    # the path of the layer and the factor, in two lines
    labels = [
        name.removeprefix("features_extractor.").replace(": ", ":\n") for name in distributions
    ]
    axes.set_yticks(rows, labels, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("value: 5 % to 95 %, and median")
    axes.set_title("Factors of the context")
