from __future__ import annotations

from pathlib import Path

import pytest
import torch

from medsyn.errors import InputProblems
from medsyn.models import stable_diffusion, tiny
from medsyn.models.stable_diffusion import SyntheticSystem, load_synthetic

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build_random(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def system(model: Path) -> SyntheticSystem:
    return load_synthetic(str(model), CPU)


def test_missing_weights_are_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(InputProblems, match="not on this machine"):
        load_synthetic(str(tmp_path / "absent"), CPU)


def test_nothing_that_is_loaded_has_gradients(system: SyntheticSystem) -> None:
    for part in (system.unet, system.vae, system.text_encoder):
        assert not part.training
        assert not any(parameter.requires_grad for parameter in part.parameters())


def test_one_encoder_call_per_unique_prompt(model: Path) -> None:
    fresh = load_synthetic(str(model), CPU, with_unet=False)
    calls = []
    fresh.text_encoder.register_forward_hook(lambda *_: calls.append(1))
    first, _ = fresh.embed("OCT: drusen")
    for prompt in ("", "OCT: drusen", "", "OCT: drusen"):
        fresh.embed(prompt)
    assert len(calls) == 2
    assert torch.equal(first, fresh.embed("OCT: drusen")[0])


def test_text_features_have_shape_and_depend_on_the_text(system: SyntheticSystem) -> None:
    hidden, pooled = system.embed("Chest CT: solid nodule in the left lung")
    other_hidden, other_pooled = system.embed("Chest CT: solid nodule in the right lung")
    assert hidden.shape == (77, tiny.TEXT_WIDTH)
    assert pooled.shape == (tiny.TEXT_WIDTH,)
    assert not torch.allclose(hidden, other_hidden)
    assert not torch.allclose(pooled, other_pooled)


def test_long_and_foreign_prompts_are_encoded(system: SyntheticSystem) -> None:
    hidden, _ = system.embed("CT: " + "größere Läsion 👁 漢字 " * 60)
    assert hidden.shape == (77, tiny.TEXT_WIDTH)
    assert torch.isfinite(hidden).all()


def test_encode_and_decode_agree_on_shapes_and_ranges(system: SyntheticSystem) -> None:
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    mean, deviation = system.encode(pixels)
    assert mean.shape == deviation.shape == (2, *system.latent_shape(64))
    assert (deviation > 0).all()
    decoded = system.decode(mean)
    assert decoded.shape == pixels.shape
    assert decoded.dtype == torch.float32
    assert decoded.min() >= 0
    assert decoded.max() <= 1


def test_a_finetuned_unet_is_taken_and_changes_the_fingerprint(model: Path, tmp_path: Path) -> None:
    other = tiny.build_random(tmp_path / "other", seed=1)
    base = load_synthetic(str(model), CPU)
    tuned = load_synthetic(str(model), CPU, unet_from=other)
    assert tuned.fingerprint != base.fingerprint
    assert not torch.equal(tuned.unet.conv_in.weight, base.unet.conv_in.weight)
    assert torch.equal(tuned.vae.encoder.conv_in.weight, base.vae.encoder.conv_in.weight)


def test_prediction_type_is_read_from_the_model(tmp_path: Path) -> None:
    built = tiny.build_random(tmp_path / "epsilon", prediction_type="epsilon")
    assert load_synthetic(str(built), CPU, with_unet=False).prediction_type == "epsilon"


def test_sd15_shape_goes_through_the_same_code(tmp_path: Path) -> None:
    """Latents of SD v1.5 at 256 px are 4 x 32 x 32: the factor is read from the VAE, not assumed."""
    from diffusers import AutoencoderKL

    built = tiny.build_random(tmp_path / "sd15")
    AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
    ).save_pretrained(built / "vae")
    system = load_synthetic(str(built), CPU, with_unet=False)
    assert system.latent_shape(256) == (4, 32, 32)
    mean, _ = system.encode(torch.zeros(1, 3, 64, 64))
    assert mean.shape[1:] == system.latent_shape(64)


def test_a_long_list_of_prompts_does_not_fill_the_card(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stable_diffusion, "_EMBEDDED_KEPT", 2)
    fresh = load_synthetic(str(model), CPU, with_unet=False)
    calls = []
    fresh.text_encoder.register_forward_hook(lambda *_: calls.append(1))
    for prompt in ("OCT: a", "OCT: b", "OCT: c", "OCT: c"):
        fresh.embed(prompt)
    assert len(fresh._embedded) == 2
    assert len(calls) == 3
