"""An image as a DICOM file that cannot pass for a patient's: Secondary Capture, marked as synthetic throughout.

Like the PNG file's, its bytes are a function of the pixels and the record: no time, no host, and UIDs derived from
what the image was made of.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.sequence import Sequence
from pydicom.uid import UID, ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from medsyn import __version__
from medsyn.disk import fingerprint
from medsyn.generation.write.png import NOTICE
from medsyn.modality_names import base_modality
from medsyn.records import ImageRecord

_CODES = {"OCT": "OPT", "CT": "CT", "X-Ray": "DX", "MRI": "MR", "Fundus": "OP"}
_LONG_TEXT = 10240  # characters of a VR LT


def uid(*parts: Any) -> str:
    """A UID that depends on `parts` alone: a UUID's number under 2.25 (PS3.5 B.2)."""
    return f"2.25.{int(fingerprint(parts)[:32], 16)}"


def encode_dicom(picture: np.ndarray, record: Mapping[str, Any]) -> bytes:
    """A DICOM file of uint8 pixels [H, W, 1 or 3].

    Args:
        picture: what the PNG file shows.
        record: the image's record in the manifest.
    """
    made_by = (record["model_fingerprint"], record.get("config_fingerprint"))
    instance = uid("instance", *made_by, record["mode"], record["id"], record["replicate"], record["seed"])
    data = Dataset()
    data.SpecificCharacterSet = "ISO_IR 192"
    data.SOPClassUID = SecondaryCaptureImageStorage
    data.SOPInstanceUID = UID(instance)
    data.SyntheticData = "YES"
    _describe(data, record, made_by)
    _add_equipment(data)
    _add_pixels(data, picture)
    data.file_meta = FileMetaDataset()
    data.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = UID(instance)
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    stream = io.BytesIO()
    dcmwrite(stream, data, enforce_file_format=True)
    return stream.getvalue()


def _describe(data: Dataset, record: Mapping[str, Any], made_by: tuple[Any, ...]) -> None:
    """Patient (nobody), study, series and image, and how the image was made."""
    data.PatientName = "SYNTHETIC^NOT A PATIENT"
    data.PatientID = f"SYNTHETIC-{fingerprint([*made_by, record['id']])[:16]}"
    data.PatientBirthDate = data.PatientSex = ""
    data.StudyInstanceUID = uid("study", *made_by, record["id"])
    data.StudyDate = data.StudyTime = data.ReferringPhysicianName = data.StudyID = data.AccessionNumber = ""
    data.StudyDescription = "Synthetic data, not for diagnosis"
    data.SeriesInstanceUID = uid("series", *made_by, record["mode"], record["id"])
    data.Modality = _CODES[base_modality(record["modality"])]
    data.SeriesNumber = 1
    data.SeriesDescription = f"Synthetic {record['modality']}, {record['mode']}"
    data.InstanceNumber = record["replicate"] + 1
    data.PatientOrientation = data.Laterality = ""
    data.ImageType = ["DERIVED", "SECONDARY"]
    data.DerivationDescription = NOTICE
    facts = {key: record[key] for key in ("prompt", "seed", "attempt", "selector", "policy") if record[key] is not None}
    data.ImageComments = "; ".join(f"{key}: {value}" for key, value in facts.items())[:_LONG_TEXT]
    data.BurnedInAnnotation = "NO"
    data.LossyImageCompression = "00"


def _add_equipment(data: Dataset) -> None:
    """What made the image: synthesizing equipment (CID 7005), no acquisition."""
    data.ConversionType = "SYN"
    data.Manufacturer = data.SecondaryCaptureDeviceManufacturer = "medsyn"
    data.ManufacturerModelName = "medsyn"
    data.SoftwareVersions = __version__
    purpose = Dataset()
    purpose.CodeValue, purpose.CodingSchemeDesignator, purpose.CodeMeaning = "109100", "DCM", "Synthesizing Equipment"
    equipment = Dataset()
    equipment.PurposeOfReferenceCodeSequence = Sequence([purpose])
    equipment.Manufacturer = equipment.ManufacturerModelName = "medsyn"
    equipment.SoftwareVersions = __version__
    data.ContributingEquipmentSequence = Sequence([equipment])


def _add_pixels(data: Dataset, picture: np.ndarray) -> None:
    """The pixels; a grey image gets the window that shows every value unchanged."""
    height, width, channels = picture.shape
    data.Rows, data.Columns, data.SamplesPerPixel = height, width, channels
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 8, 8, 7, 0
    if channels == 3:
        data.PhotometricInterpretation, data.PlanarConfiguration = "RGB", 0
    else:
        data.PhotometricInterpretation = "MONOCHROME2"
        data.WindowCenter, data.WindowWidth = "128", "256"
    content = np.ascontiguousarray(picture).tobytes()
    data.add_new("PixelData", "OB", content + b"\0" * (len(content) % 2))


def add_dicom(record: ImageRecord, picture: np.ndarray) -> tuple[ImageRecord, bytes]:
    """The record with its DICOM file's name, size and hash, and the file."""
    content = encode_dicom(picture, record)
    return {
        **record,
        "dicom": f"{str(record['file']).rpartition('.')[0]}.dcm",
        "dicom_bytes": len(content),
        "dicom_sha256": hashlib.sha256(content).hexdigest(),
    }, content
