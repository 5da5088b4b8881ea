from __future__ import annotations

import csv
import itertools
import re
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

from medsyn.data.images.read import read_image
from medsyn.data.phantoms.dataset import write_dataset
from medsyn.data.phantoms.phantom import (
    CAMPAIGNS,
    FINDINGS,
    KINDS,
    MODALITY_OF,
    PRETRAINING,
    PROTOCOLS,
    Label,
    Phantom,
    Protocol,
    draw_phantom,
    parse_caption,
    render,
)
from medsyn.data.tables.read import read_dataset, read_ratings
from medsyn.errors import InputError
from medsyn.modality_names import canonical_modality
from tests.helpers.prompt_table import read_prompts

EYES = ("OCT", "Fundus")
RADIOLOGY = tuple(kind for kind in KINDS if kind not in EYES)
ABNORMAL = [(kind, finding) for kind in KINDS for finding in FINDINGS[kind][1:]]
# What the finding does to the brightness of its place.
BRIGHT: dict[Protocol, set[str]] = {
    "A": {"hard exudates", "consolidation", "pleural effusion", "ground glass opacity", "solid mass", "enhancing mass"},
    "B": {"hard exudates", "consolidation", "pleural effusion", "ground glass opacity", "solid mass", "oedema", "cyst"},
}
DARK: dict[Protocol, set[str]] = {
    "A": {"intraretinal haemorrhages", "oedema", "cyst"},
    "B": {"intraretinal haemorrhages", "enhancing mass"},
}
SIZE = 64


def grey(phantom: Phantom, size: int = SIZE) -> np.ndarray:
    return render(phantom, size).mean(axis=-1)


def twins(kind: str, finding: str, side: str, index: int, protocol: Protocol = "B") -> tuple[np.ndarray, np.ndarray]:
    """The same body with the finding and without it."""
    eye = side if kind in EYES else None
    with_finding = draw_phantom(kind, index, 5, quality=3, finding=finding, side=side, protocol=protocol)
    without = draw_phantom(kind, index, 5, quality=3, finding=FINDINGS[kind][0], side=eye, protocol=protocol)
    return grey(with_finding), grey(without)


# -- the choice and its caption --------------------------------------------------------------------------------------


