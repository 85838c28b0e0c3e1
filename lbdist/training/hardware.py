"""The processor or GPU that a process is on: its name, memory, rates and load, and the end of its work."""

from __future__ import annotations

import contextlib
import functools
import math
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.nn.functional import conv2d


def device_name(device: torch.device) -> str:
    """What the maker calls a GPU, or the CPU; the kind of processor where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def wait(device: torch.device) -> None:
    """Returns once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def memory_of(device: torch.device) -> float:
    """Bytes that the device has."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    return float(psutil.virtual_memory().total)


@contextlib.contextmanager
def using(threads: int) -> Iterator[None]:
    """So many threads of the CPU, for as long as the context lasts."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def peak_memory(device: torch.device) -> Iterator[Callable[[], float]]:
    """The most bytes that are taken in the context; NaN where the system does not tell."""
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def resident() -> float:
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024.0 * int(line.split()[1])

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        yield lambda: float(torch.cuda.max_memory_allocated())
    elif clear.exists():
        clear.write_text("5")  # proc(5): resets the peak
        yield resident
    else:
        yield lambda: math.nan


RATE_SECONDS = 1.0
"""What the measure of a rate may take, but for the first of its products."""


@functools.cache
def _rates(device: str, reduced: bool, threads: int, tf32: bool) -> tuple[float, float]:
    """See `rates`, which these four decide."""
    dtype = torch.bfloat16 if reduced else torch.float32
    source = torch.empty((2**26 if device == "cpu" else 2**30) // 4, device=device)
    target = torch.empty_like(source)

    def fastest(work: Callable[[], object]) -> float:
        times = []
        for _ in range(6):
            if device != "cpu":
                torch.cuda.synchronize()
            began = time.perf_counter()
            work()
            if device != "cpu":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
            if sum(times) > RATE_SECONDS:  # bfloat16 on a CPU that has none takes long
                break
        return min(times)

    for size in (256, 512, 1024, 2048) if device == "cpu" else (8192,):
        a, b = torch.randn(2, size, size, device=device).to(dtype)
        if fastest(functools.partial(torch.matmul, a, b)) > RATE_SECONDS / 50:  # large enough
            break
    images = torch.randn(64, 64, 32, 32, device=device).to(dtype, memory_format=torch.channels_last)
    kernel = torch.randn(64, 64, 3, 3, device=device).to(dtype)
    products: dict[int, Callable[[], object]] = {
        2 * size**3: functools.partial(torch.matmul, a, b),
        2 * images.numel() * 64 * 9: lambda: conv2d(images, kernel, padding=1),
    }
    flops = max(count / fastest(work) for count, work in products.items())
    moved = 2 * source.numel() * source.element_size() / fastest(lambda: target.copy_(source))
    return flops, moved


def rates(device: torch.device, reduced: bool) -> tuple[float, float]:
    """FLOPs a second of a large product, and bytes a second of a large copy, measured once a process.

    The product is of matrices or a convolution, whichever is faster: they need not share a library.

    Args:
        device: Where.
        reduced: Whether the product is in bfloat16.
    """
    tf32 = torch.backends.cuda.matmul.allow_tf32
    return _rates(device.type, reduced, torch.get_num_threads(), tf32)


class Meter:
    """What NVML tells of a GPU; NaN where it is not there or does not tell.

    Args:
        device: The GPU, or a CPU.

    Attributes:
        gpu: Whether it is a GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.gpu = device.type == "cuda"
        self._nvml: Any = None
        self._handle: Any = None
        if self.gpu:
            with contextlib.suppress(Exception):  # no library, no driver, a GPU that it may not see
                import pynvml

                pynvml.nvmlInit()
                identity = torch.cuda.get_device_properties(device).uuid
                self._handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{identity}")
                self._nvml = pynvml

    def joules(self) -> float:
        """What the GPU has taken since its driver was loaded."""
        with contextlib.suppress(Exception):
            return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1000
        return math.nan

    def utilisation(self) -> float:
        """The share of the last moments in which a kernel ran."""
        with contextlib.suppress(Exception):
            return float(self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu) / 100
        return math.nan
