"""The synthetic system: a Stable Diffusion generator loaded from a diffusers directory.

The tiny embedded default and SD v1.5 share the same code: `from_pretrained` on the four parts, safetensors
only, never from the network (compute nodes have none).
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from medsyn import time_use
from medsyn.errors import InputError, InputProblems
from medsyn.models import model_folder, weights
from medsyn.models.compiled import WholeUNet
from medsyn.models.device import decoder_dtype, memory_format, sent
from medsyn.models.header import missing_tensors
from medsyn.text import and_more

_PROMPTS_TOGETHER = 16  # on a GPU, where one pass of a prompt is as long as one of many
_EMBEDDED_KEPT = 1024  # chunks of prompts; SD's features are 240 kB each, and they are kept on the GPU


@dataclass
class SyntheticSystem:
    """The parts of a latent diffusion model, ready on one device. The VAE encodes in float32."""

    tokenizer: Any
    text_encoder: Any
    vae: Any
    unet: Any  # None where only the VAE and the text encoder are needed
    scheduler_config: dict[str, Any]
    device: torch.device
    dtype: torch.dtype
    decoder_dtype: torch.dtype = torch.float32
    prompts_together: int = 1  # encoded in one pass, which is filled up to that number, because it changes bits
    whole: WholeUNet | None = None  # all of the UNet, compiled
    text_chunks: int = 1  # that the text encoder reads of a prompt, one after the other; the rest is cut off
    _embedded: OrderedDict[str, tuple[Tensor, Tensor]] = field(default_factory=OrderedDict)
    _half_decoder: nn.Module | None = None

    @property
    def prediction_type(self) -> str:
        """What the UNet predicts: `epsilon` (SD v1.5) or `v_prediction`."""
        return str(self.scheduler_config.get("prediction_type", "epsilon"))

    def embed(self, prompt: str) -> tuple[Tensor, Tensor]:
        """Text features of one prompt: hidden states [77 * text_chunks, D] and the pooled vector [D]."""
        return self.embed_all([prompt])[0]

    def embed_all(self, prompts: Sequence[str]) -> list[tuple[Tensor, Tensor]]:
        """Text features of each prompt: hidden states [77 * text_chunks, D] and the pooled vector [D].

        Every unique prompt is encoded once, on a CPU alone, on a GPU in passes of one size: what else is in its pass
        changes nothing.

        With several chunks, each has 75 tokens of the prompt between those of begin and end; a prompt that ends before
        has empty ones behind it, so that all prompts have as many features. The pooled vector is the mean over those
        that are not empty.
        """
        features = {prompt: self._embedded[prompt] for prompt in prompts if prompt in self._embedded}
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in features]
        for start in range(0, len(new), self.prompts_together):
            features |= self._encode_prompts(new[start : start + self.prompts_together])
        for prompt in dict.fromkeys(prompts):
            self._embedded[prompt] = features[prompt]
            self._embedded.move_to_end(prompt)
        while len(self._embedded) * self.text_chunks > _EMBEDDED_KEPT:
            self._embedded.popitem(last=False)
        return [features[prompt] for prompt in prompts]

    def pool_all(self, prompts: Sequence[str]) -> Tensor:
        """The pooled vectors of prompts, [N, D]: what a Policy takes."""
        return torch.stack([pooled for _, pooled in self.embed_all(prompts)])

    def forget_prompts(self) -> None:
        """Encode every prompt anew from now on."""
        self._embedded.clear()

    def _encode_prompts(self, prompts: Sequence[str]) -> dict[str, tuple[Tensor, Tensor]]:
        """The features of some prompts; chunks that several of them have are encoded once."""
        chunks = {prompt: self._chunks(prompt) for prompt in prompts}
        rows = list(dict.fromkeys(row for rows in chunks.values() for row in rows))
        encoded: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
        for start in range(0, len(rows), self.prompts_together):
            encoded |= self._encode_rows(rows[start : start + self.prompts_together])
        if self.text_chunks == 1:
            return {prompt: encoded[row] for prompt, (row,) in chunks.items()}
        empty, found = self._row([]), {}
        for prompt, its in chunks.items():
            said = [row for row in its if row != empty] or [empty]
            pooled = torch.stack([encoded[row][1] for row in said]).mean(dim=0)
            found[prompt] = torch.cat([encoded[row][0] for row in its]), pooled
        return found

    def _chunks(self, prompt: str) -> list[tuple[int, ...]]:
        """What the text encoder is given for a prompt: `text_chunks` rows of token numbers."""
        room = self.tokenizer.model_max_length - 2
        numbers = self.tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids
        return [self._row(numbers[place * room : (place + 1) * room]) for place in range(self.text_chunks)]

    def _row(self, numbers: list[int]) -> tuple[int, ...]:
        """Token numbers between those of begin and end, padded to the text encoder's length."""
        row = self.tokenizer.build_inputs_with_special_tokens(numbers)
        return (*row, *[self.tokenizer.pad_token_id] * (self.tokenizer.model_max_length - len(row)))

    @torch.no_grad()
    def _encode_rows(self, rows: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], tuple[Tensor, Tensor]]:
        """One pass of the text encoder, filled up by repetition."""
        filled = [*rows, *[rows[-1]] * (self.prompts_together - len(rows))]
        output = self.text_encoder(sent(torch.tensor(filled), self.device))
        features = zip(rows, output.last_hidden_state, output.pooler_output, strict=False)
        return {row: (hidden.clone(), pooled.clone()) for row, hidden, pooled in features}

    def latent_shape(self, height: int, width: int | None = None) -> tuple[int, int, int]:
        """(channels, height, width) of the latents of an image of this size in pixels; square if no width is given."""
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        return self.vae.config.latent_channels, height // factor, (width or height) // factor

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Latent mean and standard deviation, each [N, c, h, w] in the UNet's scale, of pixels [N, 3, H, W] in 0..1."""
        posterior = self.vae.encode(pixels.to(self.device, torch.float32) * 2 - 1).latent_dist
        factor = self.vae.config.scaling_factor
        return posterior.mean * factor, posterior.std * factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pixels [N, 3, H, W], float32 in 0..1, of latents [N, c, h, w] in the UNet's scale.

        Where half precision overflows, float32 decodes again: all of them, because the number changes bits, but only
        the images that were not finite take the new result.
        """
        images, sound = self.decode_once(latents)
        if self.decoder_dtype == torch.float32 or bool(sound.all()):
            return images
        return torch.where(sound.view(-1, 1, 1, 1), images, self._pixels(self.vae.decode(self._scaled(latents)).sample))

    @torch.no_grad()
    def decode_once(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """What `decode` begins with, and which images half precision has not overflowed for, bool [N].

        On a GPU nothing waits for either.
        """
        scaled = self._scaled(latents)
        if self.decoder_dtype == torch.float32:
            images = self.vae.decode(scaled).sample
        else:
            images = self.decoder(scaled.to(self.decoder_dtype)).float()
        return self._pixels(images), images.isfinite().flatten(1).all(dim=1)

    def _scaled(self, latents: Tensor) -> Tensor:
        return latents.to(torch.float32) / self.vae.config.scaling_factor

    def _pixels(self, images: Tensor) -> Tensor:
        return (images / 2 + 0.5).clamp(0, 1)

    @property
    def decoder(self) -> nn.Module:
        """What decodes: the VAE's own, or a copy of it in half precision."""
        if self.decoder_dtype == torch.float32:
            return self.vae.decoder
        if self._half_decoder is None:
            layers = nn.Sequential(copy.deepcopy(self.vae.post_quant_conv), copy.deepcopy(self.vae.decoder))
            self._half_decoder = _laid_out(layers.to(self.decoder_dtype), self.device)
        return self._half_decoder


