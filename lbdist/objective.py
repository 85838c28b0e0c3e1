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
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from lbdist.data.base import bounds, handed_out
from lbdist.errors import InputError, one_line
from lbdist.losses import CrossEntropy, Given, Loss
from lbdist.networks.flat import check, flatten, trainable, views
from lbdist.random import permutation

BATCH_NORM_MODES = ("running", "batch", "recalibrated")

Function = Callable[[Tensor], tuple[float, Tensor]]
"""A function of a flat vector of shape (n,): its value and its gradient of shape (n,)."""

_RECURRENT = (nn.RNN, nn.LSTM, nn.GRU)

_PROOF_SAMPLES = 256
_CURVATURE_SAMPLES = 8
"""Few, so that a small step crosses no kink: the Hessian leaves out what those add to a quotient."""
_PROOF_TOLERANCE = 0.02
"""Of a difference quotient, at the best of the steps that are tried: a wrong gradient is off by far more."""


def _flags() -> tuple[bool, ...]:
    """What PyTorch keeps for a whole process and f depends on, or an interrupted call could leave behind."""
    cudnn = torch.backends.cudnn
    tf32 = torch.backends.cuda.matmul.allow_tf32, cudnn.allow_tf32
    return torch.is_grad_enabled(), cudnn.enabled, *tf32, *map(torch.is_autocast_enabled, ("cuda", "cpu"))


def _set_flags(grad: bool, cudnn: bool, matmul: bool, convolution: bool, cuda: bool, cpu: bool) -> None:
    torch.set_grad_enabled(grad)
    torch.backends.cudnn.enabled = cudnn
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, convolution
    torch.set_autocast_enabled("cuda", cuda)
    torch.set_autocast_enabled("cpu", cpu)


