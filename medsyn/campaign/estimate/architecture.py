"""Sizes and operation counts of the networks, from their configuration files alone; without importing torch.

Login nodes plan with these numbers. One `Count` is one network, or a part of one, on one sample; parts add up.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from medsyn import disk
from medsyn.config import PolicySection, ScorerSection
from medsyn.models import tensors, weights
from medsyn.models.tensors import Shapes

Settings = Mapping[str, Any]  # a diffusers or transformers config.json

TOKENS = 77  # of a chunk of a prompt, whatever its length
# Stable Diffusion v1.5, assumed where the weights are not on this machine; what is not here has diffusers' default
SD15_UNET: Settings = {"cross_attention_dim": 768}
SD15_VAE: Settings = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}
SD15_TEXT: Settings = {"hidden_size": 768, "intermediate_size": 3072}


@dataclass(frozen=True)
class Count:
    """Size and work of a network for one sample; `+` is one part after the other."""

    parameters: int = 0
    flops: int = 0  # of a forward pass: convolutions and matrix products, a multiply-add is two
    layers: int = 0  # with weights
    widest: int = 0  # numbers in the largest tensor between two layers
    saved: int = 0  # numbers kept for the backward pass, with attention that does not keep its matrix
    inputs: int = 0  # numbers that enter a block: what gradient checkpointing keeps of it
    block: int = 0  # numbers that the largest block saves: what gradient checkpointing computes again at once

    def __add__(self, other: Count) -> Count:
        return Count(
            self.parameters + other.parameters,
            self.flops + other.flops,
            self.layers + other.layers,
            max(self.widest, other.widest),
            self.saved + other.saved,
            self.inputs + other.inputs,
            max(self.block, other.block),
        )


def _conv(inputs: int, outputs: int, side: int, kernel: int = 3) -> Count:
    """A convolution with `outputs` channels of side x side."""
    multiplied = inputs * outputs * kernel**2
    return Count(multiplied + outputs, 2 * multiplied * side**2, 1, max(inputs, outputs) * side**2)


def _linear(inputs: int, outputs: int, tokens: int = 1, bias: bool = True) -> Count:
    return Count(inputs * outputs + bias * outputs, 2 * inputs * outputs * tokens, 1, max(inputs, outputs) * tokens)


def _norm(channels: int) -> Count:
    return Count(parameters=2 * channels, layers=1)


def _block(parts: Count, saved: int, inputs: int) -> Count:
    return replace(parts, saved=saved, inputs=inputs, block=saved)


def _attention(width: int, tokens: int, context: int, context_tokens: int, bias: bool = False) -> Count:
    """Queries of `tokens` x `width` on keys and values of `context_tokens` x `context`."""
    projections = _linear(width, width, tokens, bias) + _linear(width, width, tokens)
    keys_values = _linear(context, width, context_tokens, bias) + _linear(context, width, context_tokens, bias)
    return projections + keys_values + Count(flops=4 * width * tokens * context_tokens)


def _resnet(inputs: int, outputs: int, side: int, time: int = 0) -> Count:
    parts = _norm(inputs) + _conv(inputs, outputs, side) + _norm(outputs) + _conv(outputs, outputs, side)
    if time:
        parts += _linear(time, outputs)
    if inputs != outputs:
        parts += _conv(inputs, outputs, side, 1)
    # twice: a norm, its activation and a convolution, each of which keeps what it is given
    return _block(parts, 3 * (inputs + outputs) * side**2, inputs * side**2)


def _transformer(width: int, side: int, context: int, depth: int, read: int) -> Count:
    """Self-attention, attention to the prompt's `read` tokens and a gated feed-forward layer, `depth` times."""
    tokens = side**2
    one = _norm(width) + _attention(width, tokens, width, tokens)
    one += _norm(width) + _attention(width, tokens, context, read)
    one += _norm(width) + _linear(width, 8 * width, tokens) + _linear(4 * width, width, tokens)
    # norms and their outputs 6, self-attention 4, attention to the prompt 2, gated layer 16; keys and values 2
    one = _block(one, width * (28 * tokens + 2 * read), width * tokens)
    ends = _norm(width) + _conv(width, width, side, 1) + _conv(width, width, side, 1)
    return sum([one] * depth, replace(ends, saved=3 * width * tokens, inputs=3 * width * tokens))


def _resample(channels: int, side: int, given: int) -> Count:
    """The convolution that changes the side to `side`; `given` is the side of its input."""
    return replace(_conv(channels, channels, side), saved=channels * given**2, inputs=channels * given**2)


