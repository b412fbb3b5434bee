"""A network as a list of steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from advbench.evaluation.certificates.affine_steps import Affine, ImageStep, Step
from advbench.evaluation.certificates.boxes import Box
from attacks_pool.errors import InputError

SAMPLES = 3
"""Size of the batch on which a network is read; a step must keep it as its first dimension."""


@dataclass(frozen=True)
class Piped:
    """An intermediate result that depends on the images: the index of its step, and its sample values."""

    index: int
    sample: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape without the batch."""
        return tuple(self.sample.shape[1:])


@dataclass
class StepList:
    """The steps of a network in the order of their computation; step 0 is the images.

    Attributes:
        steps: the steps.
        linear: whether each step is an affine function of the images.
        boxed: whether the image of a box of images under each step is a box that intervals give exactly.
        exact: whether intervals give the exact bounds of each single output.
    """

    steps: list[Step] = field(default_factory=list)
    linear: list[bool] = field(default_factory=list)
    boxed: list[bool] = field(default_factory=list)
    exact: list[bool] = field(default_factory=list)

    @classmethod
    def of_images(cls, sample: Tensor) -> tuple[StepList, Piped]:
        """A list with only the images, of which ``sample`` (N, C, H, W) are some."""
        found = cls([ImageStep((), ())], [True], [True], [True])
        found.steps[0].shape = tuple(sample.shape[1:])
        return found, Piped(0, sample)

    def add(self, step: Step, *given: Piped) -> Piped:
        """Append a step that takes ``given``, and compute its sample values."""
        inputs = step.inputs
        sample = step.value(*(one.sample for one in given))
        step.shape = tuple(sample.shape[1:])
        affine = isinstance(step, Affine)
        boxed = len(given) == 1 and self.boxed[inputs[0]]
        self.steps.append(step)
        self.linear.append(affine and all(self.linear[index] for index in inputs))
        self.boxed.append(boxed and isinstance(step, Affine) and step.keeps_boxes)
        self.exact.append(boxed and affine)
        return Piped(len(self.steps) - 1, sample)

    def values(self, x: Tensor) -> Tensor:
        """The last step's output for images (N, C, H, W), float64."""
        found: list[Tensor] = []
        for step in self.steps:
            found.append(step.value(*(found[index] for index in step.inputs)) if step.inputs else x)
        return found[-1]

    def image(self, index: int, boxes: Sequence[Box]) -> Box:
        """A box around the output of one step, from those of the steps before."""
        step = self.steps[index]
        return step.image(*(boxes[number] for number in step.inputs))


class UncoveredError(Exception):
    """An operation has no bounds; the message names it."""


def refuse(what: str) -> InputError:
    """The error for a network that has no bounds, in one line."""
    return InputError(
        f"no bounds for {what}: bounds cover convolutions, linear layers, activations, batch norm, pooling, "
        "additions and changes of shape; --method smoothing certifies a smoothed version of any model"
    )
