"""The Selector must look at the image: a constant score, which the method was once published with, fails here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from medsyn import disk
from medsyn.config import ScorerSection
from medsyn.errors import InputError
from medsyn.models.ensemble import Calibration, Familiarity
from medsyn.models.image_encoder import ImageEncoder, Standardise
from medsyn.models.policy import Policy
from medsyn.models.quality import FEATURES
from medsyn.models.scorers import CONFIG, PROVENANCE, WEIGHTS, load_policy, load_selector, save_scorer
from medsyn.models.scores import Card, Threshold
from medsyn.models.selector import Selector

SECTION = ScorerSection(image_size=32, patch_size=8, hidden_dim=16, num_layers=1, num_heads=2, mlp_dim=32, members=2)
CPU = torch.device("cpu")


def pictures(count: int, seed: int = 0) -> Tensor:
    """Blobs, [count, 3, 32, 32] in 0..1."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 1, 6, 6, generator=generator)
    smooth = functional.interpolate(coarse, (32, 32), mode="bicubic", align_corners=False)
    return (0.15 + 0.7 * smooth).clamp(0, 1).expand(-1, 3, -1, -1).contiguous()


def spoiled(pixels: Tensor, seed: int = 0) -> Tensor:
    """The same with noise."""
    noise = torch.randn(len(pixels), 1, 32, 32, generator=torch.Generator().manual_seed(seed))
    return (pixels + 0.15 * noise).clamp(0, 1)


def measure(selector: Selector, pixels: Tensor) -> Tensor:
    return selector.members[0].image.measure(pixels)


def standardise(selector: Selector, pixels: Tensor) -> None:
    for member in selector.members:
        member.image.standardise.fit(measure(selector, pixels))


@pytest.fixture
def selector() -> Selector:
    torch.manual_seed(0)
    return Selector(SECTION)


def test_scores_are_probabilities_that_depend_on_the_image(selector: Selector) -> None:
    scores = selector.score(pictures(16)).score
    assert scores.shape == (16,) and bool(((scores > 0) & (scores < 1)).all())
    assert len(scores.unique()) == 16


def test_a_score_is_the_mean_of_the_members_and_its_spread_their_deviation(selector: Selector) -> None:
    pixels, card = pictures(4), Card(modalities=["CT", "MRI"])
    ensemble = Selector(SECTION, card)
    ensemble.members.load_state_dict(selector.members.state_dict())
    ensemble.calibration.shift.copy_(torch.tensor([0.0, 1.0, -1.0]))
    alone = torch.stack([member(pixels) for member in ensemble.members])
    for modality, shift in (("CT", 1.0), ("MRI", -1.0), ("OCT", 0.0), (None, 0.0)):
        scores, expected = ensemble.score(pixels, modality), (alone + shift).sigmoid()
        torch.testing.assert_close(scores.score, expected.mean(dim=0))
        torch.testing.assert_close(scores.spread, (expected[0] - expected[1]).abs() / 2)


def test_an_image_unlike_all_others_is_unfamiliar() -> None:
    known = torch.randn(200, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 10.0, 0.1])
    familiarity = Familiarity(1, metrics=3)
    assert not familiarity(known + 1e6).any()  # nothing is known yet
    familiarity.scale.copy_(known.std(dim=0))
    familiarity.limit.fill_(20.0)
    assert not familiarity(known).any() and familiarity(known + torch.tensor([0.0, 0.0, 1.0])).all()


@pytest.mark.parametrize("half", ["transformer", "metrics"])
def test_both_halves_of_the_encoder_reach_the_score(selector: Selector, half: str) -> None:
    pixels = pictures(4)
    metrics = measure(selector, pixels)
    other_pixels, other_metrics = (pixels.flip(-1), metrics) if half == "transformer" else (pixels, metrics + 1)
    assert not torch.allclose(selector(pixels, metrics), selector(other_pixels, other_metrics))


@pytest.mark.parametrize("encoder", ["none", "conv", "vit"])
def test_what_sees_the_image_beside_the_metrics_is_a_choice(encoder: str) -> None:
    torch.manual_seed(0)
    image = ImageEncoder(SECTION.model_copy(update={"encoder": encoder}))
    pixels = pictures(3)
    metrics = image.measure(pixels)
    seen = image(pixels, metrics)
    assert seen.shape == (3, image.width) and bool(seen.isfinite().all())
    moved = (image(pixels.flip(-1), metrics) - seen).abs().amax(dim=1)
    assert bool((moved == 0).all()) if encoder == "none" else bool((moved > 1e-4).all())
    seen.sum().backward()
    assert [name for name, value in image.named_parameters() if value.grad is None] == []


def test_it_learns_what_poor_is_on_images_it_has_not_seen(selector: Selector) -> None:
    clean = pictures(32)
    pixels = torch.cat([clean, spoiled(clean)])
    good = torch.arange(64) < 32
    metrics = measure(selector, pixels)
    standardise(selector, pixels)
    optimizer = torch.optim.AdamW(selector.parameters(), lr=3e-3)
    for _ in range(30):
        optimizer.zero_grad()
        logits = selector(pixels, metrics)
        functional.binary_cross_entropy_with_logits(logits, good.float().expand_as(logits)).backward()
        optimizer.step()
    new = pictures(32, seed=1)
    assert float(selector.score(new).score.min()) > 0.5 > float(selector.score(spoiled(new, seed=1)).score.max())


def test_any_size_is_seen_at_the_configured_one(selector: Selector) -> None:
    large = functional.interpolate(pictures(3), (80, 80), mode="bilinear")
    resized = selector.members[0].image.resize(large)
    torch.testing.assert_close(selector.score(large).score, selector.score(resized).score)
    assert resized.shape == (3, 3, 32, 32)


