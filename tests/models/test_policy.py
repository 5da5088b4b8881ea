"""The Policy must look at the image and read the prompt, and set the one against the other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from medsyn import disk
from medsyn.config import ScorerSection
from medsyn.errors import InputError
from medsyn.models.policy import Policy
from medsyn.models.scorers import CONFIG, load_policy, save_scorer
from medsyn.models.selector import Selector

SECTION = ScorerSection(image_size=32, patch_size=8, hidden_dim=16, num_layers=1, num_heads=2, mlp_dim=32, members=2)
TEXT_DIM = 12


def bars(upright: Tensor, seed: int) -> Tensor:
    """Stripes, upright or lying, at a random place: [N, 3, 32, 32]."""
    generator = torch.Generator().manual_seed(seed)
    phase = torch.rand(len(upright), 1, 1, generator=generator) * 6
    wave = 0.5 + 0.4 * torch.sin(torch.arange(32) / 2 + phase).expand(-1, 32, -1)
    picture = torch.where(upright.view(-1, 1, 1), wave, wave.transpose(1, 2))
    return picture[:, None].expand(-1, 3, -1, -1).contiguous()


@pytest.fixture
def policy() -> Policy:
    torch.manual_seed(0)
    return Policy(SECTION, TEXT_DIM)


@pytest.fixture
def texts() -> Tensor:
    return torch.randn(2, TEXT_DIM, generator=torch.Generator().manual_seed(0))


def test_scores_are_probabilities_that_depend_on_image_and_prompt(policy: Policy, texts: Tensor) -> None:
    pixels = bars(torch.tensor([True, False]), seed=0)
    table = torch.stack([policy.score(pixels, text.expand(2, -1)).score for text in texts])
    assert table.shape == (2, 2) and bool(((table > 0) & (table < 1)).all())
    assert len(table.unique()) == 4


def test_it_learns_which_prompt_belongs_to_which_image(policy: Policy, texts: Tensor) -> None:
    """No score of the image alone or of the prompt alone could do it: both appear equally often, right and wrong."""
    upright = torch.arange(64) % 2 == 0
    says_upright = torch.arange(64) % 4 < 2
    pixels, pooled, right = bars(upright, 0), texts[says_upright.long()], upright == says_upright
    metrics = policy.members[0].image.measure(pixels)
    for member in policy.members:
        member.image.standardise.fit(metrics)
        member.standardise_text.fit(texts)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=5e-3)
    for _ in range(40):
        optimizer.zero_grad()
        logits = policy(pixels, pooled, metrics)
        functional.binary_cross_entropy_with_logits(logits, right.float().expand_as(logits)).backward()
        optimizer.step()
    scores = policy.score(bars(upright, seed=1), pooled).score
    assert float(scores[right].min()) > 0.5 > float(scores[~right].max())


def test_aligning_an_encoded_image_is_scoring_it(policy: Policy, texts: Tensor) -> None:
    pixels = bars(torch.tensor([True, False]), seed=0)
    for member, logits in zip(policy.members, policy(pixels, texts), strict=True):
        torch.testing.assert_close(member.align(member.image(pixels), texts), logits)


def test_half_precision_text_features_are_accepted(policy: Policy, texts: Tensor) -> None:
    pixels = bars(torch.tensor([True, False]), seed=0)
    torch.testing.assert_close(
        policy.score(pixels, texts.half()).score, policy.score(pixels, texts).score, atol=1e-2, rtol=0
    )


def test_what_is_saved_scores_the_same_when_loaded(policy: Policy, texts: Tensor, tmp_path: Path) -> None:
    policy.members[1].standardise_text.fit(texts)
    save_scorer(policy, tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy", torch.device("cpu"))
    pixels = bars(torch.tensor([True, False]), seed=0)
    assert torch.equal(loaded.score(pixels, texts).score, policy.eval().score(pixels, texts).score)


def test_a_selector_is_not_taken_for_a_policy(tmp_path: Path) -> None:
    save_scorer(Selector(SECTION), tmp_path / "scorer")
    with pytest.raises(InputError, match="is a Selector, not a Policy"):
        load_policy(tmp_path / "scorer", torch.device("cpu"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"section": {**SECTION.model_dump(), "hidden_dim": 0}}, "greater than or equal to 16"),
        ({"section": 3}, "does not describe a Policy of this version"),
        ({"section": None}, "does not describe a Policy of this version"),
        ({"text_dim": "8"}, "text_dim must be a whole number from 1, got '8'"),
        ({"text_dim": 9}, "does not fit its config.json: .*size mismatch for members.0.standardise_text.mean"),
        ({"network": None}, "is another network than this version's Policy; train it again"),
    ],
)
def test_a_configuration_that_builds_nothing_is_an_input_error(
    tmp_path: Path, change: dict[str, object], reason: str
) -> None:
    save_scorer(Policy(SECTION, 8), tmp_path / "scorer")
    disk.write_json(tmp_path / "scorer" / CONFIG, {**disk.read_json(tmp_path / "scorer" / CONFIG), **change})
    with pytest.raises(InputError, match=reason):
        load_policy(tmp_path / "scorer", torch.device("cpu"))


def test_a_model_of_another_program_is_not_taken_for_a_policy(tmp_path: Path) -> None:
    disk.write_json(tmp_path / CONFIG, {"model_type": "clip"})
    with pytest.raises(InputError, match="is not a saved Policy, but another program's model"):
        load_policy(tmp_path, torch.device("cpu"))
