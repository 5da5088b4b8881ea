from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from medsyn.errors import InputError, InputProblems
from medsyn.models import model_folder, stable_diffusion, tiny
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


def test_prompts_are_encoded_in_passes_of_one_size_and_companions_change_no_bit(model: Path) -> None:
    prompts = ["OCT: drusen", "", "CT: nodule", "", "MRI: tumour, left", "X-Ray: effusion"]
    alone = load_synthetic(str(model), CPU, with_unet=False).embed_all(prompts)
    passes = []
    systems = [replace(load_synthetic(str(model), CPU, with_unet=False), prompts_together=4) for _ in range(2)]
    systems[0].text_encoder.register_forward_hook(lambda _, given, __: passes.append(len(given[0])))
    together, other = systems[0].embed_all(prompts), systems[1].embed_all(prompts[::-1])[::-1]
    assert passes == [4, 4], "five different prompts"
    for one, again, single in zip(together, other, alone, strict=True):
        for mine, its, expected in zip(one, again, single, strict=True):
            assert torch.equal(mine, its)
            assert torch.allclose(mine, expected, atol=1e-5)
    assert torch.equal(systems[0].embed(prompts[2])[0], together[2][0])


def test_more_prompts_than_are_kept_are_all_encoded(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stable_diffusion, "_EMBEDDED_KEPT", 2)
    fresh, prompts = load_synthetic(str(model), CPU, with_unet=False), ["a", "b", "c", "d", "a"]
    first, again = ([hidden for hidden, _ in fresh.embed_all(prompts)] for _ in range(2))
    assert torch.equal(first[0], first[4]) and len(fresh._embedded) == 2
    assert torch.equal(torch.stack(first), torch.stack(again))


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


SHORT, LONG = "CT: nodule, left", "CT: " + "nodule, " * 60 + "left"


@pytest.fixture(scope="module")
def reader(model: Path) -> SyntheticSystem:
    """One that reads three chunks of a prompt."""
    return load_synthetic(str(model), CPU, with_unet=False, text_chunks=3)


def test_what_comes_after_token_77_counts_where_it_is_read(system: SyntheticSystem, reader: SyntheticSystem) -> None:
    other = LONG.replace("left", "right")
    assert 77 < len(system.tokenizer(LONG).input_ids) <= 3 * 75 + 2
    assert torch.equal(system.embed(LONG)[0], system.embed(other)[0])
    (hidden, pooled), (its_hidden, its_pooled) = reader.embed(LONG), reader.embed(other)
    assert hidden.shape == (3 * 77, tiny.TEXT_WIDTH) and pooled.shape == (tiny.TEXT_WIDTH,)
    assert torch.equal(hidden[:77], system.embed(LONG)[0])
    assert not torch.allclose(hidden, its_hidden) and not torch.allclose(pooled, its_pooled)


