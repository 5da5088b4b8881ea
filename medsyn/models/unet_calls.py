"""A UNet that computes less than all of itself in some calls: deep features and attention to the text are kept.

Which calls those are is `medsyn.schedulers.Shortcuts`. What is kept belongs to one run and to each of its rows alone:
images stay functions of their seeds, whatever the others in the batch are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from medsyn.models.compiled import WholeUNet, plain
from medsyn.schedulers import Call


class UNetCalls:
    """The calls of one run, in order; each is given its rows, the unconditional half first where it is guided."""

    def __init__(self, unet: Any, calls: Sequence[Call], whole: WholeUNet | None = None) -> None:
        """Prepare a run.

        Args:
            unet: a `UNet2DConditionModel`.
            calls: what each call computes.
            whole: computes the UNet's predictions; by default it is called. Only for calls that leave nothing out.
        """
        self._unet, self._calls = unet, calls
        self._whole = whole or plain(unet)
        self._features: Tensor | None = None  # what the outermost layer of the way up is given from below
        self._text = _TextAttention(unet)
        frozen = next((index for index, call in enumerate(calls) if call.text_frozen), 0)
        # before it is frozen, deep layers attend for the last time in the last deep call, the outer ones maybe later
        self._watched = range(max((i for i in range(frozen) if calls[i].deep), default=frozen), frozen)

    def __call__(self, index: int, rows: Tensor, timestep: Tensor, hidden: Tensor) -> Tensor:
        """The prediction [N, c, h, w].

        Args:
            index: number of the call.
            rows: latents [N, c, h, w].
            timestep: of all of them.
            hidden: text features [N, 77 k, D].
        """
        call = self._calls[index]
        attention: AbstractContextManager[None] = nullcontext()
        if call.text_frozen:
            attention = self._text.frozen()
        elif index in self._watched:
            attention = self._text.watched(call.guided)
        with attention, _one_time(self._unet):
            return self._compute(index, rows, timestep, hidden)

    def _compute(self, index: int, rows: Tensor, timestep: Tensor, hidden: Tensor) -> Tensor:
        if not self._calls[index].deep:
            assert self._features is not None, "the first call is deep"
            return outermost(self._unet, rows, timestep, hidden, self._features[-len(rows) :])
        if all(call.deep for call in self._calls[index + 1 :]):  # nothing is going to use them
            self._features = None
            return self._whole(rows, timestep, hidden)
        with _seen(self._unet.up_blocks[-1].resnets[-1]) as given:
            prediction = self._whole(rows, timestep, hidden)
        self._features = given[0][:, : -self._unet.conv_in.out_channels]
        return prediction


def outermost(unet: Any, rows: Tensor, timestep: Tensor, hidden: Tensor, features: Tensor) -> Tensor:
    """The prediction by the UNet's first convolution and its last layer, given everything between from another call.

    This is the smallest branch of DeepCache (Ma et al. 2023, https://arxiv.org/abs/2312.00858): of SD v1.5 about a
    tenth of the work. With the features of the same call it is what the whole UNet predicts, bit for bit.

    Args:
        unet: a `UNet2DConditionModel`.
        rows: latents [N, c, h, w].
        timestep: of all of them.
        hidden: text features [N, 77 k, D].
        features: [N, C, h, w] for the last layer of the last block.
    """
    time = unet.time_embedding(unet.get_time_embed(sample=rows, timestep=timestep), None)
    last = unet.up_blocks[-1]
    sample = last.resnets[-1](torch.cat([features, unet.conv_in(rows)], dim=1), time)
    if getattr(last, "has_cross_attention", False):
        sample = last.attentions[-1](sample, encoder_hidden_states=hidden, return_dict=False)[0]
    if unet.conv_norm_out:
        sample = unet.conv_act(unet.conv_norm_out(sample))
    return unet.conv_out(sample)


@contextmanager
def _one_time(unet: Any) -> Iterator[None]:
    """Embed the time once, for all rows: with some CPUs' matrix libraries equal rows do not come out equal.

    An image's bits would depend on its place in the batch. The blocks add one row to all.
    """
    embedding = getattr(unet, "time_embedding", None)
    if embedding is None:  # not diffusers' own
        yield
        return
    hook = embedding.register_forward_pre_hook(lambda _, arguments: (arguments[0][:1], *arguments[1:]))
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _seen(module: nn.Module) -> Iterator[list[Tensor]]:
    """What a module is given, in a list that is filled when it runs."""
    given: list[Tensor] = []
    hook = module.register_forward_pre_hook(lambda _, arguments: given.append(arguments[0]))
    try:
        yield given
    finally:
        hook.remove()


class _TextAttention:
    """Attention to the text: what every layer's came to, to be given again (T-GATE, Zhang et al. 2024).

    As there, what is given again is the mean of both halves of a guided call.
    """

    def __init__(self, unet: nn.Module) -> None:
        self._layers = [module for name, module in unet.named_modules() if name.endswith(".attn2")]
        self._last: dict[nn.Module, Tensor] = {}

    @contextmanager
    def watched(self, guided: bool) -> Iterator[None]:
        """Keep what every layer computes, in the place of what it computed before."""

        def keep(layer: nn.Module, _: Any, made: Tensor) -> None:
            self._last[layer] = made.unflatten(0, (2, -1)).mean(0) if guided else made

        hooks = [layer.register_forward_hook(keep) for layer in self._layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Every layer gives what was kept of it and computes nothing."""

        def answer(layer: nn.Module) -> Callable[..., Tensor]:
            return lambda *_, **__: self._last[layer]

        for layer in self._layers:
            layer.forward = answer(layer)  # hides the class's method
        try:
            yield
        finally:
            for layer in self._layers:
                del layer.forward
