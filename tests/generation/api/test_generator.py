from __future__ import annotations

import doctest
import inspect
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest

import medsyn
from medsyn import Generator, disk
from medsyn.config import GenerationSection, validate
from medsyn.data.images.read import read_image
from medsyn.errors import InputError, InputProblems
from medsyn.generation.api import generator as generator_module
from medsyn.generation.api.options import OPTIONS, Sampling
from medsyn.generation.api.prompts import check_prompts
from medsyn.generation.block_store import Item, read_blocks
from medsyn.models.weights import locate
from medsyn.stage import CampaignDirectory
from tests.helpers.generation_campaign import Campaign


@pytest.fixture(scope="module")
def generator() -> Generator:
    return Generator(device="cpu", height=32, seed=3, num_inference_steps=2, batch_size=2, batches_per_block=2)


def test_the_generator_is_an_iterator_over_prompts_and_replicates(generator: Generator) -> None:
    images = list(generator.images(["CT: normal", "Fundus: drusen"], count=3))
    assert [(image.item.prompt, image.item.replicate) for image in images] == [
        *itertools.product(["CT: normal", "Fundus: drusen"], range(3))
    ]
    assert [image.pixels.shape for image in images if image.pixels is not None] == [(32, 32, 1)] * 3 + [(32, 32, 3)] * 3
    assert all(image.accepted for image in images)
    assert len({image.png for image in images}) == 6


def test_an_image_does_not_depend_on_what_else_is_asked_for(generator: Generator) -> None:
    (alone,) = generator.images("CT: nodule, left", count=1)
    beside = list(generator.images(["CT: normal", "CT: nodule, left"], count=3))[3]
    assert alone.png == beside.png and alone.item == beside.item


def test_items_carry_their_own_settings(generator: Generator) -> None:
    items = [Item("a", "CT: normal", 0, seed=5), Item("b", "CT: normal", 0, seed=5, num_inference_steps=3)]
    one, other = generator.images(items)
    assert one.record["seed"] == other.record["seed"]
    assert not np.array_equal(one.pixels, other.pixels)  # type: ignore[arg-type]


def test_saving_writes_the_marked_file(generator: Generator, tmp_path: Path) -> None:
    (image,) = generator.images("CT: normal")
    image.save(tmp_path / "a" / "x.png")
    assert read_image(tmp_path / "a" / "x.png").synthetic


def test_a_model_that_was_trained_on_longer_texts_reads_the_end_of_a_prompt(
    generator: Generator, tmp_path: Path
) -> None:
    (tmp_path / "unet").symlink_to(locate("embedded") / "unet")
    disk.write_json(tmp_path / "facts.json", {"data.text_chunks": 2})
    settings: dict[str, Any] = {"height": 32, "seed": 3, "num_inference_steps": 2, "batch_size": 2}
    longer = Generator(device="cpu", finetuned=tmp_path, **settings)
    prompts = [Item(side, f"CT: {'nodule, ' * 40}{side}", 0, seed=5) for side in ("left", "right")]
    told = [check_prompts(prompts[0].prompt, 1, None, each._settings.config)[1] for each in (generator, longer)]
    assert [len(warnings) for warnings in told] == [1, 0]
    one, other = ([image.pixels for image in each.images(prompts)] for each in (generator, longer))
    assert np.array_equal(*one) and not np.array_equal(*other)
    assert generator._provenance["config_fingerprint"] != longer._provenance["config_fingerprint"]


