"""Small GPU computations of the kinds that fail on old cards and with wrong builds: `medsyn doctor --gpu`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from medsyn.doctor.diagnosis import Diagnosis

_ELEMENTS = (64, 1024)  # bitsandbytes keeps 8-bit state for tensors of 4096 elements or more only


def check_gpu() -> Iterator[Diagnosis]:
    """One 8-bit Adam step, one memory-efficient attention, one half-precision decode."""
    import torch

    if not torch.cuda.is_available():
        advice = "run it on a node with a GPU; in Apptainer with --nv"
        yield Diagnosis("GPU", "no usable CUDA device", "bad", advice)
        return
    computations: dict[str, Callable[[], Diagnosis]] = {
        "8-bit Adam step": _adam_step,
        "memory-efficient attention": _attention,
        "VAE in float16": _half_vae,
    }
    for name, compute in computations.items():
        try:
            yield compute()
        except Exception as error:  # any error of CUDA or a library is the finding
            first = (str(error).strip().splitlines() or [""])[0]
            yield Diagnosis(name, f"{type(error).__name__}: {first}", "bad", "tasks that need it will fail here")


def _adam_step() -> Diagnosis:
    import bitsandbytes
    import torch

    weight = torch.nn.Parameter(torch.ones(_ELEMENTS, device="cuda"))
    optimizer = bitsandbytes.optim.AdamW8bit([weight], lr=0.1)
    weight.square().sum().backward()
    optimizer.step()
    moved = bool((weight < 1).all()) and bool(torch.isfinite(weight).all())
    return Diagnosis("8-bit Adam step", f"weights 1.0 -> {weight.mean().item():.3f}", "good" if moved else "bad")


def _attention() -> Diagnosis:
    """Stable Diffusion's shape at 256 pixels: 1024 positions, 8 heads of 40, in float32 as Pascal computes."""
    import torch

    query, key, value = (torch.randn(1, 8, 1024, 40, device="cuda") for _ in range(3))
    expected = torch.softmax(query @ key.transpose(-1, -2) / 40**0.5, -1) @ value
    with _memory_efficient_only():
        found = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    error = (found - expected).abs().max().item()
    return Diagnosis("memory-efficient attention", f"largest error {error:.1e}", "good" if error < 1e-2 else "bad")


def _memory_efficient_only() -> AbstractContextManager[None]:
    import torch

    try:
        from torch.nn.attention import SDPBackend, sdpa_kernel  # torch 2.3 and newer
    except ImportError:
        kernels: AbstractContextManager[None] = torch.backends.cuda.sdp_kernel(enable_flash=False, enable_math=False)
        return kernels
    chosen: AbstractContextManager[None] = sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION)
    return chosen


def _half_vae() -> Diagnosis:
    """The embedded model's decoder; medsyn itself keeps VAEs in float32."""
    import torch
    from diffusers import AutoencoderKL

    from medsyn.models.weights import embedded_directory

    vae = AutoencoderKL.from_pretrained(str(embedded_directory() / "vae"), torch_dtype=torch.float16).to("cuda")
    size, channels = 16, vae.config.latent_channels
    with torch.no_grad():
        image = vae.decode(torch.randn(1, channels, size, size, device="cuda", dtype=torch.float16)).sample
    finite = bool(torch.isfinite(image).all())
    return Diagnosis("VAE in float16", "finite" if finite else "not finite", "good" if finite else "bad")
