"""A phantom as a file in the format of its kind: PNG, JPEG, DICOM or NIfTI, reproducible to the byte.

Reading a file properly (rescale and window, canonical axes, radiological display) shows what `phantom.render` shows.
"""

from __future__ import annotations

import gzip
import io
import uuid

import nibabel as nib
import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, CTImageStorage, ExplicitVRLittleEndian

from medsyn.data.phantoms.draw import CT_LEVEL, CT_LOWEST, CT_WIDTH, display_to_hu
from medsyn.data.phantoms.phantom import Phantom, draw_values, render

_ORIENTATIONS = ("RAS", "LPS", "PIR", "LAS")
_SLICES = 5  # odd: the finding is in the middle one
_MRI_WHITE = 1000
_FIELD_MM = {"Chest X-ray": 400.0, "Chest CT": 380.0, "Brain MRI": 230.0, "Breast MRI": 340.0}


def encode(phantom: Phantom, size: int, suffix: str) -> bytes:
    """The phantom, `size` pixels to a side, as the content of a file with this suffix."""
    if suffix == "dcm":
        return _dicom(phantom, size)
    if suffix == "nii.gz":
        return _nifti(phantom, size)
    pixels = np.round(render(phantom, size) * 255).astype(np.uint8)
    picture = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
    stream = io.BytesIO()
    if suffix == "jpg":
        picture.save(stream, "JPEG", quality=95, subsampling=0)
    else:
        picture.save(stream, "PNG")
    return stream.getvalue()


def _dicom(phantom: Phantom, size: int) -> bytes:
    """A single-frame 12-bit DICOM: chest CT in Hounsfield units, or a chest X-ray, every second one MONOCHROME1."""
    is_ct = phantom.kind == "Chest CT"
    spacing = _FIELD_MM[phantom.kind] / size

    def uid(level: str) -> str:
        name = f"medsyn phantom/{phantom.seed}/{phantom.kind}/{phantom.index}/{phantom.quality}/{level}"
        return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, name).int}"

    data = Dataset()
    data.SOPClassUID = CTImageStorage if is_ct else ComputedRadiographyImageStorage
    data.SOPInstanceUID = uid("instance")
    data.StudyInstanceUID, data.SeriesInstanceUID = uid("study"), uid("series")
    data.FrameOfReferenceUID = uid("frame of reference")
    data.Modality = "CT" if is_ct else "CR"
    data.PatientName, data.PatientID = "PHANTOM^MEDSYN", f"PHANTOM{phantom.index:06d}"
    data.PatientBirthDate = data.PatientSex = data.StudyDate = data.StudyTime = ""
    data.AccessionNumber = data.ReferringPhysicianName = data.StudyID = ""
    data.PatientComments = "Procedural phantom, no patient"
    data.Manufacturer = "medsyn phantoms"
    data.BodyPartExamined = "CHEST"
    data.SeriesNumber = data.InstanceNumber = 1
    data.Rows = data.Columns = size
    data.SamplesPerPixel = 1
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    values = draw_values(phantom, size)[..., 0]
    if is_ct:
        data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        data.PhotometricInterpretation = "MONOCHROME2"
        data.ImagePositionPatient = [-spacing * (size - 1) / 2, -spacing * (size - 1) / 2, 0]
        data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]  # columns run to the patient's left, rows to the back
        data.PixelSpacing = [spacing, spacing]
        data.SliceThickness = 5
        data.RescaleSlope, data.RescaleIntercept, data.RescaleType = 1, int(CT_LOWEST), "HU"
        data.WindowCenter, data.WindowWidth = CT_LEVEL, CT_WIDTH
        stored = display_to_hu(values) - CT_LOWEST
    else:
        inverted = phantom.index // 2 % 2 == 1
        data.ImageType = ["ORIGINAL", "PRIMARY"]
        data.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
        data.PatientOrientation = ["L", "F"]  # columns run to the patient's left, rows to the feet
        data.ImagerPixelSpacing = [spacing, spacing]
        data.ViewPosition = "PA"
        data.WindowCenter, data.WindowWidth = 2048, 4096
        stored = (1 - values if inverted else values) * 4095
    data.PixelData = np.clip(np.round(stored), 0, 4095).astype("<u2").tobytes()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    stream = io.BytesIO()
    data.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def _nifti(phantom: Phantom, size: int) -> bytes:
    """A gzipped volume of a few axial slices, the phantom in the middle one, in one of several orientations."""
    slices = []
    for offset in range(-(_SLICES // 2), _SLICES // 2 + 1):
        zoom = float(np.sqrt(1 - (0.3 * offset) ** 2))  # as through a ball: smaller away from the middle
        values = np.clip(draw_values(phantom, size, zoom)[..., 0], 0, 1)
        # The picture's right is the patient's left and its top the front: RAS+ runs the other way along both.
        slices.append(values[::-1, ::-1].T)
    spacing = _FIELD_MM[phantom.kind] / size
    volume = np.round(np.stack(slices, axis=-1) * _MRI_WHITE).astype(np.int16)
    affine = np.diag([spacing, spacing, 5.0, 1.0])
    affine[:3, 3] = -affine.diagonal()[:3] * (np.array(volume.shape) - 1) / 2
    canonical = nib.Nifti1Image(volume, affine)
    wanted = nib.orientations.axcodes2ornt(_ORIENTATIONS[phantom.index // 2 % len(_ORIENTATIONS)])
    image = canonical.as_reoriented(nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), wanted))
    image.header.set_xyzt_units("mm")
    image.header["cal_min"], image.header["cal_max"] = 0, _MRI_WHITE
    image.header["descrip"] = b"medsyn phantom"
    return gzip.compress(image.to_bytes(), mtime=0)
