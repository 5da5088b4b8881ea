"""Several processes that train one model: which part of a batch is whose, and what they tell one another.

The *global* batch is what a step is: every rank draws all of it and computes a contiguous part, and the parts'
gradients are added up before they are clipped. No rank enters a seed, so one, two or three ranks see the same samples,
noise, timesteps and dropped captions, whatever the micro-batch.

Accelerate places the ranks and gathers what they found. Its DistributedDataParallel does not add up the gradients: it
lays out its buckets anew after a process's first step, so that three ranks would add in another order after a resume,
with other bits; it takes the mean where the sum is meant; and it begins before the ranks could agree that none has run
out of memory.
"""

from __future__ import annotations

import datetime
import json
import os
import time
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import check_cuda_p2p_ib_support, gather
from torch import Tensor

from medsyn.config import DeviceSection
from medsyn.launcher import Launched
from medsyn.models.device import choose_device
from medsyn.stage import Control, NoProgress

DEAD_SECONDS = 120  # a rank that is not in the sum of the gradients by then never will be: all enter it together
PATIENCE_SECONDS = 3600  # what one may do meanwhile: the first writes checkpoints, to a slow disk
PREPARING_DAYS = 30  # the first encodes the images; if it dies, whoever started the ranks ends the others
_ALIGNED = 64  # numbers: where a gradient begins in the buffer, so that vector instructions can read it
HEARING_SECONDS = 10  # that another rank may need to hear that there is nothing to train
_TOLD, _HEARD = "told", "heard"