class _Held:
    """A module, while some work lasts: its parameters, buffers and modes are as before at the end.

    TF32 and autocast are off meanwhile: their rounding is as large as the box of Metric 2.1. So is cuDNN if
    there are recurrent layers of which it has no backward pass.
    """

    def __init__(self, network: nn.Module, twice: bool = False) -> None:
        self.modes = [(module, module.training) for module in network.modules()]
        recurrent = [module for module in network.modules() if isinstance(module, nn.RNNBase)]
        self.dropouts = [(module, module.dropout) for module in recurrent]
        parameters = list(network.parameters())
        buffers = [
            (module, name, buffer, f"{path}.{name}".lstrip("."))
            for path, module in network.named_modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
        copies = _copies([*parameters, *(buffer for _, _, buffer, _ in buffers)])
        self.parameters = list(zip(parameters, copies, strict=False))
        self.buffers = [
            (module, name, buffer, copy, path)
            for (module, name, buffer, path), copy in zip(buffers, copies[len(parameters) :], strict=True)
        ]
        self.cudnn = not (twice and recurrent) and all(type(module) in _RECURRENT for module in recurrent)
        self.flags = _flags()

    def during(self, work: Callable[[], None]) -> None:
        """Does some work with the module; one interrupt (Ctrl-C) may come at any moment."""
        grad, cudnn = self.flags[:2]
        try:
            try:
                _set_flags(grad, cudnn and self.cudnn, False, False, False, False)
                work()
            finally:
                self.put_back()
        except KeyboardInterrupt:  # perhaps as it was being put back; a context manager's exit can be lost
            self.put_back()
            raise

    def put_back(self) -> None:
        """Gives the module everything again; it does no harm to do so twice."""
        _copy(self.parameters)
        self.put_back_buffers()
        for module, mode in self.modes:
            module.training = mode
        for module, dropout in self.dropouts:
            module.dropout = dropout
        _set_flags(*self.flags)

    def put_back_buffers(self, instead: Mapping[str, Tensor] | None = None) -> None:
        """Gives the module its buffers again, with other values where they are given."""
        for module, name, buffer, *_ in self.buffers:
            module._buffers[name] = buffer  # which the module may have replaced
        _copy((buffer, (instead or {}).get(path, value)) for *_, buffer, value, path in self.buffers)


def _copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    """A copy of each, all of a kind at once: one by one, a GPU would wait."""
    kinds: dict[tuple[Any, ...], list[int]] = {}
    for place, tensor in enumerate(tensors):
        kinds.setdefault((tensor.dtype, tensor.device, tensor.layout), []).append(place)
    found: dict[int, Tensor] = {}
    for places in kinds.values():
        if tensors[places[0]].layout != torch.strided:
            found |= {place: tensors[place].detach().clone() for place in places}
            continue
        alike = [tensors[place].detach() for place in places]
        flat = torch.cat([tensor.reshape(-1) for tensor in alike])
        parts = flat.split([tensor.numel() for tensor in alike])
        found |= {place: part.view(t.shape) for place, part, t in zip(places, parts, alike, strict=True)}
    return [found[place] for place in range(len(tensors))]


def _copy(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Copies the second of each pair into the first, all of a kind at once."""
    kinds: dict[tuple[Any, ...], list[tuple[Tensor, Tensor]]] = {}
    for to, value in pairs:
        kinds.setdefault((to.dtype, to.device, value.dtype), []).append((to.data, value))
    for alike in kinds.values():
        torch._foreach_copy_([to for to, _ in alike], [value for _, value in alike])


def _noise(x: Tensor, seed: int) -> Callable[[], Tensor]:
    """Draws normal vectors of about the size of x, entry by entry, the same on every machine of a kind."""
    generator = torch.Generator(x.device).manual_seed(seed)
    scale = x.abs() + x.abs().mean() + 1e-6
    return lambda: scale * torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)


def _rounding(dtype: torch.dtype, size: float) -> float:
    """What rounding may change in a number of this size."""
    return 8 * torch.finfo(dtype).eps * size


class Objective:
    """f and its gradient for a network and a data set; neither is ever changed.

    A network in half precision, or in several, is measured in float32 (a copy of it), since a box of Metric
    2.1 is finer than its rounding. The first call proves f on a few samples: two evaluations give one value,
    which is the module's own, and along two random directions at a point away from x the gradient agrees
    with difference quotients.

    Args:
        network: Any module that maps inputs to what the loss takes; its device is used.
        data: Inputs (N, ...), whose integers stay integers unless they are uint8, and labels (N, ...); on
            the network's device, or on the host, from where each micro-batch is sent.
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
        self._ready()
        self.evaluations += 1
        return self._gradient(x, len(self.labels))

    def _gradient(self, x: Tensor, samples: int) -> tuple[float, Tensor]:
        """The mean loss over the first samples and its gradient."""
        total, gradient = self._sums(x, samples)
        return float(total / samples), (gradient / samples).to(x.dtype)

    def sums(self, x: Tensor, v: Tensor | None, part: int, parts: int) -> tuple[Tensor, Tensor]:
        """One of several parts of f: what all of them sum to, over the number of samples, is f.

        Args:
            x: Parameters, shape (n,).
            v: None for the loss and its gradient; or a vector, whose product with the Hessian is the second.
            part: Which part.
            parts: How many; each is a run of micro-batches, of which there may be fewer.

        Returns:
            Two sums over the part's samples in float64, of shapes () and (n,).
        """
        self._ready()
        samples = len(self.labels)
        if v is None:
            return self._sums(x, samples, (part, parts))
        return torch.zeros((), dtype=torch.float64), self._curvature_sums(x, v, samples, (part, parts))

    def _sums(self, x: Tensor, samples: int, part: tuple[int, int] = (0, 1)) -> tuple[Tensor, Tensor]:
        total = torch.zeros((), dtype=torch.float64, device=x.device)
        gradient = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
        leaves = self._leaves()

        def visit(outputs: Tensor, labels: Tensor) -> None:
            loss = self.loss.total(outputs, labels)
            gradient.add_(self._slope(loss, leaves))
            total.add_(loss.detach())

        self._visit(x, visit, samples, part=part)
        return total, gradient

    def visit(self, x: Tensor, see: Callable[[Tensor, Tensor], None]) -> None:
        """Calls `see` with each micro-batch's outputs at x, of which `slope` takes gradients, and labels."""
        self._ready()
        self._visit(x, see, len(self.labels))

    def slope(self, value: Tensor) -> Tensor:
        """The gradient of a value that `visit` computed, of shape ()."""
        return self._slope(value, self._leaves())

    def _slope(self, value: Tensor, leaves: list[nn.Parameter]) -> Tensor:
        return self._flat(torch.autograd.grad(value, leaves, materialize_grads=True))

    def curvature(self, x: Tensor, v: Tensor) -> Tensor:
        """The product of f's Hessian at x with v, both of shape (n,), by two backward passes.

        Raises:
            InputError: It is not the derivative of the gradient; not every operation has a right second one.
        """
        self._ready()
        if not self._twice_proven:
            with self._refusing():
                (self._twin() or self)._prove_curvature(min(len(self.labels), _CURVATURE_SAMPLES))
            self._twice_proven = True
        return self._curvature(x, v, len(self.labels))

    def _curvature(self, x: Tensor, v: Tensor, samples: int) -> Tensor:
        return (self._curvature_sums(x, v, samples) / samples).to(x.dtype)

    def _curvature_sums(self, x: Tensor, v: Tensor, samples: int, part: tuple[int, int] = (0, 1)) -> Tensor:
        total = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
        leaves = self._leaves()

        def visit(outputs: Tensor, labels: Tensor) -> None:
            loss = self.loss.total(outputs, labels)
            gradient = torch.autograd.grad(loss, leaves, create_graph=True, materialize_grads=True)
            slope = self._flat(gradient) @ v
            if slope.requires_grad:  # else the loss is linear in all that is trained
                total.add_(self._slope(slope, leaves))

        with sdpa_kernel(SDPBackend.MATH):  # the fast kernels have no second backward pass
            self._visit(x, visit, samples, twice=True, part=part)
        return total

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
        return self._measure(self.x if x is None else x, len(self.labels))

    @torch.no_grad()
    def _measure(self, x: Tensor, samples: int) -> tuple[float, float]:
        total = torch.zeros((), dtype=torch.float64, device=x.device)
        sums: list[Tensor] = []

        def visit(outputs: Tensor, labels: Tensor) -> None:
            total.add_(self.loss.total(outputs, labels))
            scored = self.loss.scored(outputs, labels)
            sums[:] = [sums[0] + scored if sums else scored]

        self._visit(x, visit, samples)
        return float(total / samples), self.loss.value(sums[0], samples)

    def _visit(
        self,
        x: Tensor,
        visit: Callable[[Tensor, Tensor], None],
        samples: int,
        twice: bool = False,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        """Calls `visit` with outputs and labels of each micro-batch, at x; the network is as it was after."""
        whole, (place, of) = bounds(0, samples, self.micro_batch_size), part
        chosen = whole[place * len(whole) // of : (place + 1) * len(whole) // of]
        parts = views(self.network, x.detach())
        if x.dtype != self.dtype:
            raise ValueError(f"x is {x.dtype}; f is computed in {self.dtype}, the network's precision")
        held = _Held(self.network, twice)

        def work() -> None:
            self._set_modes(self.network)
            _copy((parameter, parts[name]) for name, parameter in trainable(self.network))
            for start, stop in chosen:
                # batch statistics would otherwise leak into the running averages
                held.put_back_buffers(self._buffers)
                visit(self._outputs(start, stop), self._targets(start, stop))

        held.during(work)

    def _set_modes(self, network: nn.Module) -> None:
        network.eval()
        for module in network.modules():
            # the same without dropout, and cuDNN has a backward pass of it
            if isinstance(module, nn.RNNBase) and type(module) in _RECURRENT:
                module.training, module.dropout = True, 0.0
        if self.batch_norm == "batch":
            for norm in _norms(network):
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
        if not self._proven:
            with self._refusing():
                self._prove()

    def _prove(self) -> None:
        """Holds f, once and on a few samples, against the module itself and against difference quotients.

        Raises:
            InputError: f is not what it is said to be.
        """
        samples = min(len(self.labels), _PROOF_SAMPLES)
        x = self.x
        with torch.no_grad():
            self._visit(x, lambda outputs, _: self.loss.fits(outputs, self.labels), min(2, samples))
        first, second = self._measure(x, samples)[0], self._measure(x, samples)[0]
        # a GPU may add in another order every time
        rounding = 0.0 if x.device.type == "cpu" else _rounding(self.dtype, 1 + abs(first))
        if abs(first - second) > rounding:
            raise InputError(
                f"network: two evaluations of one x gave {first!r} and {second!r}; "
                "sharpness needs a deterministic network (is a dropout of its own left on?)"
            )
        if not math.isfinite(first):
            return  # a run that diverged has no function to speak of
        if self.batch_norm != "recalibrated":
            self._prove_value(first, samples)
        self._prove_gradient(x, samples)
        self._proven = True

    def _prove_value(self, found: float, samples: int) -> None:
        """The value at x is the module's own, in its own precision."""
        own, exact = 0.0, self.given is self.network
        dtype = next(p.dtype for _, p in trainable(self.given))

        @torch.no_grad()
        def work() -> None:
            nonlocal own
            self._set_modes(self.given)
            for start, stop in bounds(0, samples, self.micro_batch_size):
                outputs = self.given(self._given(start, stop, dtype)).to(self.dtype)
                own += float(self.loss.total(outputs, self._targets(start, stop)))

        _Held(self.given).during(work)
        value = own / samples
        if not math.isclose(found, value, rel_tol=1e-3 if exact else 0.1, abs_tol=1e-6 if exact else 0.1):
            raise InputError(f"network: f(x)={found:.6g}, but the network itself gives {value:.6g} there")

    def _prove_gradient(self, x: Tensor, samples: int) -> None:
        """The gradient, along random directions at a point away from x, is that of the value."""
        noise = _noise(x, seed=0)
        away = x + 0.02 * noise()
        value, gradient = self._gradient(away, samples)
        if not math.isfinite(value):
            return
        for _ in range(2):
            direction = noise()
            direction /= direction.norm()
            slope = float(gradient.double() @ direction.double())
            typical = float((gradient.double() * direction.double()).norm())
            found = self._quotients(away, direction, slope, typical, samples)
            if not found:
                continue
            if (twin := self._twin()) and not twin._quotients(away, direction, slope, typical, samples):
                continue  # float32 was too coarse to tell
            raise InputError(
                f"network: its gradient is not that of its loss: {slope:.4g} along a random direction, where "
                f"difference quotients give {', '.join(f'{q:.4g}' for q in found)}"
            )

    def _quotients(
        self, x: Tensor, direction: Tensor, slope: float, typical: float, samples: int
    ) -> list[float]:
        """Difference quotients at x that all contradict a slope; empty where one agrees.

        `typical` is the slope's size over random signs of the direction: what a part of the gradient that is
        missing, or wrong, would change it by.
        """
        x, direction = x.to(self.dtype), direction.to(self.dtype)
        size = 1 + abs(self._measure(x, samples)[0])
        widest = 0.05 * float(x.double().norm() + 1e-3 * len(x) ** 0.5)
        found = []
        # a network in float64 may compute a part in float32
        for dtype, part in itertools.product(dict.fromkeys((self.dtype, torch.float32)), (1, 0.2, 5, 0.04)):
            rounding = _rounding(dtype, size)
            step = part * min(widest, 3000 * rounding / max(typical, 1e-300))
            ahead, behind = (self._measure(x + s * direction, samples)[0] for s in (step, -step))
            found.append((ahead - behind) / (2 * step))
            if abs(found[-1] - slope) <= _PROOF_TOLERANCE * (abs(slope) + typical) + rounding / step:
                return []
        return found

    def _prove_curvature(self, samples: int) -> None:
        """The Hessian's product with a random direction is the gradient's difference quotient along it.

        Where no two quotients agree with each other, for rounding or for kinks (ReLU), the Hessian is held
        against its own symmetry.
        """
        noise = _noise(self.x, seed=1)
        direction, other, x = noise(), noise(), self.x + 0.02 * noise()
        found, quotients, off = self._curvature(x, direction, samples), [], []
        size = float(found.double().norm())
        for step in (1e-6, 1e-7, 1e-8, 1e-9) if self.dtype == torch.float64 else ():
            ahead, behind = (self._gradient(x + s * direction, samples)[1] for s in (step, -step))
            quotients.append((ahead - behind) / (2 * step))
            off.append(float((quotients[-1] - found).norm()))
            if not off[-1] > 1e-5 * size:
                return
        agree = (float((one - two).norm()) < 0.1 * min(off) for one, two in itertools.pairwise(quotients))
        if not any(agree):
            one = (other * found).double()
            two = (direction * self._curvature(x, other, samples)).double()
            size, off = float(one.norm() + two.norm()), [abs(float(one.sum() - two.sum()))]
            if not off[0] > _PROOF_TOLERANCE * size:
                return
        raise InputError(
            "network: its second derivatives are not those of its loss: the Hessian's product with a random "
            f"direction, of size {size:.4g}, is off by {min(off):.4g}; an operation in it has a wrong second "
            "backward pass"
        )

    def _twin(self) -> Objective | None:
        """f in float64, of a copy of the network, where there can be one."""
        if self.dtype == torch.float64:
            return None
        try:
            network = copy.deepcopy(self.network).double()
            options = {"batch_norm": "running", "micro_batch_size": self.micro_batch_size, "loss": self.loss}
            twin = Objective(network, (self.inputs, self.labels), **options)  # type: ignore[arg-type]
            twin.batch_norm, twin._proven = self.batch_norm, True
            floats = {k: b.double() if b.is_floating_point() else b for k, b in self._buffers.items()}
            twin._buffers = floats
            twin._measure(twin.x, 1 + (self.batch_norm == "batch"))
        except Exception:  # whatever keeps the network from running in float64
            return None
        return twin

    @torch.no_grad()
    def _recalibrate(self) -> None:
        """Sets the running averages to the pooled moments of each layer's inputs, layer after layer."""
        order: list[_BatchNorm] = []
        norms = [norm for norm in _norms(self.network) if norm.running_mean is not None]

        def work() -> None:
            self.network.eval()
            self._pass(norms, lambda norm, x: order.append(norm), 1)
            for norm in dict.fromkeys(order):
                moments = _Moments()
                self._pass([norm], functools.partial(_Moments.add, moments), len(self.labels))
                assert norm.running_mean is not None and norm.running_var is not None
                norm.running_mean.copy_(moments.mean)
                norm.running_var.copy_(moments.variance)
            self._buffers = self._all_buffers()

        _Held(self.network).during(work)

    def _pass(self, norms: list[_BatchNorm], see: Callable[[_BatchNorm, Tensor], None], samples: int) -> None:
        """Takes samples through the network and shows these layers' inputs."""
        hooks = [norm.register_forward_pre_hook(lambda norm, given: see(norm, given[0])) for norm in norms]
        try:
            for start, stop in bounds(0, samples, self.micro_batch_size):
                self._outputs(start, stop)
        finally:
            for hook in hooks:
                hook.remove()


class _Moments:
    """The pooled mean and variance of a layer's inputs, in float64 (Chan, Golub & LeVeque 1979)."""

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, torch.zeros(()), torch.zeros(())

    def add(self, norm: _BatchNorm, x: Tensor) -> None:
        """Takes inputs of a layer, of shape (N, C, ...)."""
        x = x.detach().double().transpose(0, 1).flatten(1)
        count, mean = x.shape[1], x.mean(1)
        squares = (x - mean[:, None]).square().sum(1)
        if self.count == 0:
            self.count, self.mean, self.squares = count, mean, squares
            return
        total, apart = self.count + count, mean - self.mean
        self.mean = self.mean + apart * (count / total)
        self.squares = self.squares + squares + apart.square() * (self.count * count / total)
        self.count = total

    @property
    def variance(self) -> Tensor:
        """The unbiased one, as PyTorch keeps it."""
        return self.squares / max(1, self.count - 1)


def _norms(network: nn.Module) -> list[_BatchNorm]:
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]


def _precision(network: nn.Module) -> torch.dtype:
    """float64 where the network has it, else float32."""
    dtype = torch.float32
    for parameter in network.parameters():
        if parameter.is_floating_point():
            dtype = torch.promote_types(dtype, parameter.dtype)
    return dtype
