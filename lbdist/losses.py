"""What is learnt: one class a task, each with the score that a reader expects beside the loss.

f is the mean over samples of a sample's loss; a sequence's loss is the mean over its counted tokens. So every
sum over samples can be cut into micro-batches and over workers and be divided once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lbdist.data.base import Dataset
from lbdist.errors import InputError, require


class Loss(ABC):
    """A loss that is summed over samples, and its score.

    Attributes:
        score: Name of the score, the metric beside the loss; higher is better.
        unit: Unit of the score, `%` or nothing.
        highest: The highest score.
        loss_unit: Unit of the loss, `nats` or nothing.
    """

    score: ClassVar[str] = "accuracy"
    unit: ClassVar[str] = "%"
    highest: ClassVar[float] = 100.0
    loss_unit: ClassVar[str] = ""

    @abstractmethod
    def total(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The samples' losses, summed: shape ()."""

    @abstractmethod
    def scored(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What the score is computed from, summed over samples: float64 of shape (k,), the same k always."""

    def fits(self, outputs: Tensor, targets: Tensor) -> None:
        """Refuses targets of a data set that have no place in outputs like those of its first samples.

        A GPU that meets one ends the whole process.
        """

    def value(self, sums: Tensor, samples: int) -> float:
        """The score from the sums over all samples; by default a percentage of the first."""
        return 100 * float(sums[0]) / samples

    def chance(self, data: Dataset) -> float | None:
        """The score that one answer for all samples has on the test set, and no more than chance adds to it.

        By default, where labels are classes and the score is a share: the most frequent class's, and two
        standard errors; else None.
        """
        labels = data.test.labels.reshape(-1)
        if self.unit != "%" or labels.dtype.kind not in "iu" or labels.min() < 0:
            return None
        share = float(np.bincount(labels).max()) / len(labels)
        return 100 * min(1.0, share + 2 * (share * (1 - share) / len(labels)) ** 0.5)

    @abstractmethod
    def check(self, data: Dataset) -> tuple[int, ...]:
        """Refuses targets that the loss cannot take.

        Returns:
            The shape of the network's output for one sample, where -1 stands for any size.
        """


_NO_LABEL = -(2**62)


def _labels(data: Dataset) -> list[tuple[str, np.ndarray]]:
    return [("train", data.train.labels), ("test", data.test.labels)]


def _classes(data: Dataset) -> int:
    """How many classes there are: as the data say, else one more than the largest training label."""
    return data.classes or 1 + int(data.train.labels.max())


def _sample_shape(data: Dataset) -> tuple[int, ...]:
    """The shape of one sample's labels, the same in both splits."""
    shape = data.train.labels.shape[1:]
    require(data.test.labels.shape[1:] == shape, "data", "labels", f"of one shape, {shape}, in both splits")
    return shape


def _within(targets: Tensor, classes: int) -> None:
    """Labels are 0 to C - 1.

    Raises:
        InputError: One is not.
    """
    wrong = targets[(targets < 0) | (targets >= classes)]
    if len(wrong):
        raise InputError(f"network: gives {classes} outputs per sample, but there is a label {int(wrong[0])}")


def _unlike(outputs: Tensor, targets: Tensor) -> InputError:
    return InputError(
        f"network: gives outputs of shape {tuple(outputs.shape)} for labels of {tuple(targets.shape)}"
    )


@dataclass
class CrossEntropy(Loss):
    """Mean cross-entropy over classes (Keskar et al., section 2): outputs (N, C), labels (N,).

    Example:
        >>> loss = CrossEntropy().total(torch.zeros(3, 4), torch.tensor([0, 1, 2]))
        >>> round(float(loss / 3), 4)  # log 4
        1.3863
    """

    loss_unit: ClassVar[str] = "nats"

    def total(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy, summed over samples; labels may be each class's probability, (N, C), as well."""
        if targets.is_floating_point():
            if outputs.shape != targets.shape:
                raise _unlike(outputs, targets)
            return F.cross_entropy(outputs, targets, reduction="sum")
        if outputs.ndim != 2 or targets.shape != outputs.shape[:1]:
            shapes = f"outputs of shape {tuple(outputs.shape)} for labels of {tuple(targets.shape)}"
            raise InputError(
                f"network: gives {shapes}; cross-entropy takes (N, C) and (N,), Tokens takes sequences"
            )
        # no label is passed over: each of the N samples counts
        return F.cross_entropy(outputs, targets.long(), reduction="sum", ignore_index=_NO_LABEL)

    def fits(self, outputs: Tensor, targets: Tensor) -> None:
        """Each label has an output."""
        if outputs.ndim == 2 and not targets.is_floating_point():
            _within(targets, outputs.shape[1])

    def scored(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Samples whose largest output is that of their class."""
        right = targets.argmax(1) if targets.ndim == outputs.ndim else targets
        return (outputs.argmax(1) == right).sum().double()[None]

    def check(self, data: Dataset) -> tuple[int, ...]:
        """Labels are classes 0 to C - 1."""
        for name, labels in _labels(data):
            require(
                labels.ndim == 1 and labels.dtype.kind in "iu",
                "loss",
                "cross_entropy",
                f"another: the {name} split's labels are {labels.dtype} of shape {labels.shape}, no classes",
            )
        classes = _classes(data)
        for name, labels in _labels(data):
            wrong = labels[(labels < 0) | (labels >= classes)]
            if len(wrong):
                raise InputError(
                    f"data: label {wrong[0]} in the {name} split; allowed are 0 to {classes - 1}"
                )
        return (classes,)


@dataclass
class Tokens(Loss):
    """Cross-entropy over the tokens of sequences: outputs (N, T, C), labels (N, T).

    A sequence's loss is the mean over its counted tokens.

    Attributes:
        ignored: Label of tokens that do not count.
    """

    ignored: int = -100

    loss_unit: ClassVar[str] = "nats"

    def total(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Each sequence's mean over its counted tokens, summed over sequences."""
        flat = F.cross_entropy(
            outputs.flatten(0, 1), targets.long().flatten(), ignore_index=self.ignored, reduction="none"
        ).view(targets.shape)
        return (flat.sum(1) / self._counted(targets)).sum()

    def fits(self, outputs: Tensor, targets: Tensor) -> None:
        """Each token that counts has an output."""
        _within(targets[targets != self.ignored], outputs.shape[-1])

    def scored(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Each sequence's share of right tokens, summed over sequences."""
        right = (outputs.argmax(-1) == targets) & (targets != self.ignored)
        return (right.sum(1).double() / self._counted(targets)).sum()[None]

    def _counted(self, targets: Tensor) -> Tensor:
        return (targets != self.ignored).sum(1).clamp_min(1)

    def check(self, data: Dataset) -> tuple[int, ...]:
        """Labels are tokens or the ignored index, and every sequence has one that counts."""
        for name, labels in _labels(data):
            require(
                labels.ndim == 2 and labels.dtype.kind in "iu",
                "loss",
                "tokens",
                f"another: the {name} split's labels are {labels.dtype} of shape {labels.shape}, not (N, T)",
            )
            counted = labels != self.ignored
            if not counted.any(1).all():
                first = int(np.flatnonzero(~counted.any(1))[0])
                raise InputError(f"data: sequence {first} of the {name} split has no token that counts")
            if labels[counted].min() < 0:
                raise InputError(
                    f"data: label {labels[counted].min()} in the {name} split; must be 0 or more"
                )
        classes = _classes(data)
        largest = int(data.test.labels.max())
        require(largest < classes, "data.test", f"label {largest}", f"below the {classes} classes")
        return (data.train.labels.shape[1], classes)


@dataclass
class MeanSquaredError(Loss):
    """Regression: outputs of the labels' shape, (N,) or (N, K); a sample's loss is the mean over its numbers.

    The score is R^2 = 1 - SSE / SST over all numbers of a split, each output's SST about its own mean.
    """

    score: ClassVar[str] = "r2"
    unit: ClassVar[str] = ""
    highest: ClassVar[float] = 1.0

    def total(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Each sample's mean squared error, summed over samples."""
        errors = self._matched(outputs, targets) - targets.to(outputs.dtype)
        return (errors**2).flatten(1).mean(1).sum() if targets.ndim > 1 else (errors**2).sum()

    def _matched(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Outputs in the labels' shape: (N, 1) for (N,), never broadcast."""
        if outputs.numel() != targets.numel():
            raise _unlike(outputs, targets)
        return outputs.view_as(targets)

    def scored(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Squared errors, labels and squared labels, each output's summed over samples."""
        y = targets.double().reshape(len(targets), -1)
        errors = self._matched(outputs, targets).double().reshape(y.shape) - y
        return torch.cat([(errors**2).sum(0), y.sum(0), (y**2).sum(0)])

    def value(self, sums: Tensor, samples: int) -> float:
        """R^2; NaN where the labels do not vary, to float32's resolution: what is below it is rounding."""
        errors, total, squares = sums.double().chunk(3)
        spread = float((squares - total**2 / samples).sum())
        least = torch.finfo(torch.float32).eps ** 2 * float(squares.sum())
        return 1 - float(errors.sum()) / spread if spread > least else float("nan")

    def check(self, data: Dataset) -> tuple[int, ...]:
        """Labels are finite numbers of one shape."""
        for name, labels in _labels(data):
            if labels.dtype.kind != "f" or not np.isfinite(labels).all():
                raise InputError(
                    f"data: the {name} split's labels must be finite floating-point numbers, not "
                    f"{labels.dtype}: data.task=regression takes integers for numbers"
                )
        return _sample_shape(data) or (1,)


@dataclass
class BinaryCrossEntropy(Loss):
    """Several yes-or-no labels per sample: outputs and labels (N, K).

    A sample's loss is the mean over its labels. The score is the share of right labels.
    """

    loss_unit: ClassVar[str] = "nats"

    def total(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Each sample's mean binary cross-entropy from logits, summed over samples."""
        if outputs.shape != targets.shape:
            raise _unlike(outputs, targets)
        losses = F.binary_cross_entropy_with_logits(outputs, targets.to(outputs.dtype), reduction="none")
        return losses.flatten(1).mean(1).sum()

    def scored(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Each sample's share of right labels, summed over samples."""
        right = (outputs > 0) == (targets > 0.5)
        return right.double().flatten(1).mean(1).sum()[None]

    def check(self, data: Dataset) -> tuple[int, ...]:
        """Labels are 0 or 1."""
        for name, labels in _labels(data):
            if labels.ndim != 2 or not np.isin(labels, (0, 1)).all():
                raise InputError(f"data: the {name} split's labels must be 0 or 1, of shape (N, K)")
        return _sample_shape(data)


class Given(Loss):
    """A function of (outputs, targets) that gives the samples' losses, summed.

    Args:
        function: The function.
    """

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.function = function

    def total(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The function's value."""
        return self.function(outputs, targets)

    def scored(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Right classes, or NaN where the outputs are no scores of classes."""
        if targets.ndim == 1 and outputs.ndim == 2 and not targets.is_floating_point():
            return CrossEntropy().scored(outputs, targets)
        return torch.full((1,), float("nan"), dtype=torch.float64, device=outputs.device)

    def check(self, data: Dataset) -> tuple[int, ...]:
        """Refuses nothing: what targets are is the function's own affair."""
        return (-1,)


@dataclass
class NormalisedLogits(Loss):
    """Another loss, of each sample's outputs over their standard deviation over classes.

    A number that multiplies all outputs, as the last layer's weights grow to, drops out (Andriushchenko et
    al. 2023, section 3).

    Attributes:
        loss: The other loss; outputs are (N, C, ...).

    Example:
        >>> plain, outputs = CrossEntropy(), torch.tensor([[1.0, -1.0]])
        >>> [round(float(NormalisedLogits(plain).total(k * outputs, torch.tensor([0]))), 4) for k in (1, 5)]
        [0.1269, 0.1269]
    """

    loss: Loss

    def total(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of the normalised outputs, summed over samples."""
        apart = outputs - outputs.mean(1, keepdim=True)
        size = apart.square().mean(1, keepdim=True).sqrt()
        return self.loss.total(outputs / size.clamp(min=torch.finfo(outputs.dtype).tiny), targets)

    def scored(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """As of the outputs themselves: their order is the same."""
        return self.loss.scored(outputs, targets)

    def fits(self, outputs: Tensor, targets: Tensor) -> None:
        """Refuses what the other loss refuses."""
        self.loss.fits(outputs, targets)

    def check(self, data: Dataset) -> tuple[int, ...]:
        """What the other loss says of the data."""
        return self.loss.check(data)
