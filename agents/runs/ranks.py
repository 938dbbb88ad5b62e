"""Data parallelism: the processes of ``torchrun`` train one agent, each with its environments.

The processes are numbered by their rank. A single process has rank 0 of 1, and each collective
returns its argument, so that the training loop needs no special case.

Torch's ``DistributedDataParallel`` is not used: it leaves gradients local, without an error, after
``torch.autograd.grad`` and after a second backward pass.
"""

import atexit
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from importlib import import_module
from typing import Any, Self

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from mirl.configs.errors import ConfigError, ReportedElsewhereError, RunError

TIMEOUT = timedelta(days=1)
"""Longest wait for the other ranks. They wait while the first one evaluates; torchrun itself ends
them if one dies."""
RESTARTS = "TORCHELASTIC_RESTART_COUNT"
"""Environment variable of torchrun with the number of times it has restarted the processes."""
ERROR_KEY = "mirl_error"
"""Key in torchrun's store of the number of ranks with an error."""


@dataclass(frozen=True)
class Ranks:
    """The number of this process among those that train one agent, and their collectives.

    Every rank must call the same collectives in the same order.
    """

    rank: int = 0
    """Number of this process, from 0."""
    size: int = 1
    """Number of processes."""
    store: Store | None = field(default=None, compare=False, repr=False)
    """Store that the processes share; None for a single one."""

    @classmethod
    def from_environment(cls, device: str) -> Self:
        """Join the other processes of ``torchrun``: with gloo on CPUs, with NCCL on GPUs.

        Args:
            device: "cpu", or "cuda" for the GPU of this process.

        Returns:
            The ranks; a single rank if this process was not started by torchrun.

        Raises:
            ConfigError: there are fewer GPUs than processes.
        """
        if not dist.is_torchelastic_launched() or os.environ["WORLD_SIZE"] == "1":
            return cls()
        if device == "cuda":
            n_processes = int(os.environ["LOCAL_WORLD_SIZE"])
            n_devices = torch.cuda.device_count()
            if n_processes > n_devices:
                raise ConfigError(
                    f"each process needs a GPU of its own: torchrun started {n_processes} here, "
                    f"and torch finds {n_devices}; use --nproc-per-node {n_devices} or device=cpu"
                )
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        store, rank, size = _join_group(device)
        return cls(rank, size, store)

    @property
    def is_first(self) -> bool:
        """True for the one process that writes and prints."""
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over the ranks, in place.

        Args:
            tensor: a contiguous tensor; gloo sums a strided one incorrectly without an error.

        Returns:
            The same tensor.
        """
        if self.size > 1:
            assert tensor.is_contiguous()
            with _explain_lost_rank():
                dist.all_reduce(tensor)
        return tensor

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Return the tensor of each rank.

        Args:
            tensor: a tensor of the same shape and type on each rank.

        Returns:
            The tensors in the order of the ranks.
        """
        if self.size == 1:
            return [tensor]
        tensor = tensor.contiguous()
        tensors = [torch.empty_like(tensor) for _ in range(self.size)]
        with _explain_lost_rank():
            dist.all_gather(tensors, tensor)
        return tensors

    def gather_objects(self, value: Any) -> list[Any]:
        """Return the value of each rank; slower than ``gather``.

        Args:
            value: any value that can be pickled.

        Returns:
            The values in the order of the ranks.
        """
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with _explain_lost_rank():
            dist.all_gather_object(values, value)
        return values

    def from_first(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return the array of the first rank.

        Args:
            array: an array of the same shape and type on each rank; it is overwritten.

        Returns:
            The array.
        """
        if self.size > 1:
            with _explain_lost_rank():
                dist.broadcast(torch.from_numpy(array), src=0)
        return array

    def any_of(self, *flags: bool) -> list[bool]:
        """Return, for each flag, True if it is set on any rank.

        Args:
            flags: the flags of this rank, the same number as on the others.
        """
        if self.size == 1:
            return list(flags)
        # On the CPU, whatever the training device is; gloo cannot sum booleans.
        counts: list[int] = self.sum_(torch.tensor(flags, dtype=torch.int32)).tolist()
        return [count > 0 for count in counts]

    def wait(self) -> None:
        """Wait for the other ranks."""
        self.any_of(False)

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sum the gradients over the ranks in one collective.

        A missing gradient counts as zeros.

        Args:
            parameters: the parameters, the same on each rank.
        """
        if self.size == 1:
            return
        gradients = []
        for parameter in parameters:
            gradient = parameter.grad
            if gradient is None:
                gradient = torch.zeros_like(parameter)
            gradients.append(gradient.flatten())
        total = self.sum_(torch.cat(gradients))
        sizes = [parameter.numel() for parameter in parameters]
        for parameter, part in zip(parameters, total.split(sizes), strict=True):
            parameter.grad = part.view_as(parameter)

    def check_equal(self, module: nn.Module) -> None:
        """Check that the weights and buffers are the same on each rank, bit for bit.

        Args:
            module: the policy.

        Raises:
            RunError: they differ.
        """
        if self.size == 1:
            return
        digest = hashlib.sha256()
        for tensor in (*module.parameters(), *module.buffers()):
            data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
            digest.update(data.numpy().tobytes())
        own = torch.from_numpy(np.frombuffer(digest.digest(), np.int64).copy())
        first, *others = self.gather(own)
        for rank, other in enumerate(others, start=1):
            if not torch.equal(first, other):
                raise RunError(
                    f"the weights of rank {rank} differ from those of rank 0; statistics that a "
                    "layer of your own updates in a forward pass, as batch normalization does, "
                    "cannot be trained by several processes. Checkpoints that were saved are kept"
                )

    @contextmanager
    def one_error(self) -> Iterator[None]:
        """Let only the first rank that fails print its error.

        The others run into the same error, or lose the connection to the rank that has ended.

        Raises:
            ReportedElsewhereError: this rank failed after another one.
        """
        try:
            yield
        except Exception as error:
            if self.store is None:
                raise
            if not _is_first_error(self.store) and isinstance(error, ConfigError | RunError):
                raise ReportedElsewhereError(str(error)) from error
            if isinstance(error, RunError):
                raise RunError(f"rank {self.rank} of {self.size}: {error}") from error
            raise


ONE_PROCESS = Ranks()
"""Ranks of a single process."""


@cache  # a second group in one process would hang
def _join_group(device: str) -> tuple[Store, int, int]:
    # Before the group exists. Otherwise an optimizer imports the module later, and its functions
    # keep the group as a default argument, so that gloo's threads outlive
    # ``destroy_process_group``.
    import_module("torch.distributed.nn.functional")
    shared_store, rank, size = next(rendezvous("env://"))
    # Keys from before a restart by torchrun would name processes that have ended.
    store = PrefixStore(f"start_{os.environ[RESTARTS]}", shared_store)
    # Set explicitly, because torch otherwise leaves it undefined. Flags and objects stay on the
    # CPU.
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    with _explain_lost_rank():
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    atexit.register(dist.destroy_process_group)
    return store, rank, size


def _is_first_error(store: Store) -> bool:
    try:
        return store.add(ERROR_KEY, 1) == 1
    except RuntimeError:  # torchrun has ended
        return True


@contextmanager
def _explain_lost_rank() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = str(error).partition("\n")[0].partition(". ")[0]  # gloo adds advice
        raise RunError(f"the connection to another rank is lost: {reason}") from error
