"""Names and shapes of the tensors that a configuration file asks for, without importing torch.

`plan` compares them with the header of the weights, so that weights that cannot load are refused before anything is
queued. Configurations of another kind than Stable Diffusion's give None: then the task, which builds the networks, is
the first to know.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from medsyn.errors import InputError

Settings = Mapping[str, Any]  # a diffusers or transformers config.json
Shapes = dict[str, tuple[int, ...]]  # of tensors, by name


def _affine(name: str, *weight: int, bias: bool = True) -> Shapes:
    """A layer with a weight, and a bias as long as its outputs."""
    return {f"{name}.weight": weight} | ({f"{name}.bias": weight[:1]} if bias else {})


def _conv(name: str, inputs: int, outputs: int, kernel: int = 3) -> Shapes:
    return _affine(name, outputs, inputs, kernel, kernel)


def _inside(name: str, *parts: Shapes) -> Shapes:
    return {f"{name}.{tensor}": shape for part in parts for tensor, shape in part.items()}


def _resnet(name: str, inputs: int, outputs: int, time: int | None = None) -> Shapes:
    parts = [_affine("norm1", inputs), _conv("conv1", inputs, outputs)]
    parts += [_affine("norm2", outputs), _conv("conv2", outputs, outputs)]
    if time is not None:
        parts.append(_affine("time_emb_proj", outputs, time))
    if inputs != outputs:
        parts.append(_conv("conv_shortcut", inputs, outputs, 1))
    return _inside(name, *parts)


def _attention(name: str, width: int, context: int, bias: bool = False) -> Shapes:
    inputs = {"to_q": width, "to_k": context, "to_v": context}
    made = [_affine(layer, width, its, bias=bias) for layer, its in inputs.items()]
    return _inside(name, *made, _affine("to_out.0", width, width))


def _transformer(name: str, width: int, context: int, depth: int, linear: bool) -> Shapes:
    ends = (_affine(end, width, width) if linear else _conv(end, width, width, 1) for end in ("proj_in", "proj_out"))
    blocks = (
        _inside(
            f"transformer_blocks.{number}",
            *(_affine(f"norm{which}", width) for which in (1, 2, 3)),
            _attention("attn1", width, width),
            _attention("attn2", width, context),
            _affine("ff.net.0.proj", 8 * width, width),
            _affine("ff.net.2", width, 4 * width),
        )
        for number in range(depth)
    )
    return _inside(name, _affine("norm", width), *ends, *blocks)


# What makes a UNet another one than Stable Diffusion's: keys of its configuration that add, drop or reshape layers.
_PLAIN_UNET: Settings = {
    "addition_embed_type": None,
    "attention_type": "default",
    "class_embed_type": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "num_class_embeds": None,
    "only_cross_attention": False,
    "resnet_time_scale_shift": "default",
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
}


def unet(settings: Settings) -> Shapes | None:
    """The tensors of a `UNet2DConditionModel` as Stable Diffusion has it; None for others."""
    channels: Sequence[int] = settings.get("block_out_channels", (320, 640, 1280, 1280))
    levels = len(channels)
    down = settings.get("down_block_types", (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"))
    up = settings.get("up_block_types", ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3))
    layers, context = settings.get("layers_per_block", 2), settings.get("cross_attention_dim", 1280)
    depth, linear = settings.get("transformer_layers_per_block", 1), settings.get("use_linear_projection", False)
    plain = all(settings.get(key, value) == value for key, value in _PLAIN_UNET.items())
    known = {*down} <= {"CrossAttnDownBlock2D", "DownBlock2D"} and {*up} <= {"CrossAttnUpBlock2D", "UpBlock2D"}
    by_level = any(isinstance(number, (list, tuple)) for number in (layers, context, depth))
    if by_level or not (plain and known):
        return None
    time = 4 * channels[0]

    def level_of(prefix: str, kind: str, inputs: Sequence[int], outputs: int) -> Iterator[Shapes]:
        for number, width in enumerate(inputs):
            yield _resnet(f"{prefix}.resnets.{number}", width, outputs, time)
            if kind.startswith("CrossAttn"):
                yield _transformer(f"{prefix}.attentions.{number}", outputs, context, depth, linear)

    parts = [_conv("conv_in", settings.get("in_channels", 4), channels[0])]
    parts += [_affine("time_embedding.linear_1", time, channels[0]), _affine("time_embedding.linear_2", time, time)]
    width, skips = channels[0], [channels[0]]
    for level, outputs in enumerate(channels):
        parts += level_of(f"down_blocks.{level}", down[level], [width, *[outputs] * (layers - 1)], outputs)
        width = outputs
        skips += [outputs] * layers
        if level + 1 < levels:
            parts.append(_conv(f"down_blocks.{level}.downsamplers.0.conv", width, width))
            skips.append(width)
    parts += [_resnet(f"mid_block.resnets.{number}", width, width, time) for number in (0, 1)]
    parts.append(_transformer("mid_block.attentions.0", width, context, depth, linear))
    for level, outputs in enumerate(reversed(channels)):
        inputs = [before + skips.pop() for before in [width, *[outputs] * layers]]
        parts += level_of(f"up_blocks.{level}", up[level], inputs, outputs)
        width = outputs
        if level + 1 < levels:
            parts.append(_conv(f"up_blocks.{level}.upsamplers.0.conv", width, width))
    parts += [_affine("conv_norm_out", width), _conv("conv_out", width, settings.get("out_channels", 4))]
    return _joined(parts)


def vae(settings: Settings) -> Shapes | None:
    """The tensors of an `AutoencoderKL` as Stable Diffusion has it; None for others."""
    channels: Sequence[int] = settings.get("block_out_channels", (64,))
    layers, latents = settings.get("layers_per_block", 1), settings.get("latent_channels", 4)
    blocks = {*settings.get("down_block_types", ()), *settings.get("up_block_types", ())}
    added = ("mid_block_add_attention", "use_quant_conv", "use_post_quant_conv")
    if not blocks <= {"DownEncoderBlock2D", "UpDecoderBlock2D"} or not all(settings.get(key, True) for key in added):
        return None

    def level_of(prefix: str, inputs: int, outputs: int, count: int) -> list[Shapes]:
        return [_resnet(f"{prefix}.resnets.{n}", outputs if n else inputs, outputs) for n in range(count)]

    def middle(width: int) -> list[Shapes]:
        attention = _inside("mid_block.attentions.0", _affine("group_norm", width))
        attention |= _attention("mid_block.attentions.0", width, width, bias=True)
        return [attention, *(_resnet(f"mid_block.resnets.{number}", width, width) for number in (0, 1))]

    encoder, width = [_conv("conv_in", settings.get("in_channels", 3), channels[0])], channels[0]
    for level, outputs in enumerate(channels):
        encoder += level_of(f"down_blocks.{level}", width, outputs, layers)
        width = outputs
        if level + 1 < len(channels):
            encoder.append(_conv(f"down_blocks.{level}.downsamplers.0.conv", width, width))
    encoder += [*middle(width), _affine("conv_norm_out", width), _conv("conv_out", width, 2 * latents)]
    decoder = [_conv("conv_in", latents, width), *middle(width)]
    for level, outputs in enumerate(reversed(channels)):
        decoder += level_of(f"up_blocks.{level}", width, outputs, layers + 1)
        width = outputs
        if level + 1 < len(channels):
            decoder.append(_conv(f"up_blocks.{level}.upsamplers.0.conv", width, width))
    decoder += [_affine("conv_norm_out", width), _conv("conv_out", width, settings.get("out_channels", 3))]
    quantised = [_conv("quant_conv", 2 * latents, 2 * latents, 1), _conv("post_quant_conv", latents, latents, 1)]
    return _joined([_inside("encoder", *encoder), _inside("decoder", *decoder), *quantised])


def text_encoder(settings: Settings) -> Shapes | None:
    """The tensors of a `CLIPTextModel`."""
    width, inner = settings.get("hidden_size", 512), settings.get("intermediate_size", 2048)
    tables = {"token": settings.get("vocab_size", 49408), "position": settings.get("max_position_embeddings", 77)}
    parts: list[Shapes] = [{f"embeddings.{table}_embedding.weight": (rows, width)} for table, rows in tables.items()]
    parts += [
        _inside(
            f"encoder.layers.{number}",
            *(_affine(f"self_attn.{which}_proj", width, width) for which in ("k", "v", "q", "out")),
            *(_affine(f"layer_norm{which}", width) for which in (1, 2)),
            _affine("mlp.fc1", inner, width),
            _affine("mlp.fc2", width, inner),
        )
        for number in range(settings.get("num_hidden_layers", 12))
    ]
    return _inside("text_model", *parts, _affine("final_layer_norm", width))


def _joined(parts: Sequence[Shapes]) -> Shapes:
    return {name: shape for part in parts for name, shape in part.items()}


_DEPTHS = ("layers_per_block", "transformer_layers_per_block", "num_hidden_layers")
_DEEPEST = 1000  # layers of a block or an encoder; Stable Diffusion has 2, and 12 to 24
EXPECTED: dict[str, Callable[[Settings], Shapes | None]] = {"unet": unet, "vae": vae, "text_encoder": text_encoder}


def expected(part: str, settings: Settings) -> Shapes | None:
    """The tensors of a part of a model, by its configuration; None if it is not understood.

    Raises:
        InputError: the configuration has values of another kind, such as a text for a number of channels.
    """
    try:
        for key in _DEPTHS:
            if max(_numbers(settings.get(key)), default=0) > _DEEPEST:
                raise ValueError(f"{key} is more than {_DEEPEST}")
        shapes = EXPECTED[part](settings)
        for shape in (shapes or {}).values():
            for number in shape:
                operator.index(number)
    except (TypeError, ValueError, AttributeError, LookupError, OverflowError) as error:
        reason = f"{type(error).__name__} {error}" if isinstance(error, LookupError) else str(error)
        raise InputError(f"{part}/config.json", f"is not a readable model configuration: {reason:.200}") from None
    return shapes


def _numbers(value: Any) -> list[int]:
    """The whole numbers of a setting that is one, or a list of them by level."""
    if isinstance(value, (list, tuple)):
        return [number for one in value for number in _numbers(one)]
    return [value] if isinstance(value, int) else []