def _unet_directory(base: Path, unet_from: Path | None) -> Path:
    return (unet_from or base) / "unet"


@time_use.of(time_use.LOADING)
def load_unet(
    source: str, device: torch.device, dtype: torch.dtype, unet_from: Path | None = None
) -> UNet2DConditionModel:
    """The UNet of `source`, or the fine-tuned one under `unet_from`/unet, in eval mode without gradients."""
    base = weights.locate(source)
    assert base is not None, "model_folder.missing is asked first"
    directory = _unet_directory(base, unet_from)
    if reason := model_folder.misfit(base, directory):
        raise InputError(directory, reason)
    unet = _load(UNet2DConditionModel, directory, dtype)
    return _laid_out(unet.to(device), device).eval().requires_grad_(False)


def load_vae(source: str, device: torch.device) -> AutoencoderKL:
    """The VAE of `source` alone, in float32 and in eval mode, without gradients."""
    base = weights.locate(source)
    assert base is not None, "model_folder.missing is asked first"
    return _load(AutoencoderKL, base / "vae", torch.float32).to(device).eval().requires_grad_(False)


def _laid_out(network: Any, device: torch.device) -> Any:
    """A network in the layout that the device takes; its weights are on it already."""
    layout = memory_format(device, next(network.parameters()).dtype)
    return network if layout == torch.contiguous_format else network.to(memory_format=layout)


