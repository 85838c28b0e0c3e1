"""What there is to run on: CPUs, GPUs, and how many processes they take at once."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Capacity:
    """What a cluster has, or will have once it has grown.

    Attributes:
        cpus: CPUs.
        gpus: GPUs.
        nodes: Nodes that are there now.
        growth: What it may grow by; empty where it does not.
        share: Training processes that one GPU takes.
    """

    cpus: int
    gpus: int
    nodes: int = 1
    growth: str = ""
    share: int = 1

    @property
    def slots(self) -> int:
        """Training processes that run at once: `share` on each GPU where there are GPUs, else a CPU each."""
        return self.gpus * self.share or self.cpus

    def width(self, workers: int) -> int:
        """The slots that a job of so many workers takes: a group's have a GPU each, if there are as many.

        Example:
            >>> here = Capacity(cpus=32, gpus=2, share=8)
            >>> here.slots, here.width(1), here.width(2), here.width(4)
            (16, 1, 16, 4)
        """
        whole = self.share if 1 < workers <= self.gpus else 1
        return min(workers * whole, max(workers, self.slots))

    def process(self, workers: int = 1) -> dict[str, float]:
        """What Ray is asked for, for each process of a job of so many workers."""
        if not self.gpus:
            return {"CPU": 1.0}
        share = 1 if 1 < workers <= self.gpus else self.share
        return {"GPU": 10_000 // share / 10_000}  # Ray counts in ten-thousandths

    def __str__(self) -> str:
        nodes = f"{self.nodes} nodes with " if self.nodes > 1 else ""
        return f"{nodes}{self.cpus} CPUs and {self.gpus} GPUs{self.growth}"


def sharing(need: float, memory: float, cpus_per_gpu: float) -> int:
    """How many training processes one GPU takes, each with a CPU of its own.

    Args:
        need: Bytes of GPU memory that the largest of them takes.
        memory: Bytes that the GPU has, of which a tenth is left free.
        cpus_per_gpu: CPUs that there are for each GPU.

    Example:
        >>> sharing(2e9, 80e9, 16), sharing(30e9, 80e9, 16), sharing(75e9, 80e9, 16), sharing(2e9, 80e9, 4)
        (16, 2, 1, 4)
    """
    return max(1, int(min(0.9 * memory / max(need, 1.0), cpus_per_gpu)))
