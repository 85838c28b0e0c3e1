"""f(x): the mean loss over a whole data set as a deterministic function of one flat parameter vector.

Sums run in float64 and in a fixed order, and are divided once by the number of samples, so a ragged last
micro-batch counts by its true size. Dropout is off and reduced precision (TF32, autocast) is off.

x is put where the module itself looks, into its own parameters, for as long as a call lasts. So whatever the
module does with them (shared blocks, checkpointed activations, views of its own) is part of f; and f is held
against its own difference quotients before the first value is given out.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lbdist.data.base import bounds, handed_out
from lbdist.errors import InputError, one_line
from lbdist.held import RECURRENT, Held, copy_into
from lbdist.losses import CrossEntropy, Given, Loss
from lbdist.networks.flat import check, flatten, trainable, views
from lbdist.proof import prove, prove_curvature
from lbdist.random import permutation
from lbdist.recalibration import norms, recalibrate
from lbdist.watched import refuse_in_evaluation, suspect

BATCH_NORM_MODES = ("running", "batch", "recalibrated")

_PROOF_SAMPLES = 256
_CURVATURE_SAMPLES = 8
"""Few, so that a small step crosses no kink: the Hessian leaves out what those add to a quotient."""

Function = Callable[[Tensor], tuple[float, Tensor]]
"""A function of a flat vector of shape (n,): its value and its gradient of shape (n,)."""


class Objective:
    """f and its gradient for a network and a data set; neither is ever changed.

    A network in half precision, or in several, is measured in float32 (a copy of it), since a box of Metric
    2.1 is finer than its rounding. The first call proves f on a few samples: all evaluations give one value,
    which is the module's own, and along two random directions at a point away from x the gradient agrees
    with difference quotients.

    Args:
        network: Any module that maps inputs to what the loss takes; its device is used.
        data: Inputs (N, ...), whose integers stay integers unless they are bytes of pictures, (N, H, W) or
            more, and labels (N, ...); on the network's device, or on the host, from where each micro-batch is
            sent.
        batch_norm: Statistics of batch normalisation: `running` averages as trained; `batch`, those of
            each evaluated micro-batch (the released code of Keskar et al., at 5,000); `recalibrated`,
            those of the whole data set at the network's own parameters, one layer after the other, then
            kept. A layer that is applied several times in one pass takes the moments over all of them.
            Layers without running statistics take those of each micro-batch, as in PyTorch.
        micro_batch_size: Samples taken through the network at once; a single one left over joins the last.
        loss: A `Loss`, or a function of (outputs, labels) that gives the sum of the samples' losses; None
            for cross-entropy over classes.

    Raises:
        InputError: An empty data set, an unknown mode, a micro-batch of no samples, or a network without
            trainable parameters, with lazy ones, or with some that share memory.
    """

    def __init__(
        self,
        network: nn.Module,
        data: tuple[Tensor, Tensor],
        *,
        batch_norm: str = "running",
        micro_batch_size: int = 5000,
        loss: Loss | Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        self.inputs, self.labels = data
        if len(self.labels) == 0:
            raise InputError("data: an empty data set has no loss")
        if len(self.inputs) != len(self.labels):
            raise InputError(f"data: {len(self.inputs)} inputs for {len(self.labels)} labels")
        if batch_norm not in BATCH_NORM_MODES:
            raise InputError(f"batch_norm={batch_norm}: must be one of {', '.join(BATCH_NORM_MODES)}")
        if micro_batch_size < 1:
            raise InputError(f"micro_batch_size={micro_batch_size}: must be at least 1")
        check(network)
        self.dtype = _precision(network)
        self.given = network
        low = any(p.is_floating_point() and p.dtype != self.dtype for p in network.parameters())
        self.network = network
        if low:
            with self._refusing():
                self.network = copy.deepcopy(network).to(self.dtype)
        self.batch_norm = batch_norm
        self.micro_batch_size = micro_batch_size
        self.loss = loss if isinstance(loss, Loss) else Given(loss) if loss else CrossEntropy()
        self.evaluations = 0
        self._proven = self._twice_proven = False
        self._buffers = self._all_buffers()
        if batch_norm == "recalibrated":
            with self._refusing():
                self._recalibrate()

    def part(self, samples: int, seed: int) -> Objective:
        """f over a random part of the samples."""
        return self.over(permutation(len(self.labels), seed=seed, epoch=0)[:samples].sort().values)

    def over(self, chosen: Tensor) -> Objective:
        """f over some of the samples, with the same network and the same batch-norm statistics.

        Args:
            chosen: Their places, int64 of shape (k,).
        """
        self._ready()
        part = self._another()
        part.inputs, part.labels = (every[chosen.to(every.device)] for every in (self.inputs, self.labels))
        return part

    def alike(self, label: int) -> Objective:
        """f if every sample had this label."""
        other = self._another()
        other.labels = torch.full_like(self.labels, label)
        return other

    def under(self, loss: Loss) -> Objective:
        """The same network and samples under another loss."""
        other = self._another()
        other.loss, other._proven, other._twice_proven = loss, False, False
        return other

    def _another(self) -> Objective:
        """The same f, about to be given other samples or another loss."""
        other = copy.copy(self)
        other.evaluations = 0
        return other

    @property
    def x(self) -> Tensor:
        """The network's own parameters, a vector of shape (n,)."""
        return flatten(self.network)

    def __call__(self, x: Tensor) -> tuple[float, Tensor]:
        """f(x) and its gradient.

        Args:
            x: Parameters of shape (n,), in f's precision.

        Raises:
            InputError: f is not a function of x, or the network fails.
            ValueError: x has another length or precision.
        """
        self.evaluations += 1
        total, gradient = self.sums(x)
        samples = len(self.labels)
        return float(total / samples), (gradient / samples).to(x.dtype)

    def sums(
        self, x: Tensor, v: Tensor | None = None, part: int = 0, parts: int = 1
    ) -> tuple[Tensor, Tensor]:
        """f before it is divided, or one of several parts of it, whose sum that is.

        Args:
            x: Parameters, shape (n,).
            v: None for the loss and its gradient; or a vector, whose product with the Hessian is the second.
            part: Which part.
            parts: How many; each is a run of micro-batches, of which there may be fewer.

        Returns:
            Two sums over the part's samples in float64, of shapes () and (n,).
        """
        total = torch.zeros((), dtype=torch.float64, device=x.device)
        second = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
        leaves, along = self._leaves(), x if v is None else v

        def first_order(outputs: Tensor, labels: Tensor) -> None:
            loss = self.loss.total(outputs, labels)
            second.add_(self.slope(loss))
            total.add_(loss.detach())

        def second_order(outputs: Tensor, labels: Tensor) -> None:
            loss = self.loss.total(outputs, labels)
            gradient = torch.autograd.grad(loss, leaves, create_graph=True, materialize_grads=True)
            slope = self._flat(gradient) @ along
            if slope.requires_grad:  # else the loss is linear in all that is trained
                second.add_(self.slope(slope))

        if v is None:
            self.visit(x, first_order, part=(part, parts))
        else:
            with sdpa_kernel(SDPBackend.MATH):  # the fast kernels have no second backward pass
                self.visit(x, second_order, twice=True, part=(part, parts))
        return total, second

    def slope(self, value: Tensor) -> Tensor:
        """The gradient of a value that `visit` computed, of shape ()."""
        return self._flat(torch.autograd.grad(value, self._leaves(), materialize_grads=True))

    def curvature(self, x: Tensor, v: Tensor) -> Tensor:
        """The product of f's Hessian at x with v, both of shape (n,), by two backward passes.

        Raises:
            InputError: It is not the derivative of the gradient; not every operation has a right second one.
        """
        if not self._twice_proven:
            self._ready()
            with self._refusing():
                few = self._few(_CURVATURE_SAMPLES)
                prove_curvature(few.twin or few)
            self._twice_proven = True
        return (self.sums(x, v)[1] / len(self.labels)).to(x.dtype)

    def _all_buffers(self) -> dict[str, Tensor]:
        return {k: b.detach().clone() for k, b in self.network.named_buffers(remove_duplicate=False)}

    def _leaves(self) -> list[nn.Parameter]:
        return [p for _, p in trainable(self.network)]

    @staticmethod
    def _flat(parts: tuple[Tensor, ...]) -> Tensor:
        return torch.cat([part.reshape(-1) for part in parts])

    def value(self, x: Tensor) -> float:
        """f(x) alone."""
        return self.measure(x)[0]

    def measure(self, x: Tensor | None = None) -> tuple[float, float]:
        """Mean loss and the loss's score at x, by default at the network's own parameters."""
        self._ready()
        x = self.x if x is None else x
        total = torch.zeros((), dtype=torch.float64, device=x.device)
        sums: list[Tensor] = []

        def see(outputs: Tensor, labels: Tensor) -> None:
            total.add_(self.loss.total(outputs, labels))
            scored = self.loss.scored(outputs, labels)
            sums[:] = [sums[0] + scored if sums else scored]

        with torch.no_grad():
            self.visit(x, see)
        return float(total / len(self.labels)), self.loss.value(sums[0], len(self.labels))

    def visit(
        self,
        x: Tensor,
        see: Callable[[Tensor, Tensor], None],
        *,
        twice: bool = False,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        """Shows each micro-batch's outputs at x; the network is as it was after.

        Args:
            x: Parameters, shape (n,).
            see: Called with outputs, of which `slope` takes gradients, and labels.
            twice: Whether there are two backward passes.
            part: Which of how many parts of the micro-batches.
        """
        self._ready()
        whole, (place, of) = bounds(0, len(self.labels), self.micro_batch_size), part
        chosen = whole[place * len(whole) // of : (place + 1) * len(whole) // of]
        parts = views(self.network, x.detach())
        if x.dtype != self.dtype:
            raise ValueError(f"x is {x.dtype}; f is computed in {self.dtype}, the network's precision")
        held = Held(self.network, twice)

        def work() -> None:
            self._set_modes(self.network)
            copy_into((parameter, parts[name]) for name, parameter in trainable(self.network))
            for start, stop in chosen:
                # batch statistics would otherwise leak into the running averages
                held.put_back_buffers(self._buffers)
                see(self._outputs(start, stop), self._targets(start, stop))

        held.during(work)

    def _set_modes(self, network: nn.Module) -> None:
        network.eval()
        for module in network.modules():
            # the same without dropout, and cuDNN has a backward pass of it
            if isinstance(module, nn.RNNBase) and type(module) in RECURRENT:
                module.training, module.dropout = True, 0.0
        if self.batch_norm == "batch":
            for norm in norms(network):
                norm.train()

    def _given(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Samples in memory of their own, where the network is: the data may be where there is more room."""
        return handed_out(self.inputs[start:stop].to(self._leaves()[0].device), dtype)

    def _targets(self, start: int, stop: int) -> Tensor:
        return self.labels[start:stop].to(self._leaves()[0].device, copy=True)

    def _outputs(self, start: int, stop: int) -> Tensor:
        outputs = self.network(self._given(start, stop, self.dtype))
        if not isinstance(outputs, Tensor):
            raise InputError(f"network: gives a {type(outputs).__name__} in evaluation mode, not a tensor")
        return outputs

    @contextlib.contextmanager
    def _refusing(self) -> Iterator[None]:
        """What the network or the loss raises on their first samples is a wrong input, in one line."""
        try:
            yield
        except (InputError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            why = f"network: {type(error).__name__} in evaluation mode: {one_line(error)[:300]}"
            if self.network is not self.given:
                why += f"; lbdist measures in {self.dtype}, which its forward pass has to follow"
            raise InputError(why) from error

    def _ready(self) -> None:
        if self._proven:
            return
        with self._refusing():
            self._watch()
            self._proven = prove(self._few(_PROOF_SAMPLES))

    def _watch(self) -> None:
        """Passes two samples, and refuses what makes no function of x, by the layer that does it."""

        def see(outputs: Tensor, _: Tensor) -> None:
            self.loss.fits(outputs, self.labels)

        with torch.no_grad():
            refuse_in_evaluation(self.network, lambda: self._few(2).visit(self.x, see), self.dtype)

    def _few(self, samples: int) -> Objective:
        """f over the first samples, taken as it is, for proofs."""
        few = self._another()
        few.inputs, few.labels = self.inputs[:samples], self.labels[:samples]
        few._proven = few._twice_proven = True
        return few

    @property
    def own(self) -> tuple[float, bool]:
        """The loss that the module itself gives at x, and whether it computes in the precision of f."""
        total = 0.0
        dtype = next(p.dtype for _, p in trainable(self.given))

        @torch.no_grad()
        def work() -> None:
            nonlocal total
            self._set_modes(self.given)
            for start, stop in bounds(0, len(self.labels), self.micro_batch_size):
                outputs = self.given(self._given(start, stop, dtype)).to(self.dtype)
                total += float(self.loss.total(outputs, self._targets(start, stop)))

        Held(self.given).during(work)
        return total / len(self.labels), self.given is self.network

    @property
    def suspect(self) -> str:
        """What in the network may keep a part of the gradient back, in brackets."""
        return suspect(self.network)

    @property
    def twin(self) -> Objective | None:
        """f in float64, of a copy of the network, where there can be one."""
        if self.dtype == torch.float64:
            return None
        try:
            network = copy.deepcopy(self.network).double()
            options = {"batch_norm": "running", "micro_batch_size": self.micro_batch_size, "loss": self.loss}
            twin = Objective(network, (self.inputs, self.labels), **options)  # type: ignore[arg-type]
            twin.batch_norm, twin._proven, twin._twice_proven = self.batch_norm, True, True
            floats = {k: b.double() if b.is_floating_point() else b for k, b in self._buffers.items()}
            twin._buffers = floats
            twin.measure()
        except Exception:  # whatever keeps the network from running in float64
            return None
        return twin

    def _recalibrate(self) -> None:
        """Takes the statistics of batch normalisation over the whole data set, and keeps them."""

        def take(samples: int) -> None:
            for start, stop in bounds(0, samples, self.micro_batch_size):
                self._outputs(start, stop)

        def work() -> None:
            self.network.eval()
            recalibrate(self.network, len(self.labels), take)
            self._buffers = self._all_buffers()

        Held(self.network).during(work)


def _precision(network: nn.Module) -> torch.dtype:
    """float64 where the network has it, else float32."""
    dtype = torch.float32
    for parameter in network.parameters():
        if parameter.is_floating_point():
            dtype = torch.promote_types(dtype, parameter.dtype)
    return dtype