class Team:
    """The processes that train one model together; this one is of a single process, which has nobody to tell."""

    rank, size = 0, 1

    def device(self, section: DeviceSection) -> torch.device:
        """The device that this rank computes on."""
        return choose_device(section).device

    def part(self, batch: int) -> slice:
        """This rank's samples of a batch: contiguous, the first ranks' parts are the longer ones."""
        whole, rest = divmod(batch, self.size)
        start = self.rank * whole + min(self.rank, rest)
        return slice(start, start + whole + (self.rank < rest))

    def join(self, told: Mapping[str, Any], parameters: Mapping[str, Tensor], control: Control) -> None:
        """Begin to train together; the first rank is ready, and tells the others what they need to be."""

    def dismiss(self) -> None:
        """The first rank has nothing to train, or cannot: tell those that still wait for it."""

    def agree(self, control: Control, out_of_memory: bool = False) -> bool:
        """Whether any rank is out of memory; and if any was asked to stop, so is this one, after the same step."""
        return out_of_memory

    def sum_gradients(self, loss: Tensor) -> Tensor:
        """Add up the gradients of all ranks, and return the sum of their losses."""
        return loss

    def zero_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Forget the gradients of the step."""
        optimizer.zero_grad(set_to_none=True)

    def require_equal(self, step: int) -> None:
        """Raise NoProgress if the ranks no longer have the same weights, bit for bit."""


class Ranks(Team):
    """One of several processes, each with a device of its own and the whole model."""

    def __init__(self, rank: int, size: int, store: dist.Store, local: int | None = None) -> None:
        """The others are met in `store`; `local` is the number of this machine's GPU, the rank by default."""
        self.rank, self.size, self.local = rank, size, rank if local is None else local
        self._store = store
        self._parameters: list[Tensor] = []
        self._sums = torch.empty(0)
        self._is_joined = False

    def device(self, section: DeviceSection) -> torch.device:
        """This machine's GPU of this rank's number, or the CPU."""
        return choose_device(section, self.local if section.use_cuda else None).device

    def hear(self) -> dict[str, Any] | None:
        """What the first rank tells the others when it is ready to train, which may take hours; None if it is not."""
        self._store.set_timeout(datetime.timedelta(days=PREPARING_DAYS))
        told: dict[str, Any] | None = json.loads(self._store.get(_TOLD))
        self._store.add(_HEARD, 1)
        return told

    def join(self, told: Mapping[str, Any], parameters: Mapping[str, Tensor], control: Control) -> None:
        """Meet the others; from now on this rank stops when all do."""
        control.together = True
        if self.rank == 0:
            self._store.set(_TOLD, json.dumps(told))
        self._parameters = [value for value in parameters.values() if value.requires_grad]
        device = self._parameters[0].device
        self._connect(device)
        self._is_joined = True
        self._sums = _gradients_in_one(self._parameters)

    def _connect(self, device: torch.device) -> None:
        place = {"RANK": self.rank, "LOCAL_RANK": self.local, "WORLD_SIZE": self.size}
        os.environ |= {name: str(number) for name, number in place.items()}
        os.environ.setdefault("LOCAL_WORLD_SIZE", str(self.size))
        os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))  # else accelerate chooses: other bits
        on_gpu = device.type == "cuda"
        if on_gpu and not check_cuda_p2p_ib_support():  # cards that claim to reach each other, and hang
            os.environ |= {"NCCL_P2P_DISABLE": "1", "NCCL_IB_DISABLE": "1"}
        timeout = datetime.timedelta(seconds=DEAD_SECONDS)
        if on_gpu:
            torch.cuda.set_device(device)
        dist.init_process_group(
            "nccl" if on_gpu else "gloo", store=self._store, rank=self.rank, world_size=self.size, timeout=timeout
        )
        PartialState(cpu=not on_gpu)  # adopts the group; accelerate's `gather` asks it
        # on the CPU in any case: to ask the GPU would be to wait for it, and a dead peer is known at once
        patience = datetime.timedelta(seconds=PATIENCE_SECONDS)
        self._talk = dist.new_group(backend="gloo", timeout=patience)

    def dismiss(self) -> None:
        """Tell the others that there is nothing to train, unless they are at it.

        The store may end with this process, so it stays until they have heard.
        """
        if self._is_joined:
            return
        self._store.set(_TOLD, json.dumps(None))
        patience = time.monotonic() + HEARING_SECONDS
        while self._store.add(_HEARD, 0) < self.size - 1 and time.monotonic() < patience:
            time.sleep(0.02)

    def agree(self, control: Control, out_of_memory: bool = False) -> bool:
        """What holds for any rank holds for all; the order of the calls is the same on all."""
        flags = torch.tensor([control.asked_here(), out_of_memory], dtype=torch.int32)
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=self._talk)
        control.stop_requested = bool(flags[0])
        return bool(flags[1])

    def sum_gradients(self, loss: Tensor) -> Tensor:
        """Add up all ranks' gradients, in place, and their losses."""
        total = loss.detach().clone()
        works = [dist.all_reduce(one, async_op=True) for one in (self._sums, total)]
        for work in works:
            work.wait()
        return total

    def zero_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Set the buffer of all gradients to zero."""
        self._sums.zero_()

    def require_equal(self, step: int) -> None:
        """Compare a digest of the weights of all ranks; reads them once."""
        with torch.no_grad():  # a sum of integers is the same in any order
            digest = torch.stack([value.view(torch.int32).sum(dtype=torch.int64) for value in self._parameters]).sum()
        found = gather(digest.reshape(1)).tolist()
        others = [rank for rank, one in enumerate(found) if one != found[0]]
        if others:
            named = ", ".join(map(str, others))
            reason = f"rank {named} of {self.size} no longer has the weights of rank 0 after step {step}"
            raise NoProgress(f"{reason}: use cards of one model, or finetune.gpus=1; run the task again to go on")


def _gradients_in_one(parameters: list[Tensor]) -> Tensor:
    """Let the gradients be views into one buffer, so that they are added up in one call, without a copy.

    A gradient that is not contiguous in memory would be copied at every step; diffusers' are.
    """
    lengths = [-(-value.numel() // _ALIGNED) * _ALIGNED for value in parameters]
    sums = torch.zeros(sum(lengths), device=parameters[0].device)
    for value, its in zip(parameters, sums.split(lengths), strict=True):
        value.grad = its[: value.numel()].view_as(value)
    return sums


def meet(place: Launched) -> Ranks:
    """The team of a process that a launcher has started; the launcher's store is joined."""
    store, rank, size = next(iter(dist.rendezvous("env://", place.rank, place.size)))
    return Ranks(rank, size, store, place.local)
