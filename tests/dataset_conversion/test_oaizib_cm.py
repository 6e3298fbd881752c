"""The OAIZIB-CM converter on a tiny release."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_anomaly.cli.main import main

NAMES = [f"oaizib_{number:03d}" for number in (1, 2, 3, 4, 405)]


@pytest.fixture
def release(tmp_path, tools) -> Path:
    """Four training cases and one test case, labels 1 to 5."""
    folder = tmp_path / "OAIZIB-CM"
    for seed, name in enumerate(NAMES):
        grey, label = tools.knee(seed)
        label[:6][label[:6] == 4] = 5
        part = "Ts" if name == NAMES[-1] else "Tr"
        for kind, array, suffix in (("images", grey, "_0000"), ("labels", label, "")):
            path = folder / f"{kind}{part}" / f"{name}{suffix}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(tools.with_geometry(array), str(path))
    (folder / "info").mkdir()
    (folder / "info" / "kneeSideInfo.csv").write_text("".join(f"{name}.nii.gz,right\n" for name in NAMES[:4]))
    (folder / "info" / "subInfo_train.csv").write_text(
        "\ufeffCMT-ID,SubjectID,KLGrade\n1,9001104,3\n2,9002430,\n3,9002430,0\n", encoding="utf-8"
    )
    return folder


def convert(release: Path, *options: str) -> int:
    return main(["convert", "oaizib-cm", str(release), "-d", "102", "-np", "1", *options])


def load(raw: Path, name: str):
    return json.loads((raw / "Dataset102_KneeOAIZIBCM" / f"{name}.json").read_text())


def read(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def test_release_is_converted(release, raw):
    assert convert(release) == 0
    folder = raw / "Dataset102_KneeOAIZIBCM"
    for name in NAMES:
        part = "Ts" if name == NAMES[-1] else "Tr"
        for kind, suffix in (("images", "_0000"), ("labels", "")):
            file = f"{kind}{part}/{name}{suffix}.nii.gz"
            np.testing.assert_array_equal(read(folder / file), read(release / file))
    assert load(raw, "dataset")["labels"]["lateral_tibial_cartilage"] == 5
    cases = load(raw, "cases")
    assert cases[NAMES[0]]["laterality"] == "right"
    assert cases[NAMES[-1]]["laterality"] is None
    assert [cases[name]["kl_grade"] for name in NAMES] == [3, None, 0, None, None]
    assert cases[NAMES[1]]["subject"] == cases[NAMES[2]]["subject"] == "9002430"
    splits = load(raw, "splits_final")
    assert len(splits) == 3  # subjects
    assert all(len({NAMES[1], NAMES[2]} & set(split["val"])) != 1 for split in splits)
    assert all(NAMES[-1] not in split["train"] + split["val"] for split in splits)


def spoil(path: Path, change) -> None:
    image = sitk.ReadImage(str(path))
    sitk.WriteImage(change(image), str(path))


def not_finite(image: sitk.Image) -> sitk.Image:
    image = sitk.Cast(image, sitk.sitkFloat32)
    image[3, 3, 3] = float("nan")
    return image


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: os.truncate(folder / "imagesTr/oaizib_002_0000.nii.gz", 900), "cut off or damaged"),
        (lambda folder: spoil(folder / "imagesTr/oaizib_002_0000.nii.gz", not_finite), "holds NaN or infinity"),
        (lambda folder: spoil(folder / "imagesTr/oaizib_002_0000.nii.gz", lambda image: image * 0), "every voxel is 0"),
        (lambda folder: spoil(folder / "labelsTr/oaizib_002.nii.gz", lambda image: image + 1), "label map has 6"),
        (lambda folder: spoil(folder / "labelsTr/oaizib_002.nii.gz", lambda image: image[1:]), "voxels"),
        (lambda folder: (folder / "labelsTr/oaizib_002.nii.gz").unlink(), "one label file is needed; found: none"),
        (
            lambda folder: sitk.WriteImage(
                sitk.ReadImage(str(folder / "labelsTr/oaizib_002.nii.gz")), str(folder / "labelsTs/oaizib_002.nii.gz")
            ),
            "found: labelsTr/oaizib_002.nii.gz, labelsTs/oaizib_002.nii.gz",
        ),
        (
            lambda folder: (folder / "labelsTr/oaizib_002.nii.gz").rename(folder / "labelsTs/oaizib_002.nii.gz"),
            "its label in the other",
        ),
    ],
)
def test_damaged_case_is_named(release, raw, damage, message):
    damage(release)
    assert convert(release) == 1
    failed = load(raw, "integrity_report")["failed"]
    assert list(failed) == ["oaizib_002"]
    assert message in failed["oaizib_002"]
    assert load(raw, "dataset")["numTraining"] == 3


def test_label_that_lies_otherwise_is_noted(release, raw):
    def turned(image: sitk.Image) -> sitk.Image:
        flipped = sitk.GetImageFromArray(sitk.GetArrayFromImage(image)[:, ::-1])
        flipped.CopyInformation(image)
        return flipped

    spoil(release / "labelsTr/oaizib_002.nii.gz", turned)
    assert convert(release) == 0
    assert "fits better otherwise: best flip y" in load(raw, "cases")["oaizib_002"]["notes"][0]


def test_subject_on_both_sides_of_the_releases_parts_is_refused(release, raw, capsys):
    with open(release / "info" / "subInfo_train.csv", "a", encoding="utf-8") as handle:
        handle.write("405,9001104,2\n")
    assert convert(release) == 2
    assert "oaizib_001 would be trained on" in capsys.readouterr().err


def test_wrong_folder_is_refused(tmp_path, raw, capsys):
    assert convert(tmp_path) == 2
    assert "no imagesTr and labelsTr" in capsys.readouterr().err