def test_same_arguments_give_the_same_phantom_and_others_another() -> None:
    assert draw_phantom("OCT", 3, 7) == draw_phantom("OCT", 3, 7)
    drawn = [[draw_phantom(kind, index, seed).label for index in range(12)] for seed in (1, 2) for kind in KINDS]
    assert all(a != b for a, b in zip(drawn[:6], drawn[6:], strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_findings_and_sides_are_balanced_over_the_index(kind: str) -> None:
    drawn = [draw_phantom(kind, index, 11) for index in range(18)]
    assert set(Counter(phantom.finding for phantom in drawn).values()) == {6}
    for finding in FINDINGS[kind]:
        sides = Counter(phantom.side for phantom in drawn if phantom.finding == finding)
        has_side = kind in EYES or finding != FINDINGS[kind][0]
        assert sides == ({"left": 3, "right": 3} if has_side else {None: 6})
    for start in range(0, 18, 3):
        assert len({phantom.finding for phantom in drawn[start : start + 3]}) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_most_are_excellent_and_some_are_not(kind: str) -> None:
    qualities = Counter(draw_phantom(kind, index, 1).quality for index in range(400))
    assert 0.62 < qualities[3] / 400 < 0.78
    assert min(qualities[1], qualities[2]) > 30


def test_what_is_given_is_kept() -> None:
    phantom = draw_phantom("Chest CT", 0, 1, quality=1, finding="solid mass", side="left")
    assert phantom.label == Label("Chest CT", "solid mass", "left", 1)
    assert draw_phantom("Chest CT", 0, 1, finding=FINDINGS["Chest CT"][0], side="left").side is None


@pytest.mark.parametrize(
    ("kind", "given", "said"),
    [
        ("Abdomen CT", {}, "Chest CT"),
        ("OCT", {"finding": "cyst"}, "drusen"),
        ("OCT", {"quality": 4}, "excellent"),
        ("OCT", {"side": "both"}, "left"),
    ],
)
def test_unknown_words_are_refused_and_the_known_ones_told(kind: str, given: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        draw_phantom(kind, 0, 1, **given)


def test_captions_read_as_the_specification_writes_them() -> None:
    phantom = draw_phantom("Chest X-ray", 0, 1, quality=3, finding="consolidation", side="right")
    assert phantom.caption == "Chest X-ray: consolidation in the right lung, excellent image quality"
    phantom = draw_phantom("Fundus", 0, 1, quality=1, finding="hard exudates", side="left")
    assert phantom.caption == "Fundus: hard exudates, left eye, poor image quality"
    phantom = draw_phantom("Brain MRI", 0, 1, quality=2, finding="normal anatomy")
    assert phantom.caption == "Brain MRI: normal anatomy, acceptable image quality"


def test_captions_round_trip_and_are_short() -> None:
    wanted = itertools.product(KINDS, range(3), ("left", "right"), (1, 2, 3))
    phantoms = [draw_phantom(kind, 0, 2, quality, FINDINGS[kind][f], side) for kind, f, side, quality in wanted]
    for phantom in phantoms:
        caption = phantom.caption
        assert parse_caption(caption) == phantom.label
        assert parse_caption("  " + caption.upper().replace(" ", "  ")) == phantom.label
        assert canonical_modality(caption.split(":")[0]) == phantom.modality == MODALITY_OF[phantom.kind]
        assert len(re.findall(r"\w+|[^\w\s]", caption)) < 25
    assert len({phantom.caption for phantom in phantoms}) == (2 * 6 + 4 * 5) * 3


@pytest.mark.parametrize("text", ["", "CT: liver", "Chest CT: solid mass, excellent image quality", "drusen"])
def test_other_texts_state_nothing(text: str) -> None:
    assert parse_caption(text) is None


# -- the picture -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_is_a_function_of_the_phantom(kind: str) -> None:
    picture = render(draw_phantom(kind, 4, 9, quality=3), SIZE)
    assert picture.shape == (SIZE, SIZE, 3 if kind == "Fundus" else 1)
    assert picture.dtype == np.float32
    assert 0 <= picture.min() < 0.15 and 0.7 < picture.max() <= 1
    np.testing.assert_array_equal(picture, render(draw_phantom(kind, 4, 9, quality=3), SIZE))


@pytest.mark.parametrize("kind", KINDS)
def test_anatomy_varies_from_patient_to_patient_and_with_the_seed(kind: str) -> None:
    normal = FINDINGS[kind][0]
    pictures = [
        grey(draw_phantom(kind, index, seed, quality=3, finding=normal, side="left"))
        for index, seed in ((0, 1), (1, 1), (0, 2))
    ]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(pictures[a] - pictures[b]).mean() > 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_the_protocols_show_the_same_patient_in_another_way(kind: str) -> None:
    """Nothing that the caption states differs, and what pre-training has seen is another picture."""
    for index in range(6):
        a, b = (draw_phantom(kind, index, 7, quality=3, protocol=protocol) for protocol in PROTOCOLS)
        assert (a.caption, a.finding, a.side) == (b.caption, b.finding, b.side)
        assert (np.abs(render(a, SIZE) - render(b, SIZE)) > 0.1).mean() > 0.01
    assert draw_phantom(kind, 0, 7).protocol == CAMPAIGNS != PRETRAINING


@pytest.mark.parametrize("quality", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_the_picture_is_the_same_at_every_size(kind: str, quality: int) -> None:
    for index in range(3):
        phantom = draw_phantom(kind, index, 3, quality=quality)
        small = grey(phantom, 128).reshape(SIZE, 2, SIZE, 2).mean(axis=(1, 3))
        assert np.corrcoef(small.ravel(), grey(phantom).ravel())[0, 1] > 0.96


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("kind", "finding"), ABNORMAL)
def test_the_finding_is_there_and_large(kind: str, finding: str, side: str, protocol: Protocol) -> None:
    for index in range(4):
        image, twin = twins(kind, finding, side, index, protocol)
        difference = image - twin
        assert (np.abs(difference) > 0.12).sum() >= 64, "eight by eight pixels of 64 by 64"
        if finding in BRIGHT[protocol]:
            assert difference.sum() > 20
        if finding in DARK[protocol]:
            assert difference.sum() < -10


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("kind", "finding"), [pair for pair in ABNORMAL if pair[0] in RADIOLOGY])
def test_the_finding_is_on_its_side(kind: str, finding: str, side: str, protocol: Protocol) -> None:
    for index in range(4):
        image, twin = twins(kind, finding, side, index, protocol)
        # The mean change over 8 x 8 pixels: a mass also moves the ventricles, which averages out.
        change = np.abs((image - twin).reshape(8, 8, 8, 8).mean(axis=(1, 3)))
        patient_right, patient_left = change[:, :4].max(), change[:, 4:].max()
        here, there = (patient_left, patient_right) if side == "left" else (patient_right, patient_left)
        assert here > 0.12
        assert here > 2.5 * there


def test_the_heart_is_on_the_patients_left() -> None:
    for kind in ("Chest X-ray", "Chest CT"):
        bright = np.mean([grey(draw_phantom(kind, index, 1, 3, FINDINGS[kind][0])) for index in range(6)], axis=0)
        rows = slice(40, 48) if kind == "Chest X-ray" else slice(22, 32)
        assert bright[rows, 36:46].mean() > bright[rows, 18:28].mean() + 0.1


def test_the_optic_disc_is_on_the_nasal_side() -> None:
    for index in range(8):
        for side, nasal in (("right", slice(40, 56)), ("left", slice(8, 24))):
            picture = grey(draw_phantom("Fundus", index, 1, quality=3, side=side))[24:40]
            blue = render(draw_phantom("Fundus", index, 1, quality=3, side=side), SIZE)[20:44, :, 2]
            assert blue[:, nasal].max() == blue.max() > 0.6
            assert picture[:, nasal].max() > 0.8


def test_the_retina_ends_at_the_optic_nerve() -> None:
    for finding in FINDINGS["OCT"]:
        for index in range(4):
            for side, nasal in (("right", -1), ("left", 0)):
                picture = grey(draw_phantom("OCT", index, 1, quality=3, finding=finding, side=side, protocol="A"))
                surface = (picture > 0.3).argmax(axis=0)
                temporal = -1 - nasal
                assert surface[nasal] > surface[temporal] + 4


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", KINDS)
def test_quality_degrades_measurably(kind: str, protocol: Protocol) -> None:
    for index in range(8):
        clean, mild, severe = (
            grey(draw_phantom(kind, index, 4, quality=quality, protocol=protocol)) for quality in (3, 2, 1)
        )
        mildly, severely = np.abs(mild - clean).mean(), np.abs(severe - clean).mean()
        assert mildly > 0.012
        assert severely > 1.7 * mildly
        assert np.corrcoef(mild.ravel(), clean.ravel())[0, 1] > 0.85


def test_kind_and_finding_can_be_told_from_the_picture() -> None:
    def examples(indices: range) -> tuple[np.ndarray, list[str], list[str]]:
        drawn = [draw_phantom(kind, index, 8, quality=3) for kind in KINDS for index in indices]
        thumbnails = np.stack([render(phantom, 32).mean(axis=-1) for phantom in drawn])
        mirrored = thumbnails[:, :, ::-1]
        sideless = np.concatenate([np.maximum(thumbnails, mirrored), np.minimum(thumbnails, mirrored)], axis=1)
        return sideless.reshape(len(drawn), -1), [p.kind for p in drawn], [f"{p.kind} {p.finding}" for p in drawn]

    known, known_kinds, known_findings = examples(range(60))
    new, new_kinds, new_findings = examples(range(600, 624))
    kernel = known @ known.T + 30 * np.eye(len(known))
    for labels, truth, least in ((known_kinds, new_kinds, 0.99), (known_findings, new_findings, 0.9)):
        names = sorted(set(labels))
        one_hot = np.array([[name == label for name in names] for label in labels], dtype=float)
        scores = new @ known.T @ np.linalg.solve(kernel, one_hot)
        right = np.mean([names[best] == label for best, label in zip(scores.argmax(axis=1), truth, strict=True)])
        assert right >= least


# -- the data set ----------------------------------------------------------------------------------------------------

COUNT = 12
SEED = 21


def write(directory: Path, **changed: int) -> None:
    write_dataset(
        directory, **{"images_per_kind": COUNT, "prompts_per_kind": 6, "image_size": SIZE, "seed": SEED} | changed
    )


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("phantoms") / "set"
    write(directory)
    return directory


def rows(directory: Path, name: str) -> list[dict[str, str]]:
    with (directory / name).open(newline="") as stream:
        return list(csv.DictReader(stream))


def captioned(directory: Path) -> list[tuple[Path, Phantom]]:
    """Every captioned image with the phantom it must show."""
    numbers: Counter[str] = Counter()
    found = []
    for row in rows(directory, "metadata.csv"):
        facts = parse_caption(row["Text"])
        assert facts is not None
        phantom = draw_phantom(facts.kind, numbers[facts.kind], SEED)
        numbers[facts.kind] += 1
        assert phantom.label == facts
        found.append((directory / row["path"], phantom))
    assert set(numbers.values()) == {COUNT}
    return found


def test_the_tables_are_read_without_a_problem(dataset: Path) -> None:
    images, ratings = read_dataset(dataset / "metadata.csv"), read_ratings(dataset / "ratings.csv")
    prompts = read_prompts(dataset / "prompts.csv")
    assert images.problems == ratings.problems == prompts.problems == []
    assert len(images.rows) == COUNT * 6
    assert COUNT * 6 <= len(ratings.rows) <= COUNT * 6 * 1.4
    assert len(prompts.rows) == 36
    files = {row.path for row in images.rows} | {row.path for row in ratings.rows}
    assert files == {path for path in (dataset / "images").rglob("*") if path.is_file()}
    assert not {row.path for row in images.rows} & {row.path for row in ratings.rows}


def test_patients_have_one_to_three_images_of_one_kind(dataset: Path) -> None:
    patients = Counter((row["patient_id"], row["Text"].split(":")[0]) for row in rows(dataset, "metadata.csv"))
    assert len({patient for patient, _ in patients}) == len(patients)
    assert set(patients.values()) == {1, 2, 3}


def test_ratings_are_balanced_and_second_raters_less_expert(dataset: Path) -> None:
    experts = [row for row in rows(dataset, "ratings.csv") if row["expert_level"] != "1"]
    novices = [row for row in rows(dataset, "ratings.csv") if row["expert_level"] == "1"]
    truth = {row["image_path"]: int(row["rating"]) for row in experts}
    for kind in KINDS:
        of_kind = [row["rating"] for row in experts if row["prompt"].startswith(kind + ":")]
        assert Counter(of_kind) == {"1": COUNT // 3, "2": COUNT // 3, "3": COUNT // 3}
    assert novices and all(abs(int(row["rating"]) - truth[row["image_path"]]) <= 1 for row in novices)
    assert all(row["prompt"].endswith("excellent image quality") for row in experts + novices)


def test_a_rating_tells_how_the_image_came_out(dataset: Path) -> None:
    errors: dict[int, list[float]] = {1: [], 2: [], 3: []}
    numbers: Counter[str] = Counter()
    for row in rows(dataset, "ratings.csv"):
        if row["expert_level"] == "1":
            continue
        asked = parse_caption(row["prompt"])
        assert asked is not None
        wanted = draw_phantom(asked.kind, 600_000 + numbers[asked.kind], SEED, quality=3)
        numbers[asked.kind] += 1
        assert wanted.label == asked
        pixels = read_image(dataset / row["image_path"], row["modality"]).pixels
        errors[int(row["rating"])].append(float(np.abs(pixels - render(wanted, SIZE)).mean()))
    assert max(errors[3]) < min(errors[2])
    assert np.mean(errors[1]) > 1.7 * np.mean(errors[2])


def test_prompts_ask_for_everything_once(dataset: Path) -> None:
    asked = [parse_caption(row["prompt"]) for row in rows(dataset, "prompts.csv")]
    for kind in KINDS:
        facts = [fact for fact in asked if fact and fact.kind == kind]
        assert {fact.quality for fact in facts} == {3}
        assert Counter(fact.finding for fact in facts) == dict.fromkeys(FINDINGS[kind], 2)
        assert all({f.side for f in facts if f.finding == name} == {"left", "right"} for name in FINDINGS[kind][1:])


def test_every_file_shows_its_phantom(dataset: Path) -> None:
    for path, phantom in captioned(dataset):
        picture = read_image(path, phantom.modality)
        assert not picture.synthetic, "the mark is for generated images: these are here to be trained on"
        assert not picture.warnings
        shown, wanted = picture.pixels, render(phantom, SIZE)
        assert shown.shape == wanted.shape
        if path.suffix in (".png", ".dcm"):
            np.testing.assert_allclose(shown, wanted, atol=0.003)
        elif path.suffix == ".jpg":
            assert np.abs(shown - wanted).mean() < 0.02
        else:  # values of an MRI have no window: the reader stretches them, and every phantom has black and white
            assert np.abs(shown - wanted).mean() < 0.03
            assert np.abs(shown[:, ::-1] - wanted).mean() > 0.03


def test_formats_are_as_in_real_life(dataset: Path) -> None:
    suffixes = {kind: set() for kind in KINDS}
    for path, phantom in captioned(dataset):
        suffixes[phantom.kind].add(path.name.partition(".")[2])
    assert suffixes == {
        "OCT": {"png"},
        "Fundus": {"png", "jpg"},
        "Chest X-ray": {"png", "dcm"},
        "Chest CT": {"png", "dcm"},
        "Brain MRI": {"png", "nii.gz"},
        "Breast MRI": {"png", "nii.gz"},
    }


def test_dicom_headers_are_valid_and_name_no_one(dataset: Path) -> None:
    paths = sorted((dataset / "images").rglob("*.dcm"))
    headers = [pydicom.dcmread(path) for path in paths]  # without force: preamble and file meta must be there
    assert {str(header.PatientName) for header in headers} == {"PHANTOM^MEDSYN"}
    assert {header.StudyDate for header in headers} == {""}
    assert {header.Modality for header in headers} == {"CT", "CR"}
    assert len({header.SOPInstanceUID for header in headers}) == len(paths)
    assert all(header.SOPInstanceUID.is_valid for header in headers)
    assert all(header.file_meta.MediaStorageSOPInstanceUID == header.SOPInstanceUID for header in headers)
    shown = Counter(header.PhotometricInterpretation for header in headers if header.Modality == "CR")
    assert set(shown) == {"MONOCHROME1", "MONOCHROME2"}


def test_ct_is_in_hounsfield_units(dataset: Path) -> None:
    for path, phantom in captioned(dataset):
        if path.suffix != ".dcm" or phantom.kind != "Chest CT" or phantom.quality != 3:
            continue
        header = pydicom.dcmread(path)
        hu = header.pixel_array * float(header.RescaleSlope) + float(header.RescaleIntercept)
        assert abs(np.median(hu[:6]) + 1000) < 30, "air above the body"
        assert ((hu > -920) & (hu < -780)).mean() > 0.05, "lung"
        assert ((hu > 0) & (hu < 150)).mean() > 0.08, "soft tissue"
        assert ((hu > 300) & (hu < 500)).mean() > 0.01, "blood with contrast medium"
        assert 550 < np.percentile(hu, 99.8) < 900, "bone"


def test_volumes_show_the_phantom_in_the_middle_slice_whatever_their_axes(dataset: Path) -> None:
    axes = set()
    for path, phantom in captioned(dataset):
        if path.suffix != ".gz":
            continue
        image = nib.load(path)
        axes.add(nib.aff2axcodes(image.affine))
        volume = nib.as_closest_canonical(image).get_fdata()
        assert volume.shape[2] % 2 == 1 and volume.shape[2] >= 3
        middle = volume.shape[2] // 2
        # RAS+: the first axis runs to the patient's right, the second to the front.
        shown = volume[::-1, ::-1, middle].T / image.header["cal_max"]
        np.testing.assert_allclose(shown, render(phantom, SIZE)[..., 0], atol=0.001)
        assert np.abs(volume[:, :, middle] - volume[:, :, 0]).mean() > 10
    assert len(axes) >= 3


def test_two_runs_give_the_same_bytes_and_another_seed_others(dataset: Path, tmp_path: Path) -> None:
    write(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(dataset)
    write(tmp_path / "other", seed=SEED + 1, images_per_kind=4)
    other = contents(tmp_path / "other")
    assert all(content != other.get(name) for name, content in contents(dataset).items())


def test_a_larger_set_begins_with_the_smaller_one(dataset: Path, tmp_path: Path) -> None:
    write(tmp_path / "small", images_per_kind=4)
    large = contents(dataset)
    assert all(large[name] == data for name, data in contents(tmp_path / "small").items() if name.startswith("images/"))


def test_a_second_run_does_nothing(dataset: Path) -> None:
    calls: list[int] = []
    before = {path: path.stat().st_mtime_ns for path in dataset.rglob("*")}
    write_dataset(dataset, COUNT, 6, SIZE, SEED, progress=lambda done, total: calls.append(done))
    assert calls == [] and before == {path: path.stat().st_mtime_ns for path in dataset.rglob("*")}


def test_other_settings_and_foreign_files_are_never_overwritten(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="other settings"):
        write(dataset, seed=SEED + 1)
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="not empty"):
        write(tmp_path)
    assert contents(tmp_path) == {"thesis.txt": b"precious"}


def test_a_run_that_dies_leaves_nothing_half_written(tmp_path: Path) -> None:
    target = tmp_path / "set"

    def die(done: int, total: int) -> None:
        assert total == 4 * 2 * 6
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_dataset(target, 4, 2, SIZE, 1, progress=die)
    assert not target.exists()
    target.mkdir()  # an empty directory is a fine place to write to
    write_dataset(target, 4, 2, SIZE, 1)
    assert (target / "done.json").is_file()
    assert len(rows(target, "metadata.csv")) == 24
