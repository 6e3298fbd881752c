"""Steps of ``nnunet-anomaly predict`` that need no network: what counts as bone, and compartments of its lesions."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_anomaly.errors import SettingsError
from nnunet_anomaly.workflow.bml_lesions import CaseFiles
from nnunet_anomaly.workflow.predict_lesions import measure_case, whole_bones

SAGITTAL = (0.0, 0.0, -1.0, 1.0, 0.0, 0.0, 0.0, -1.0, 0.0)  # slices from left to right, rows down, columns to the back
SPACING_MM = (3.0, 1.0, 1.0)
FEMUR, LESION, TIBIA, CLOSING_MM = 1, 2, 3, 5.0


def ball(shape, centre, radius_mm, spacing_mm=SPACING_MM):
    places = np.indices(shape).reshape(3, -1).T
    far = np.linalg.norm((places - centre) * spacing_mm, axis=1)
    return (far <= radius_mm).reshape(shape)


@pytest.fixture(scope="module")
def knee():
    """Femur with two condyles and a shaft, and the plateau of a tibia 2 mm below it."""
    labels = np.zeros((20, 60, 56), np.uint8)
    z, y, x = np.indices(labels.shape)
    labels[((x - 26) / 13.0) ** 2 + ((z - 10) / 8.0) ** 2 + (y > 24) < 1] = FEMUR
    for centre in (5, 15):
        labels[((x - 28) / 17.0) ** 2 + ((y - 28) / 15.0) ** 2 + ((z - centre) / 4.5) ** 2 < 1] = FEMUR
    labels[2:19, 45:56, 10:46] = TIBIA
    return labels


# lesions, most of whose voxels lie in the named compartment of a right knee
LESIONS = {
    "in the lateral condyle": ((15, 28, 36), 7.0, "lateral"),
    "at the surface of the lateral condyle": ((18, 28, 34), 4.0, "lateral"),
    "at the lower surface of the medial condyle": ((5, 42, 32), 5.0, "medial"),
    "in the trochlea": ((6, 26, 16), 4.0, "trochlea"),
    "in the tibia": ((10, 51, 26), 4.0, "elsewhere"),
}


def volumes(folder: Path, labels: np.ndarray, lesion: np.ndarray, femur=(FEMUR,), others=(TIBIA,)) -> dict[str, float]:
    """Volume by compartment, in mm^3, of a case with this label map, by ``measure_case``."""
    folder.mkdir()
    bone = whole_bones(labels, (*femur, LESION, *others), CLOSING_MM, SPACING_MM, -1)
    assert bone[lesion].mean() > 0.9
    arrays = {"image": np.float32(100 + 50 * lesion), "labels": labels, "bone": bone, "mask": lesion & bone}
    for name, array in arrays.items():
        image = sitk.GetImageFromArray(array if array.dtype != bool else array.astype(np.uint8))
        image.SetSpacing(SPACING_MM[::-1])
        image.SetDirection(SAGITTAL)
        sitk.WriteImage(image, str(folder / f"{name}.nii.gz"))
    image, label_map, bone_path, mask = (folder / f"{name}.nii.gz" for name in arrays)
    record = folder / "case.json"
    measure_case("case", CaseFiles(image, image, bone_path), label_map, mask, femur, others, "right", record)
    row = json.loads(record.read_text(encoding="utf-8"))["case"]
    return {name: row[f"volume_{name}_mm3"] for name in ("medial", "lateral", "trochlea", "elsewhere")}


@pytest.mark.parametrize("name", LESIONS)
def test_a_lesion_has_the_same_compartment_however_the_label_map_shows_it(knee, tmp_path, name):
    centre, radius_mm, expected = LESIONS[name]
    lesion = ball(knee.shape, centre, radius_mm) & (knee > 0)
    plain = volumes(tmp_path / "plain", knee, lesion)
    assert max(plain, key=plain.get) == expected
    with_label = volumes(tmp_path / "label", np.where(lesion, LESION, knee).astype(np.uint8), lesion)
    as_hole = volumes(tmp_path / "hole", np.where(lesion, 0, knee).astype(np.uint8), lesion)
    assert with_label == plain
    assert max(as_hole, key=as_hole.get) == expected
    for compartment, volume_mm3 in as_hole.items():
        assert volume_mm3 == pytest.approx(plain[compartment], abs=0.1 * sum(plain.values()))


def test_without_another_bone_nothing_is_elsewhere(knee, tmp_path):
    femur = np.where(knee == FEMUR, FEMUR, 0).astype(np.uint8)
    lesion = ball(knee.shape, (15, 28, 36), 7.0) & (femur > 0)
    femur[lesion] = 0
    found = volumes(tmp_path / "case", femur, lesion, others=())
    assert found["elsewhere"] == 0 and found["lateral"] > 0.9 * lesion.sum() * 3


# --- what counts as bone ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing_mm", [(3.0, 1.0, 1.0), (3.0, 1.0, 3.0), (1.0, 1.0, 1.0)])
def test_bones_do_not_depend_on_the_order_of_axes(knee, spacing_mm):
    holed = knee[::2, 8:48:2, 6:50:2].copy()
    for centre in ((8, 10, 12), (2, 10, 10), (5, 4, 10)):
        holed[ball(holed.shape, centre, 4.0, (1, 1, 1))] = 0
    expected = whole_bones(holed, (FEMUR,), 1.5, spacing_mm, -1)
    assert (expected & (holed == 0)).any()
    for order in itertools.permutations(range(3)):
        turned_mm = tuple(spacing_mm[axis] for axis in order)
        found = whole_bones(holed.transpose(order), (FEMUR,), 1.5, turned_mm, -1)
        np.testing.assert_array_equal(found, expected.transpose(order))
        across = whole_bones(holed.transpose(order), (FEMUR,), 1.5, turned_mm, order.index(1))
        np.testing.assert_array_equal(across, whole_bones(holed, (FEMUR,), 1.5, spacing_mm, 1).transpose(order))


def test_wide_rings_of_bone_stay_open_and_what_is_enclosed_is_filled():
    labels = np.zeros((5, 60, 60), np.uint8)
    labels[:, 5:55, 5:55] = 1
    labels[:, 15:45, 15:45] = 0  # 900 mm^2, more than a disc of 15 mm
    labels[:, 7:9, 7:53] = 0  # closed, as narrow
    labels[4, 48:51, 20:40] = 0
    bone = whole_bones(labels, (1,), CLOSING_MM, SPACING_MM, -1)
    assert not bone[:, 21:39, 21:39].any() and bone[:, 7:9, 7:53].all() and bone[4, 48:51, 20:40].all()
    labels[[0, 4], 15:45, 15:45] = 1
    assert whole_bones(labels, (1,), CLOSING_MM, SPACING_MM, -1)[:, 5:55, 5:55].all()
    with pytest.raises(SettingsError, match="slice_axis is 3"):
        whole_bones(labels, (1,), CLOSING_MM, SPACING_MM, 3)


def test_lesions_in_the_end_slices_of_a_real_femur(real_data):
    """Every fourth slice of the real knee: as thick as in the images of the paper."""
    image = sitk.ReadImage(str(next((real_data / "knee_dess_labels").glob("*.nrrd"))))
    spacing_mm = tuple(size * step for size, step in zip(image.GetSpacing()[::-1], (4, 2, 2), strict=True))
    femur = (sitk.GetArrayFromImage(image)[::4, ::2, ::2] == 5).astype(np.uint8)
    whole = whole_bones(femur, (1,), CLOSING_MM, spacing_mm, -1)
    assert np.count_nonzero(whole & (femur == 0)) < 0.02 * np.count_nonzero(femur)
    first = np.flatnonzero(femur.any(axis=(1, 2)))[0]
    middle = np.rint(np.argwhere(femur[first + 2]).mean(axis=0)).astype(int)
    lesion = ball(femur.shape, (first + 2, *middle), 8.0, spacing_mm) & (femur > 0)
    femur[lesion] = 0
    assert whole_bones(femur, (1,), CLOSING_MM, spacing_mm, -1)[lesion].mean() > 0.9