def test_a_chunk_is_75_tokens_between_those_of_begin_and_end(system: SyntheticSystem, reader: SyntheticSystem) -> None:
    tokens = system.tokenizer(LONG, add_special_tokens=False).input_ids
    ends = system.tokenizer.bos_token_id, system.tokenizer.eos_token_id
    expected = []
    for place in range(3):
        row = [ends[0], *tokens[place * 75 : (place + 1) * 75], ends[1]]
        row += [system.tokenizer.pad_token_id] * (77 - len(row))
        expected.append(system.text_encoder(torch.tensor([row])))
    assert torch.equal(reader.embed(LONG)[0], torch.cat([each.last_hidden_state[0] for each in expected]))
    pooled = torch.stack([each.pooler_output[0] for each in expected])
    said = -(-len(tokens) // 75)
    assert torch.equal(reader.embed(LONG)[1], pooled[:said].mean(dim=0))


@pytest.mark.parametrize("text", [SHORT, ""])
def test_empty_chunks_are_behind_a_prompt_that_ends_before(
    text: str, system: SyntheticSystem, reader: SyntheticSystem
) -> None:
    hidden, pooled = reader.embed(text)
    empty = system.embed("")[0]
    assert torch.equal(hidden, torch.cat([system.embed(text)[0], empty, empty]))
    assert torch.equal(pooled, system.embed(text)[1]), "what a scorer sees of a short prompt stays what it was"


def test_companions_of_other_lengths_change_no_bit_of_a_prompts_chunks(model: Path) -> None:
    prompts = [SHORT, LONG, "", LONG.replace("left", "right"), SHORT + " lung"]
    systems = [
        replace(load_synthetic(str(model), CPU, with_unet=False, text_chunks=3), prompts_together=4) for _ in range(2)
    ]
    together = systems[0].embed_all(prompts)
    for prompt, (hidden, pooled) in zip(prompts, together, strict=True):
        systems[1].forget_prompts()
        alone = systems[1].embed(prompt)
        assert torch.equal(hidden, alone[0]) and torch.equal(pooled, alone[1])


def test_a_prompt_beyond_the_last_chunk_is_cut_off_there(reader: SyntheticSystem) -> None:
    hidden, _ = reader.embed("CT: " + "nodule, " * 400)
    assert hidden.shape == (3 * 77, tiny.TEXT_WIDTH) and torch.isfinite(hidden).all()


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


def test_a_half_precision_decoder_is_close_and_leaves_the_encoder_alone(model: Path) -> None:
    """bfloat16 here, which CPUs convolve in; cards take float16."""
    whole = load_synthetic(str(model), CPU, with_unet=False)
    half = replace(load_synthetic(str(model), CPU, with_unet=False), decoder_dtype=torch.bfloat16)
    latents = torch.randn(3, *whole.latent_shape(32), generator=torch.Generator().manual_seed(0))
    expected, found = whole.decode(latents), half.decode(latents)
    assert found.dtype == torch.float32 and not torch.equal(found, expected)
    assert (found - expected).abs().max() < 0.03
    assert next(half.decoder.parameters()).dtype == torch.bfloat16
    assert {parameter.dtype for parameter in half.vae.parameters()} == {torch.float32}
    assert all(map(torch.equal, whole.encode(expected), half.encode(expected)))


def test_what_overflows_in_half_precision_is_decoded_again_in_float32(model: Path) -> None:
    whole = load_synthetic(str(model), CPU, with_unet=False)
    half = replace(load_synthetic(str(model), CPU, with_unet=False), decoder_dtype=torch.bfloat16)
    latents = torch.randn(3, *whole.latent_shape(32), generator=torch.Generator().manual_seed(0))
    sound, exact = half.decode(latents), whole.decode(latents)

    def overflow(_: nn.Module, __: Any, images: Tensor) -> Tensor:
        images[1, 0, 5, 5] = float("inf")
        return images

    half.decoder.register_forward_hook(overflow)
    found = half.decode(latents)
    assert torch.equal(found[1], exact[1])
    assert torch.equal(found[0], sound[0]) and torch.equal(found[2], sound[2]), "companions keep their bits"


def test_a_finetuned_unet_is_taken(model: Path, tmp_path: Path) -> None:
    other = tiny.build_random(tmp_path / "other", seed=1)
    base = load_synthetic(str(model), CPU)
    tuned = load_synthetic(str(model), CPU, unet_from=other)
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


def test_a_tokenizer_without_a_configuration_has_the_text_encoders_length(model: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(model, tmp_path / "copy")
    (copy / "tokenizer" / "tokenizer_config.json").unlink()
    without, with_it = (load_synthetic(str(source), CPU, with_unet=False) for source in (copy, model))
    assert torch.equal(without.embed("CT: nodule")[0], with_it.embed("CT: nodule")[0])


@pytest.mark.parametrize(
    ("part", "file", "change", "reason"),
    [
        ("tokenizer", "tokenizer_config.json", {"added_tokens_decoder": 7}, "CLIPTokenizer"),
        ("unet", "config.json", {"norm_num_groups": 7}, "UNet2DConditionModel"),
        ("vae", "config.json", {"act_fn": "absent"}, "AutoencoderKL"),
        ("text_encoder", "config.json", {"num_attention_heads": 0}, "CLIPTextModel"),
        ("text_encoder", "config.json", {"hidden_act": "absent"}, "CLIPTextModel"),
    ],
)
def test_what_only_the_libraries_know_is_an_error_of_the_folder(
    model: Path, tmp_path: Path, part: str, file: str, change: dict[str, object], reason: str
) -> None:
    copy = shutil.copytree(model, tmp_path / "copy")
    path = copy / part / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=f"{part}.*{reason} that can be loaded: "):
        load_synthetic(str(copy), CPU)


def test_special_tokens_that_the_text_encoder_does_not_know_are_told(model: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(model, tmp_path / "copy")
    (copy / "tokenizer" / "special_tokens_map.json").write_text('{"pad_token": "<pad>"}')
    with pytest.raises(InputError, match=r"tokens, and the text encoder .*<pad>"):
        load_synthetic(str(copy), CPU, with_unet=False)


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_tensors_that_are_not_in_the_file_are_never_drawn_at_random(
    model: Path, tmp_path: Path, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(model, tmp_path / "copy")
    (file,) = (copy / part).glob("*.safetensors")
    tensors = load_file(file)
    gone = sorted(tensors)[3]
    del tensors[gone]
    save_file(tensors, file, {"format": "pt"})
    monkeypatch.setattr(model_folder, "expected", lambda *_: None)  # of a kind that the headers do not tell
    with pytest.raises(InputError, match=rf"{part}.*{gone}|{part}.*missing"):
        load_synthetic(str(copy), CPU)