def test_mistakes_of_the_caller_are_told(generator: Generator) -> None:
    with pytest.raises(InputProblems, match="names no modality"):
        generator.images("a lung")
    with pytest.raises(InputProblems, match=r"batch_sise.*did you mean"):
        Generator(batch_sise=3)
    with pytest.raises(AttributeError, match="Generatr"):
        medsyn.Generatr  # noqa: B018


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"device": "gpu"}, "device: must be auto, cpu or cuda:N, got 'gpu'"),
        ({"device": None}, "device: must be auto, cpu or cuda:N, got None"),
        ({"device": "cuda:7"}, "device: there is no GPU cuda:7"),
        ({"precision": "float16", "device": "cpu"}, "precision: float16 needs a GPU"),
        ({"height": 0}, "height: must be a multiple of 8 from 32 to 1024, got 0"),
        ({"width": 64.0}, "width: must be a multiple of 8 from 32 to 1024, got 64.0"),
        ({"seed": "3"}, "seed: input should be a valid integer, got '3'"),
        ({"batch_size": True}, "batch_size: must be a whole number from 1 to 1024, got True"),
        ({"quality_threshold": 0.5}, "quality_threshold: belongs to the filter"),
        ({"img_num": 3}, "img_num: no such argument"),
        ({"selector": "/nowhere"}, "policy: is missing: the filter needs both a Selector and a Policy"),
        ({"model": 3}, "model: input should be a valid string, got 3"),
        ({"model": "no/such"}, "model: no/such: these weights are not on this machine"),
        ({"finetuned": 3}, "finetuned: must be a directory, got 3"),
        ({"guidance_interval": (0.5, 0.2)}, "guidance_interval: guidance_interval must be [start, end]"),
        ({"negative_prompt": "a\0"}, "negative_prompt: contains a NUL byte"),
    ],
)
def test_a_wrong_argument_of_the_generator_is_told_by_name(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(InputProblems) as caught:
        Generator(**arguments)
    assert [str(one)[: len(told)] for one in caught.value.problems if str(one).startswith(told)] == [told]


@pytest.mark.parametrize(
    ("prompts", "options", "told"),
    [
        (None, {}, "prompts: must be a string, an Item or several of them, got None"),
        (3, {}, "prompts: must be a string, an Item or several of them, got 3"),
        (b"CT: a", {}, "prompts: must be a string, an Item or several of them, got bytes, not a string: b'CT: a'"),
        ([b"CT: a"], {}, "prompts[0]: must be a string or an Item, got b'CT: a'"),
        ([], {}, "prompts: must not be empty"),
        (["CT: a", 3], {}, "prompts[1]: must be a string or an Item, got 3"),
        (["CT: a", "CT:"], {}, "prompts[1]: 'CT:' says nothing"),
        ("CT: a", {"count": "3"}, "count: must be a whole number from 1 to 1000000, got '3'"),
        ("CT: a", {"count": 0}, "count: must be a whole number from 1 to 1000000, got 0"),
        ("a", {"modality": "ultrasound"}, "modality: 'ultrasound' is not one of the five"),
        ("a", {"modality": 3}, "modality: 3 is not one of the five"),
        (Item("a/b", "CT: a", 0), {}, "prompts, id: 'a/b' is not a valid id"),
        (Item("", "CT: a", 0), {}, "prompts: prompt_id is empty"),
        (Item("a", "CT: a", -1), {}, "prompts: replicate must be a whole number"),
        (Item("a", "CT: a", 0, num_inference_steps=0), {}, "prompts, num_inference_steps: '0' is not"),
    ],
)
def test_a_wrong_prompt_is_told_when_it_is_asked_for(
    generator: Generator, prompts: Any, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(InputProblems) as caught:
        generator.images(prompts, **options)
    (problem,) = caught.value.problems
    assert str(problem).startswith(told)


def test_a_text_of_a_million_characters_is_told_in_one_short_line(generator: Generator) -> None:
    with pytest.raises(InputProblems, match=r"prompts: 'CT: xxx.{,200} is longer than 10000 characters"):
        generator.images("CT: " + "x" * 10**6)


def test_an_iterator_left_early_and_another_generator_change_no_image(generator: Generator) -> None:
    whole = [image.png for image in generator.images(["CT: a", "MRI: b"], count=3)]
    first = generator.images(["CT: a", "MRI: b"], count=3)
    assert next(first).png == whole[0]
    other = Generator(device="cpu", height=32, seed=4, num_inference_steps=2, batch_size=2, batches_per_block=2)
    beside = zip(generator.images(["CT: a", "MRI: b"], count=3), other.images("CT: a", count=6), strict=True)
    pairs = [(image.png, another.png) for image, another in beside]
    assert [png for png, _ in pairs] == whole
    assert all(png != another for png, another in pairs)
    assert [image.png for image in first] == whole[1:]


def test_the_same_text_with_and_without_its_modality_are_two_prompts(generator: Generator) -> None:
    images = list(generator.images(["CT: a", "a"], modality="CT"))
    assert len({image.png for image in images}) == 2


def test_the_example_of_the_import_path_runs(tmp_path: Path) -> None:
    failed, tried = doctest.testmod(generator_module, extraglobs={"folder": tmp_path})
    assert (failed, tried > 0) == (0, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.png", "1.png"]


def test_images_come_in_the_order_of_the_prompts_and_a_prompt_given_twice_makes_two(generator: Generator) -> None:
    prompts = ["CT: a", "MRI: b", "CT: c", "CT: a"]
    images = list(generator.images(prompts))
    assert [image.record["prompt"] for image in images] == prompts
    assert len({image.record["id"] for image in images}) == len(images)


# --- the generator of a campaign ------------------------------------------------------------------------------------


def of_campaign(campaign: Campaign, mode: str, modality: str = "CT") -> Generator:
    tree = campaign.config.model_dump()
    tree["campaign"]["dir"] = str(campaign.directory.root)
    return Generator.from_config(validate(tree, "test"), modality, mode)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["baseline", "filtered"])
def test_a_generator_of_a_campaign_makes_its_images_and_records_again(reference: Campaign, mode: str) -> None:
    generator = of_campaign(reference, mode)
    items = [item for number in range(3) for item in read_blocks(reference.config, "CT").items(number)]
    made = list(generator.images(items))
    assert [image.record for image in made] == reference.read("manifest.jsonl", mode)
    files = {
        name: disk.sha256_file(path) for path in reference.block(mode).parent.glob("*/*.png") if (name := path.name)
    }
    assert {image.record["file"]: image.record["sha256"] for image in made if image.png} == files


def test_a_generator_of_a_campaign_is_of_one_modality(reference: Campaign) -> None:
    generator = of_campaign(reference, "baseline", "chest ct")
    (image,) = generator.images("no prefix is needed")
    assert image.record["modality"] == "CT"
    with pytest.raises(InputProblems, match="modality: 'MRI' was requested, but this generator's models are for CT"):
        generator.images("nodule", modality="MRI")


def test_a_campaign_that_is_not_there_is_told(reference: Campaign, tmp_path: Path) -> None:
    nowhere = Campaign(reference.config, CampaignDirectory(tmp_path))
    assert list(of_campaign(nowhere, "baseline").images("nodule"))
    with pytest.raises(InputError, match="is missing; the task 'finetune ct' makes it"):
        of_campaign(nowhere, "filtered")
    with pytest.raises(InputProblems, match="modality: 'ultrasound' is not one of the five"):
        of_campaign(nowhere, "baseline", "ultrasound")
    with pytest.raises(InputProblems, match=r"mode: must be one of baseline, filtered, .*got 'x'"):
        of_campaign(nowhere, "x")
    tree = reference.config.model_dump()
    tree["model_paths"]["stable_diffusion"] = "no/such"
    with pytest.raises(InputProblems, match="these weights are not on this machine"):
        Generator.from_config(validate(tree, "test"), "CT", "baseline")


def test_what_is_no_configuration_is_told() -> None:
    with pytest.raises(InputProblems, match="config: must be a campaign's configuration, got 'runs/tiny'"):
        Generator.from_config("runs/tiny", "MRI")  # type: ignore[arg-type]


def test_every_option_is_an_argument_and_every_argument_an_option() -> None:
    signature = inspect.signature(Generator.__init__, eval_str=True).parameters
    explicit = [name for name in signature if name not in ("self", "sampling")]
    of_images = [name for name in inspect.signature(Generator.images).parameters if name != "self"]
    assert sorted([*explicit, *Sampling.__annotations__, *of_images]) == sorted(OPTIONS)


def test_options_have_the_types_of_their_keys() -> None:
    """A type checker tells a caller what validation would."""
    for name, kind in get_type_hints(Sampling).items():
        key = OPTIONS[name].key
        assert key is not None
        field = GenerationSection.model_fields[key.removeprefix("generation.")]
        wider = {"guidance_interval": Sequence[float], "batch_size": int, "batches_per_block": int}
        assert kind == wider.get(name, field.annotation), name