def _load(network: Any, directory: Path, dtype: torch.dtype) -> Any:
    """A network with all its weights from the file: the libraries fill missing ones at random, with a warning."""
    with _readable(directory, f"a {network.__name__}"):
        loaded, found = network.from_pretrained(
            str(directory), torch_dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    if absent := sorted(found["missing_keys"]):
        raise InputError(directory, missing_tensors(absent, len(loaded.state_dict())))
    return loaded


@contextmanager
def _readable(directory: Path, what: str) -> Iterator[None]:
    """Whatever a library raises about files that it cannot use is about the files."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(directory, f"is not {what} that can be loaded: {reason}") from None


def _load_tokenizer(directory: Path, text_settings: Any) -> CLIPTokenizer:
    """The tokenizer, of as many tokens as the text encoder has positions: without a configuration it has no limit."""
    with _readable(directory, "a CLIPTokenizer"):
        tokenizer = CLIPTokenizer.from_pretrained(str(directory), local_files_only=True)
    if len(tokenizer) > text_settings.vocab_size:  # special tokens that are not in the vocabulary are added to it
        added = and_more(list(tokenizer.added_tokens_encoder), 4)
        reason = f"has {len(tokenizer)} tokens, and the text encoder {text_settings.vocab_size}: look at {added}"
        raise InputError(directory, reason)
    tokenizer.model_max_length = min(tokenizer.model_max_length, text_settings.max_position_embeddings)
    return tokenizer


@time_use.of(time_use.LOADING)
def load_synthetic(
    source: str,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    unet_from: Path | None = None,
    with_unet: bool = True,
    text_chunks: int = 1,
) -> SyntheticSystem:
    """Load a generator.

    Args:
        source: `embedded`, a diffusers directory, or a hub id in the local cache.
        device: where it runs.
        dtype: of the UNet and the text encoder; the VAE encodes in float32 and decodes in `decoder_dtype`.
        unet_from: directory that contains a fine-tuned `unet/`.
        with_unet: False loads only what encodes and decodes images and encodes prompts.
        text_chunks: that are read of a prompt (`data.text_chunks`).

    Raises:
        InputProblems: everything that is wrong with the weights.
        InputError: a part of them cannot be read, or is of a different architecture.
    """
    if problems := model_folder.problems(source):
        raise InputProblems(problems)
    base = weights.locate(source)
    assert base is not None
    text_encoder = _load(CLIPTextModel, base / "text_encoder", dtype)
    vae = load_vae(source, device)
    tokenizer = _load_tokenizer(base / "tokenizer", text_encoder.config)
    return SyntheticSystem(
        tokenizer=tokenizer,
        text_encoder=text_encoder.to(device).eval().requires_grad_(False),
        vae=vae,
        unet=load_unet(source, device, dtype, unet_from) if with_unet else None,
        scheduler_config=model_folder.scheduler_config(source, unet_from),
        device=device,
        dtype=dtype,
        decoder_dtype=decoder_dtype(device, dtype),
        prompts_together=_PROMPTS_TOGETHER if device.type == "cuda" else 1,
        text_chunks=text_chunks,
    )
