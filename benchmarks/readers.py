"""How fast are image files read, compared with the libraries that are read with otherwise?

    python benchmarks/readers.py

Makes one file of each kind in a temporary directory and reads it in turns: with medsyn, which gives one picture of it,
checked, windowed and made square, and with the usual loaders of arrays, each where it is installed. CPU seconds do not
depend on what else the machine does; a ratio is a loader's time divided by medsyn's, so above 1 medsyn is faster. A
ratio is the median of those of the single turns.

Then it runs `medsyn plan` twice on a campaign of `--images` PNG files: what the first run has read the second knows.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from medsyn.data.images.pixels import fit_square
from medsyn.data.images.read import read_image
from medsyn.user_cache import CACHE_VARIABLE

MEDSYN, FITTED = "medsyn, the picture", "medsyn, and the square"
Way = Callable[[Path], object]


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--side", type=int, default=256, help="of the volume and, times 2 and 12, of the pictures")
    parser.add_argument("--images", type=int, default=10_000, help="of the campaign that is planned; 0: none")
    parser.add_argument("--resolution", type=int, default=256, help="of the square")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        for path in write_files(Path(directory), args.side):
            size = f"{path.stat().st_size / 2**20:.1f} MiB"
            print(f"{path.name}, {size}, median of {args.repeat} turns:")
            times = measure(path, ways(path, args.resolution), args.repeat)
            for name, seconds in times.items():
                ratio = f"{ratio_to_medsyn(times, name):6.2f}" if name not in (MEDSYN, FITTED) else ""
                print(f"  {name:<34} {1000 * statistics.median(seconds):8.1f} ms {ratio}".rstrip())
        if args.images:
            print(f"`medsyn plan`, {args.images:,} PNG files of {args.side} x {args.side} pixels:")
            for name, (wall, cpu) in plan_twice(Path(directory), args.images, args.side).items():
                print(f"  {name:<34} {wall:8.2f} s, {cpu:.2f} CPU s")
    return 0


def write_files(folder: Path, side: int) -> Iterator[Path]:
    """A volume as `.nii.gz`, its head at the front and across, a DICOM slice, and a large grey PNG."""
    volume = nib.Nifti1Image(anatomy(side, side, side * 5 // 8), np.diag([1.0, 1.0, 1.2, 1.0]))
    for name, codes in (("axial.nii.gz", "RAS"), ("sagittal.nii.gz", "PSR")):
        order = nib.orientations.axcodes2ornt(codes)
        change = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), order)
        nib.save(volume.as_reoriented(change), folder / name)
        yield folder / name
    yield write_dicom(folder / "slice.dcm", anatomy(2 * side, 2 * side, 1)[..., 0])
    picture = anatomy(12 * side, 12 * side, 1)[..., 0]
    Image.fromarray((picture / 4).clip(0, 255).astype(np.uint8)).save(folder / "picture.png")
    yield folder / "picture.png"


def anatomy(columns: int, rows: int, planes: int) -> np.ndarray:
    """int16 [columns, rows, planes]: an ellipsoid with structure, and noise; 0 to about 800."""
    x, y, z = np.ogrid[-1 : 1 : columns * 1j, -1 : 1 : rows * 1j, -1 : 1 : planes * 1j]
    z = z if planes > 1 else np.zeros_like(z)
    inside = (x / 0.7) ** 2 + (y / 0.85) ** 2 + (z / 0.9) ** 2 < 1
    values = np.where(inside, 400 + 200 * np.sin(9 * x) * np.cos(7 * y) * np.cos(5 * z), 10)
    return np.maximum(values + np.random.default_rng(0).normal(0, 8, values.shape), 0).astype(np.int16)


def write_dicom(path: Path, values: np.ndarray) -> Path:
    """An uncompressed CT slice of int16 [rows, columns]."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.Modality, dataset.PhotometricInterpretation, dataset.SamplesPerPixel = "CT", "MONOCHROME2", 1
    dataset.Rows, dataset.Columns = values.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -400
    dataset.PixelData = values.astype("<i2").tobytes()
    dataset.save_as(path, enforce_file_format=True)
    return path


def plan_twice(folder: Path, count: int, side: int) -> dict[str, tuple[float, float]]:
    """Seconds and CPU seconds of planning a campaign of `count` pictures for the first and for the second time."""
    picture = (anatomy(side, side, 1)[..., 0] / 4).clip(0, 255).astype(np.uint8)
    (folder / "images").mkdir()
    for number in range(count):
        Image.fromarray(np.roll(picture, divmod(number, side), axis=(0, 1))).save(folder / "images" / f"{number}.png")
    rows = [f"images/{number}.png,CT: picture {number},CT,{number}" for number in range(count)]
    (folder / "metadata.csv").write_text("\n".join(["path,Text,modality,patient_id", *rows]) + "\n")
    ratings = [f"images/{number}.png,{1 + number % 3},CT,3,CT: picture" for number in range(30)]
    (folder / "ratings.csv").write_text("\n".join(["image_path,rating,modality,expert_level,prompt", *ratings]) + "\n")
    config = folder / "plan.yaml"
    config.write_text(f"data: {{table: {folder / 'metadata.csv'}}}\nmodel_paths: {{stable_diffusion: embedded}}\n")
    time.sleep(3)  # a file of this moment is not taken for known: it may yet be written
    environment = {**os.environ, CACHE_VARIABLE: str(folder / "cache")}
    command = [
        sys.executable,
        "-m",
        "medsyn",
        "plan",
        str(config),
        "--cluster",
        "local",
        f"campaign.dir={folder / 'campaign'}",
    ]
    times = {}
    for name in ("the first time", "the second time"):
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
        times[name] = wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return times


def ways(path: Path, resolution: int) -> dict[str, Way]:
    """The ways to read a file of this kind, by name, of the libraries that are installed; medsyn's is first."""
    found: dict[str, Way] = {MEDSYN: read_image, FITTED: lambda path: fit_square(read_image(path).pixels, resolution)}
    if path.name.endswith(".nii.gz"):
        found["nibabel, get_fdata(float32)"] = lambda path: nib.load(path).get_fdata(dtype=np.float32)
    elif path.suffix == ".dcm":
        found["pydicom, pixel_array"] = lambda path: pydicom.dcmread(path).pixel_array
    else:
        found["Pillow, float32"] = lambda path: np.asarray(Image.open(path), dtype=np.float32)
    if importlib.util.find_spec("SimpleITK"):
        found["SimpleITK, ReadImage"] = _simple_itk
    if importlib.util.find_spec("monai"):
        found["MONAI, LoadImage"] = _monai
    return found


def _simple_itk(path: Path) -> object:
    import SimpleITK

    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))


def _monai(path: Path) -> object:
    from monai.transforms import LoadImage

    return LoadImage(image_only=True)(str(path))


def measure(path: Path, by_name: dict[str, Way], repeat: int) -> dict[str, list[float]]:
    """CPU seconds of every way, in turns, after one turn that is not counted: it imports and fills the page cache."""
    times: dict[str, list[float]] = {name: [] for name in by_name}
    for turn in range(repeat + 1):
        for name, way in by_name.items():
            started = time.process_time()
            way(path)
            if turn:
                times[name].append(time.process_time() - started)
    return times


def ratio_to_medsyn(times: dict[str, list[float]], name: str) -> float:
    """How many times as long as medsyn a way took: the median over the turns."""
    return statistics.median(other / own for other, own in zip(times[name], times[MEDSYN], strict=True))


if __name__ == "__main__":
    sys.exit(main())
