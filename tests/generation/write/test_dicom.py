from __future__ import annotations

import io
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import SecondaryCaptureImageStorage

from medsyn import disk
from medsyn.data.images.read import read_image
from medsyn.generation import block_store
from medsyn.generation.verify.campaign import Images
from medsyn.generation.write.dicom import encode_dicom, uid
from tests.helpers.generation_campaign import Campaign

RECORD: dict[str, Any] = {
    **{"id": "ct-7", "replicate": 2, "prompt": "CT: Lungenrundherd, 5 µm, 胸部", "modality": "CT", "mode": "filtered"},
    **{"model_fingerprint": "a" * 64, "config_fingerprint": "b" * 64, "seed": 2**62 + 1, "attempt": 3},
    **{"selector": 0.75, "policy": 0.5},
}
MODALITIES = {"OCT": "OPT", "CT": "CT", "X-Ray": "DX", "MRI": "MR", "Fundus": "OP"}


def picture(channels: int = 1, height: int = 21, width: int = 25) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (height, width, channels), dtype=np.uint8)


def read(channels: int = 1, **changes: Any) -> Dataset:
    return dcmread(io.BytesIO(encode_dicom(picture(channels), RECORD | changes)))


@pytest.mark.parametrize(
    ("channels", "modality"),
    [(1, "CT"), (3, "Fundus"), (1, "X-Ray"), (1, "MRI"), (1, "OCT"), (1, "Chest CT"), (1, "Brain MRI")],
)
def test_the_projects_reader_and_pydicom_see_the_pixels(tmp_path: Path, channels: int, modality: str) -> None:
    path = tmp_path / "image.dcm"
    path.write_bytes(encode_dicom(picture(channels), RECORD | {"modality": modality}))
    read = read_image(path, modality)
    assert read.synthetic, "the project's own reader sees the mark"
    assert np.array_equal(np.rint(read.pixels * 255).astype(np.uint8), picture(channels))
    data = dcmread(path)
    assert np.array_equal(data.pixel_array.reshape(picture(channels).shape), picture(channels))
    assert data.Modality == MODALITIES[modality.split()[-1]]
    assert data.PhotometricInterpretation == ("RGB" if channels == 3 else "MONOCHROME2")


def test_the_file_says_that_it_is_synthetic_and_what_made_it() -> None:
    data = read()
    assert data.SOPClassUID == data.file_meta.MediaStorageSOPClassUID == SecondaryCaptureImageStorage
    assert data[0x0008, 0x001C].value == "YES" and data.ConversionType == "SYN"
    (equipment,) = data.ContributingEquipmentSequence
    (purpose,) = equipment.PurposeOfReferenceCodeSequence
    assert (purpose.CodeValue, purpose.CodingSchemeDesignator) == ("109100", "DCM")
    assert purpose.CodeMeaning == "Synthesizing Equipment" and equipment.Manufacturer == "medsyn"
    assert RECORD["prompt"] in data.ImageComments and str(RECORD["seed"]) in data.ImageComments


def test_the_patient_is_obviously_nobody() -> None:
    data = read()
    assert str(data.PatientName) == "SYNTHETIC^NOT A PATIENT" and data.PatientID.startswith("SYNTHETIC-")
    assert len(data.PatientID) <= 64
    for keyword in ("PatientBirthDate", "PatientSex", "StudyDate", "ReferringPhysicianName", "AccessionNumber"):
        assert data[keyword].value in ("", None)


def test_uids_are_new_for_each_image_and_the_same_when_it_is_made_again() -> None:
    same = read()
    assert read().SOPInstanceUID == same.SOPInstanceUID
    for changes in ({"replicate": 1}, {"id": "x"}, {"seed": 1}, {"model_fingerprint": "c"}, {"mode": "baseline"}):
        assert read(**changes).SOPInstanceUID != same.SOPInstanceUID
    assert read(replicate=1).SeriesInstanceUID == same.SeriesInstanceUID, "replicates of a prompt are one series"
    assert read(mode="baseline").StudyInstanceUID == same.StudyInstanceUID
    for value in (same.SOPInstanceUID, same.StudyInstanceUID, same.SeriesInstanceUID):
        assert value.startswith("2.25.") and value.is_valid and int(value[5:]) < 2**128
    assert uid("a", "b") != uid("ab")


def test_the_bytes_are_a_function_of_pixels_and_record() -> None:
    assert encode_dicom(picture(), RECORD) == encode_dicom(picture(), RECORD)
    assert b"Date" not in encode_dicom(picture(), RECORD)


@pytest.mark.parametrize("channels", [1, 3])
def test_dciodvfy_finds_no_error(tmp_path: Path, channels: int) -> None:
    program = shutil.which("dciodvfy")
    if program is None:
        pytest.skip("dciodvfy (Debian's dicom3tools) is not installed")
    path = tmp_path / "image.dcm"
    path.write_bytes(encode_dicom(picture(channels), RECORD | {"modality": "Fundus" if channels == 3 else "CT"}))
    result = subprocess.run([program, str(path)], capture_output=True, text=True, check=False)
    told = result.stdout + result.stderr
    assert "SCImage" in told or "SecondaryCapture" in told
    errors = [line for line in told.splitlines() if line.startswith("Error")]
    # Synthetic Data came into the standard in 2023; older releases of the program do not know it
    assert not [line for line in errors if "(0x0008,0x001c)" not in line], told


@pytest.mark.parametrize("output", ["png", "webdataset"])
def test_a_campaign_writes_a_dicom_file_of_every_image_and_verifies_it(campaign: Campaign, output: str) -> None:
    both = campaign.override(dicom=True, output=output, modes=["filtered"])
    both.run()
    count = 0
    for number in range(3):
        block = both.block("filtered", number)
        for record in disk.read_jsonl(block / "manifest.jsonl"):
            files = block_store.stored_files(block, record)
            if record["file"] is not None:
                data = dcmread(io.BytesIO(files["dicom"].read()))
                assert data.InstanceNumber == record["replicate"] + 1
                count += 1
    assert count > 3
    images = Images(both.config, both.directory, "filtered", "CT", block_store.read_blocks(both.config, "CT"))
    assert list(images.findings([(0, 3)])) == []
    if output == "png":
        next(both.block("filtered", 0).glob("*.dcm")).unlink()
        assert ["is missing" in str(finding) for finding in images.findings([(0, 3)])] == [True]
