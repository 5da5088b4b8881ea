"""The parts of benchmarks/readers.py: its files can be read in every way, and what its ratios mean."""

from __future__ import annotations

from pathlib import Path


def test_every_file_is_read_in_turns_by_medsyn_and_by_a_peer(tmp_path: Path) -> None:
    import readers

    names = []
    for path in readers.write_files(tmp_path, 32):
        found = readers.ways(path, 16)
        times = readers.measure(path, found, 2)
        assert list(times)[:2] == [readers.MEDSYN, readers.FITTED] and len(times) >= 3
        assert {len(seconds) for seconds in times.values()} == {2}
        assert found[readers.FITTED](path).shape == (16, 16, 3)
        names.append(path.name)
    assert names == ["axial.nii.gz", "sagittal.nii.gz", "slice.dcm", "picture.png"]


def test_the_two_volumes_show_one_picture(tmp_path: Path) -> None:
    import readers

    axial, sagittal = (readers.read_image(path) for path in list(readers.write_files(tmp_path, 32))[:2])
    assert (axial.pixels == sagittal.pixels).all()
    assert "orient: PSR to RAS" in sagittal.steps and "slice: axial, 11 of 20" in sagittal.steps


def test_a_ratio_above_1_means_that_medsyn_is_faster() -> None:
    import readers

    times = {readers.MEDSYN: [1.0, 2.0, 4.0], "other": [2.0, 2.0, 12.0]}
    assert readers.ratio_to_medsyn(times, "other") == 2.0