def _sides(side: int, levels: int) -> list[int]:
    """The side on every level, halved from one to the next."""
    sides = [side]
    for _ in range(levels - 1):
        sides.append(-(-sides[-1] // 2))
    return sides


def unet(settings: Settings, side: int, chunks: int = 1) -> Count:
    """A `UNet2DConditionModel` on latents of side x side, with so many chunks of a prompt."""
    channels: Sequence[int] = settings.get("block_out_channels") or (320, 640, 1280, 1280)
    levels = len(channels)
    down = settings.get("down_block_types") or (*["CrossAttnDownBlock2D"] * (levels - 1), "DownBlock2D")
    up = settings.get("up_block_types") or ("UpBlock2D", *["CrossAttnUpBlock2D"] * (levels - 1))
    layers, context = settings.get("layers_per_block", 2), settings.get("cross_attention_dim", 1280)
    depth, time = settings.get("transformer_layers_per_block", 1), 4 * channels[0]
    sides = _sides(side, levels)

    def stage(inputs: int, outputs: int, side: int, kind: str) -> Count:
        attends = "CrossAttn" in kind
        made = _resnet(inputs, outputs, side, time)
        return made + _transformer(outputs, side, context, depth, chunks * TOKENS) if attends else made

    total = _linear(channels[0], time) + _linear(time, time) + _conv(settings.get("in_channels", 4), channels[0], side)
    width, skips = channels[0], [channels[0]]
    for level, outputs in enumerate(channels):
        for _ in range(layers):
            total += stage(width, outputs, sides[level], down[level])
            width = outputs
            skips.append(width)
        if level + 1 < levels:
            total += _resample(width, sides[level + 1], sides[level])
            skips.append(width)
    total += stage(width, width, sides[-1], "CrossAttn") + _resnet(width, width, sides[-1], time)
    for level in reversed(range(levels)):
        for _ in range(layers + 1):
            total += stage(width + skips.pop(), channels[level], sides[level], up[levels - 1 - level])
            width = channels[level]
        if level:
            total += _resample(width, sides[level - 1], sides[level - 1])
    return total + _norm(width) + _conv(width, settings.get("out_channels", 4), side)


def _vae_middle(width: int, side: int) -> Count:
    attention = _norm(width) + _attention(width, side**2, width, side**2, bias=True)
    return _resnet(width, width, side) + attention + _resnet(width, width, side)


def vae_encoder(settings: Settings, resolution: int) -> Count:
    """The half of an `AutoencoderKL` that turns an image of resolution x resolution into latents."""
    channels: Sequence[int] = settings.get("block_out_channels") or (64,)
    latents = 2 * settings.get("latent_channels", 4)  # mean and deviation
    sides, width = _sides(resolution, len(channels)), channels[0]
    total = _conv(settings.get("in_channels", 3), width, resolution)
    for level, outputs in enumerate(channels):
        for _ in range(settings.get("layers_per_block", 1)):
            total += _resnet(width, outputs, sides[level])
            width = outputs
        if level + 1 < len(channels):
            total += _resample(width, sides[level + 1], sides[level])
    total += _vae_middle(width, sides[-1]) + _norm(width) + _conv(width, latents, sides[-1])
    return total + _conv(latents, latents, sides[-1], 1)


def vae_decoder(settings: Settings, resolution: int) -> Count:
    """The half of an `AutoencoderKL` that turns latents into an image of resolution x resolution."""
    channels: Sequence[int] = settings.get("block_out_channels") or (64,)
    latents = settings.get("latent_channels", 4)
    sides, width = _sides(resolution, len(channels)), channels[-1]
    total = _conv(latents, latents, sides[-1], 1) + _conv(latents, width, sides[-1]) + _vae_middle(width, sides[-1])
    for level in reversed(range(len(channels))):
        for _ in range(settings.get("layers_per_block", 1) + 1):
            total += _resnet(width, channels[level], sides[level])
            width = channels[level]
        if level:
            total += _resample(width, sides[level - 1], sides[level - 1])
    return total + _norm(width) + _conv(width, settings.get("out_channels", 3), resolution)


def _encoder_layers(width: int, inner: int, tokens: int, depth: int) -> Count:
    """`depth` pre-norm transformer layers on `tokens` of `width`."""
    one = _norm(width) + _attention(width, tokens, width, tokens, bias=True)
    one += _norm(width) + _linear(width, inner, tokens) + _linear(inner, width, tokens)
    return sum([_block(one, tokens * (8 * width + 2 * inner), tokens * width)] * depth, Count())


def text_encoder(settings: Settings) -> Count:
    """A `CLIPTextModel` on one prompt."""
    width = settings.get("hidden_size", 512)
    tables = width * (settings.get("vocab_size", 49408) + settings.get("max_position_embeddings", TOKENS))
    depth = settings.get("num_hidden_layers", 12)
    layers = _encoder_layers(width, settings.get("intermediate_size", 2048), TOKENS, depth)
    return Count(parameters=tables, layers=2) + layers + _norm(width)


@functools.lru_cache(maxsize=32)
def scorer(section: ScorerSection) -> Count:
    """What looks at one image in a member of a Selector or a Policy; the rest of a member is small beside it."""
    if section.encoder == "none":
        return Count()
    if isinstance(section, PolicySection) and section.encoder == "conv":
        return _conv_grid(section)
    if section.encoder == "conv":
        return _convolutions(section)
    side = section.image_size // section.patch_size
    patches = _conv(1, section.hidden_dim, side, section.patch_size)
    positions = Count(parameters=side**2 * section.hidden_dim)
    layers = _encoder_layers(section.hidden_dim, section.mlp_dim, side**2, section.num_layers)
    return patches + positions + layers + _norm(section.hidden_dim)


def _convolutions(section: ScorerSection) -> Count:
    """Halves the picture until 8 pixels per side are left (`medsyn.models.image_encoder.Convolutions`)."""
    stages = max(2, round(math.log2(section.image_size / 8)))
    widths = [1, *(max(8, section.hidden_dim >> (stages - 1 - stage)) for stage in range(stages))]
    count, side = _linear(3 * widths[-1], section.hidden_dim) + _norm(section.hidden_dim), section.image_size
    return count + _halving(widths, side)


def _conv_grid(section: PolicySection) -> Count:
    """The Policy's convolutional network: a quarter of the side, then halves, until four places per side are left."""
    halvings = max(1, round(math.log2(section.image_size / 4)) - 2)
    widths = [max(4, section.hidden_dim >> max(0, 2 - stage)) for stage in range(1 + halvings)]
    side = section.image_size // 4
    first = _conv(3, widths[0], side, kernel=4) + _norm(widths[0])
    return _block(first, 3 * widths[0] * side**2, 3 * section.image_size**2) + _halving(widths, side)


def _halving(widths: Sequence[int], side: int) -> Count:
    """Convolutions of stride 2, one after another."""
    count = Count()
    for inputs, outputs in pairwise(widths):
        side = (side + 1) // 2
        count += _block(_conv(inputs, outputs, side) + _norm(outputs), 3 * outputs * side**2, inputs * 4 * side**2)
    return count


@dataclass(frozen=True)
class Architecture:
    """The three networks of a Stable Diffusion model at one resolution."""

    unet: Count  # on one latent
    encoder: Count  # of the VAE, on one image
    decoder: Count
    text: Count  # on one prompt
    latent: int  # numbers in one latent
    text_width: int
    prompt: int  # numbers in the text features of one prompt
    unet_shapes: Shapes  # of the UNet's tensors
    assumed: bool  # the weights are not here, or their configuration is not understood: SD v1.5's numbers

    @property
    def vae_parameters(self) -> int:
        """Of both halves."""
        return self.encoder.parameters + self.decoder.parameters


def describe(
    unet_settings: Settings, vae_settings: Settings, text_settings: Settings, resolution: int, chunks: int = 1
) -> Architecture:
    """The architecture that three configurations describe, on square images of `resolution` pixels."""
    channels = vae_settings.get("block_out_channels") or (64,)
    side, text = _sides(resolution, len(channels))[-1], text_encoder(text_settings)
    return Architecture(
        unet=unet(unet_settings, side, chunks),
        encoder=vae_encoder(vae_settings, resolution),
        decoder=vae_decoder(vae_settings, resolution),
        text=replace(text, flops=chunks * text.flops),
        latent=vae_settings.get("latent_channels", 4) * side**2,
        text_width=text_settings.get("hidden_size", 512),
        prompt=chunks * TOKENS * text_settings.get("hidden_size", 512),
        unet_shapes=tensors.unet(unet_settings) or tensors.unet(SD15_UNET) or {},
        assumed=False,
    )


@functools.lru_cache(maxsize=32)
def read(source: str, resolution: int, chunks: int = 1) -> Architecture:
    """The architecture of `source` (`embedded`, a diffusers directory or a hub id) at `resolution` pixels.

    The text encoder reads so many `chunks` of each prompt.

    SD v1.5, marked as assumed, where the configuration files are not on this machine or describe something else.
    """
    directory = weights.locate(source)
    try:
        if directory is None:
            raise FileNotFoundError(source)
        parts = [disk.read_json(directory / part / "config.json") for part in ("unet", "vae", "text_encoder")]
        return describe(parts[0], parts[1], parts[2], resolution, chunks)
    except (OSError, ValueError, TypeError, AttributeError, IndexError):  # no such files, or lists for numbers
        return replace(describe(SD15_UNET, SD15_VAE, SD15_TEXT, resolution, chunks), assumed=True)
