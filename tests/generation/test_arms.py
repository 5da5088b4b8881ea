"""Arms of one campaign through the random tiny model: the same seeds, each UNet loaded once."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medsyn.errors import InputError
from medsyn.generation.block_store import read_rejected, rejected_directory
from medsyn.generation.make import maker
from medsyn.generation.sample import load
from medsyn.generation.write.provenance import Sources
from tests.helpers.generation_campaign import Campaign

ARMS = ["baseline", "finetuned", "filtered"]  # without alignment, filtered samples with the fine-tuned model


def pixels(block: Path, file: str) -> str:
    with Image.open(block / file) as image:
        return hashlib.sha256(np.asarray(image).tobytes()).hexdigest()


def first_attempts(campaign: Campaign, mode: str) -> dict[tuple[str, int], str]:
    """The pictures of attempt 0 that are on disk, by prompt and replicate."""
    found = {}
    block = campaign.block(mode)
    folder = rejected_directory(block)
    own = [(block, line) for line in campaign.read("manifest.jsonl", mode) if line["file"]]
    others = [(folder, line) for line in read_rejected(folder)] if folder.is_dir() else []
    for place, line in own + others:
        if line["attempt"] == 0:
            found[line["id"], line["replicate"]] = pixels(place, line["file"])
    return found


def test_arms_of_one_unet_share_attempt_0_and_load_it_once(campaign: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Path | None] = []
    real = load.load_unet

    def watched(source: str, device: object, dtype: object, unet_from: Path | None = None) -> object:
        loaded.append(unet_from)
        return real(source, device, dtype, unet_from)  # type: ignore[arg-type]

    monkeypatch.setattr(load, "load_unet", watched)
    of_arms = campaign.override(modes=["finetuned", "baseline", "filtered"], keep_rejected=4)
    of_arms.run(blocks=(0, 1))
    assert loaded == [campaign.directory.finetuned_unet("CT"), None]
    plain, filtered, before = (first_attempts(of_arms, mode) for mode in ("finetuned", "filtered", "baseline"))
    assert len(plain) == 3 and plain.items() == filtered.items()
    assert not set(plain.values()) & set(before.values())
    seeds = {
        mode: [line["seed"] for line in of_arms.read("attempts.jsonl", mode)] for mode in ("finetuned", "baseline")
    }
    assert seeds["finetuned"] == seeds["baseline"]


def test_modes_are_made_unet_by_unet_beginning_with_the_loaded_one(campaign: Campaign) -> None:
    config = campaign.override(modes=["finetuned", "baseline", "filtered"]).config
    loader = load.Loader(config, "CT", campaign.directory)
    blocks = maker.BlockMaker(config, loader, None, {mode: {} for mode in config.generation.modes})  # type: ignore[arg-type]
    assert blocks.modes == ["finetuned", "filtered", "baseline"]
    blocks._loaded["baseline"] = None  # type: ignore[assignment]
    assert blocks.modes == ["baseline", "finetuned", "filtered"]
    blocks._loaded = {"filtered": None}  # type: ignore[dict-item]
    assert blocks.modes == ["filtered", "finetuned", "baseline"]


def test_an_arm_without_a_filter_has_no_scores_and_names_its_model(campaign: Campaign) -> None:
    sources = Sources(campaign.override(modes=ARMS).config, "CT", campaign.directory)
    facts = {mode: sources.facts(mode) for mode in ARMS}
    assert facts["finetuned"]["model_fingerprint"] == facts["filtered"]["model_fingerprint"]
    assert facts["finetuned"]["model_fingerprint"] != facts["baseline"]["model_fingerprint"]
    assert "scorers_fingerprint" in facts["filtered"] and "scorers_fingerprint" not in facts["finetuned"]


def test_an_aligned_arm_names_the_task_that_makes_its_model(campaign: Campaign, finetuned_unets: list[Path]) -> None:
    align = {"align": campaign.config.align.model_copy(update={"enabled": True})}
    config = campaign.override(modes=["aligned", "filtered", "finetuned"]).config.model_copy(update=align)
    sources = Sources(config, "CT", campaign.directory)
    for mode in ("aligned", "filtered"):
        with pytest.raises(InputError, match="the task 'align ct' makes it"):
            sources.unet(mode)
    model = campaign.directory.aligned_unet("CT")
    shutil.copytree(finetuned_unets[1], model / "unet")
    assert [sources.unet(mode) for mode in ("aligned", "filtered")] == [model, model]
    assert sources.unet("finetuned") == campaign.directory.finetuned_unet("CT")
