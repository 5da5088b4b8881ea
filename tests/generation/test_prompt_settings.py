"""What a prompt list says of one prompt counts for its images as if the whole campaign were configured so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medsyn import config as configuration
from medsyn import disk
from medsyn.data.prompts import write
from medsyn.data.prompts.rows import PromptSource, new_faults
from medsyn.generation import stage
from medsyn.generation.block_store import MANIFEST
from medsyn.stage import CampaignDirectory, Control, Task

Records = dict[tuple[str, int], dict[str, Any]]
Make = Callable[..., Records]


@pytest.fixture
def make(tiny_model: Path, tmp_path: Path) -> Make:
    """Run a baseline campaign of a prompt list; its manifest by (id, replicate), the pixels of each image added."""

    def run(name: str, rows: list[dict[str, Any]], seed: int = 0, **generation: Any) -> Records:
        root = tmp_path / name
        source = disk.make_directory(root) / "list.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        write.resolve(PromptSource.file(source), new_faults(source), root / "lists")
        section = {
            "modes": ["baseline"],
            "batch_size": 3,
            "batches_per_block": 4,
            "num_inference_steps": 2,
            "guidance_scale": 3.0,
            **generation,
        }
        config = configuration.validate(
            {
                "campaign": {"seed": seed},
                "data": {"prompts": str(root / "lists"), "resolution": 32},
                "model_paths": {"stable_diffusion": str(tiny_model)},
                "device": {"use_cuda": False},
                "generation": section,
            },
            "test",
        )
        stage.run(config, Task("generate", 0, "ct", "CT"), CampaignDirectory(root / "campaign"), Control())
        found: Records = {}
        for manifest in sorted((root / "campaign").rglob(MANIFEST)):
            for record in disk.read_jsonl(manifest):
                with Image.open(manifest.parent / record["file"]) as image:
                    found[record["id"], record["replicate"]] = {**record, "pixels": np.asarray(image).tobytes()}
        return found

    return run


SETTINGS = {"num_inference_steps": 4, "guidance_scale": 5.0, "negative_prompt": "blur"}


@pytest.mark.parametrize("key", [*SETTINGS, None])
def test_a_setting_of_a_prompt_is_the_setting_of_a_campaign(make: Make, key: str | None) -> None:
    own = {key: SETTINGS[key]} if key else SETTINGS
    mixed = make("mixed", [{"id": "a", "prompt": "CT: nodule", **own}, {"id": "b", "prompt": "CT: nodule"}])
    whole = make("whole", [{"id": "a", "prompt": "CT: nodule"}], **own)
    plain = make("plain", [{"id": "b", "prompt": "CT: nodule"}, {"id": "a", "prompt": "CT: nodule"}])
    assert mixed["a", 0]["pixels"] == whole["a", 0]["pixels"] != plain["a", 0]["pixels"]
    assert mixed["b", 0]["pixels"] == plain["b", 0]["pixels"]


def test_guidance_of_one_beside_other_scales(make: Make) -> None:
    scales = {"a": 1.0, "b": 2.0, "c": 4.0, "d": None}
    rows = [{"id": name, "prompt": "CT: nodule", "guidance_scale": scale} for name, scale in scales.items()]
    mixed = make("mixed", rows)
    for name, scale in scales.items():
        alone = make(name, [{"id": name, "prompt": "CT: nodule"}], guidance_scale=scale or 3.0)
        assert mixed[name, 0]["pixels"] == alone[name, 0]["pixels"]


def test_n_images_are_made_of_a_prompt_and_img_num_of_one_that_does_not_say(make: Make) -> None:
    made = make("n", [{"id": "a", "prompt": "CT: a", "n": 5}, {"id": "b", "prompt": "CT: b"}], img_num=2)
    assert sorted(made) == [*(("a", replicate) for replicate in range(5)), ("b", 0), ("b", 1)]
    assert len({record["pixels"] for record in made.values()}) == 7


def test_a_seed_of_its_own_makes_the_noise_the_same_in_every_campaign_and_under_every_id(make: Make) -> None:
    first = make("one", [{"id": "a", "prompt": "CT: nodule", "seed": 7, "n": 2}, {"id": "c", "prompt": "CT: nodule"}])
    second = make("two", [{"id": "b", "prompt": "CT: nodule", "seed": 7, "n": 2}], seed=5)
    for replicate in range(2):
        assert first["a", replicate]["seed"] == second["b", replicate]["seed"] != first["c", 0]["seed"]
        assert first["a", replicate]["pixels"] == second["b", replicate]["pixels"]
    assert first["a", 0]["seed"] != first["a", 1]["seed"]


def test_further_columns_are_in_the_manifest_and_not_in_the_image(make: Make, tmp_path: Path) -> None:
    made = make("extra", [{"id": "a", "prompt": "CT: nodule", "finding": "a sign", "age": 61}])
    assert made["a", 0]["extra"] == {"finding": "a sign", "age": 61}
    (file,) = (tmp_path / "extra" / "campaign").rglob("*.png")
    with Image.open(file) as image:
        assert not any("a sign" in str(value) for value in image.info.values())