def test_companions_do_not_change_a_score(selector: Selector) -> None:
    pixels = pictures(5)
    alone = torch.cat([selector.score(picture[None]).score for picture in pixels])
    torch.testing.assert_close(selector.score(pixels).score, alone, atol=1e-5, rtol=1e-4)


def test_measured_in_advance_is_measured_the_same(selector: Selector) -> None:
    pixels = pictures(3)
    torch.testing.assert_close(selector(pixels, measure(selector, pixels)), selector(pixels))


def test_a_blank_image_has_a_finite_score(selector: Selector) -> None:
    standardise(selector, pictures(8))
    assert bool(selector.score(torch.zeros(1, 3, 32, 32)).score.isfinite().all())


def test_standardised_columns_have_mean_0_and_deviation_1_and_constant_ones_vanish() -> None:
    standardise = Standardise(3)
    rows = torch.cat([torch.randn(100, 2) * 5 + 7, torch.full((100, 1), 3.0)], dim=1)
    standardise.fit(rows)
    result = standardise(rows)
    torch.testing.assert_close(result[:, :2].mean(dim=0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(result[:, :2].std(dim=0, unbiased=False), torch.ones(2), atol=1e-4, rtol=0)
    assert not result[:, 2].any()


def test_an_outlier_is_clamped() -> None:
    standardise = Standardise(1)
    standardise.fit(torch.randn(100, 1))
    assert float(standardise(torch.tensor([[1e9]]))) == 5.0


def test_what_is_saved_scores_the_same_when_loaded(selector: Selector, tmp_path: Path) -> None:
    standardise(selector, pictures(8))
    selector.card = Card(modalities=["CT"], thresholds={"CT": Threshold(threshold=0.25, good=9, poor=3)})
    selector.calibration, selector.familiarity = Calibration(1), Familiarity(1)
    selector.calibration.slope[1] = 2.0
    save_scorer(selector, tmp_path / "selector", {"campaign.seed": 3})
    loaded = load_selector(tmp_path / "selector", CPU)
    assert torch.equal(loaded.score(pictures(4), "CT").score, selector.eval().score(pictures(4), "CT").score)
    assert not torch.equal(loaded.score(pictures(4), "CT").score, loaded.score(pictures(4)).score)
    assert loaded.card == selector.card
    assert not loaded.training
    assert disk.read_json(tmp_path / "selector" / PROVENANCE) == {"campaign.seed": 3}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["selector"]


def test_a_saved_scorer_is_not_overwritten(selector: Selector, tmp_path: Path) -> None:
    save_scorer(selector, tmp_path / "selector")
    before = (tmp_path / "selector" / WEIGHTS).read_bytes()
    save_scorer(Selector(SECTION), tmp_path / "selector")
    assert (tmp_path / "selector" / WEIGHTS).read_bytes() == before


def test_a_policy_is_not_taken_for_a_selector(tmp_path: Path) -> None:
    save_scorer(Policy(SECTION, 8), tmp_path / "scorer")
    with pytest.raises(InputError, match="is a Policy, not a Selector"):
        load_selector(tmp_path / "scorer", CPU)
    assert load_policy(tmp_path / "scorer", CPU).text_dim == 8


def test_a_missing_scorer_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a saved Selector"):
        load_selector(tmp_path / "nowhere", CPU)


@pytest.mark.parametrize("damage", ["torn", "absent", "garbage"])
def test_damaged_weights_are_an_input_error(selector: Selector, tmp_path: Path, damage: str) -> None:
    save_scorer(selector, tmp_path / "selector")
    file = tmp_path / "selector" / WEIGHTS
    if damage == "absent":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-100] if damage == "torn" else b"garbage")
    with pytest.raises(InputError, match="is damaged"):
        load_selector(tmp_path / "selector", CPU)


def test_a_scorer_of_other_metrics_is_refused(selector: Selector, tmp_path: Path) -> None:
    save_scorer(selector, tmp_path / "selector")
    described = disk.read_json(tmp_path / "selector" / CONFIG)
    disk.write_json(tmp_path / "selector" / CONFIG, {**described, "metrics": list(FEATURES[:-1])})
    with pytest.raises(InputError, match="different quality metrics"):
        load_selector(tmp_path / "selector", CPU)


def test_a_scorer_of_a_single_network_is_refused(selector: Selector, tmp_path: Path) -> None:
    save_scorer(selector, tmp_path / "selector")
    described = disk.read_json(tmp_path / "selector" / CONFIG)
    del described["card"], described["section"]["members"]
    disk.write_json(tmp_path / "selector" / CONFIG, described)
    with pytest.raises(InputError, match="by an earlier version of medsyn, as a single network; train it again"):
        load_selector(tmp_path / "selector", CPU)


def test_pixels_that_nothing_looks_at_are_not_needed() -> None:
    """With the metrics known; a Selector of the default configuration is trained without them."""
    torch.manual_seed(0)
    selector = Selector(SECTION.model_copy(update={"encoder": "none"}))
    metrics = selector.members[0].image.measure(pictures(3))
    assert torch.equal(selector(torch.empty(3, 3, 0, 0), metrics), selector(pictures(3), metrics))


def test_training_and_scoring_draw_no_random_numbers(selector: Selector) -> None:
    before = torch.random.get_rng_state()
    selector.train()(pictures(2)).sum().backward()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_every_weight_learns() -> None:
    torch.manual_seed(0)
    encoder = ImageEncoder(SECTION)
    (encoder(pictures(4)) * torch.randn(4, encoder.width)).sum().backward()
    silent = [name for name, weight in encoder.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert silent == []
