"""Which slices of a preprocessed dataset are learnt from, by its label maps as they are stored."""

from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunet_anomaly.errors import InputError
from nnunet_anomaly.settings import AnomalySettings
from nnunet_anomaly.trainers.slice_dataset import StoredLabelMaps, healthy_slices

SETTINGS = AnomalySettings().with_values({"roi.labels": (1, 2), "slices.lesion_labels": (2,)})


class HalfSize:
    """Two cases whose slices lie along the last axis of the file, in-plane at half the size: labels of 1 alone."""

    identifiers = ("knee_0", "knee_1")

    def load_case(self, case):
        properties = {"bbox_used_for_cropping": [[0, 5], [0, 8], [0, 8]]}
        return np.zeros((1, 5, 4, 4)), np.ones((1, 5, 4, 4), np.int8), None, properties


@pytest.fixture
def stored(tmp_path):
    folder = tmp_path / "gt_segmentations"
    folder.mkdir()
    for case, lesions in (("knee_0", [1, 4]), ("knee_1", []), ("knee_2", [])):
        labels = np.ones((8, 8, 5), np.uint8)
        labels[3, 3, lesions] = 2  # a pixel, which nnU-Net's resampling of labels drops
        sitk.WriteImage(sitk.GetImageFromArray(labels), str(folder / f"{case}.nii.gz"))
    plans = SimpleNamespace(image_reader_writer_class=SimpleITKIO, transpose_forward=[2, 0, 1])
    return StoredLabelMaps(tmp_path, ".nii.gz", plans)


def with_list(tmp_path, *rows):
    path = tmp_path / "healthy.csv"
    path.write_text("case,slice\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return SETTINGS.with_values({"slices.file": str(path)})


def test_slices_with_a_lesion_of_one_pixel_are_left_out(stored):
    assert healthy_slices(HalfSize(), stored, SETTINGS) == {"knee_0": [0, 2, 3], "knee_1": [0, 1, 2, 3, 4]}


def test_a_list_names_the_only_slices(stored, tmp_path):
    settings = with_list(tmp_path, "knee_0,0", "knee_0,1", "knee_2,4")
    assert healthy_slices(HalfSize(), stored, settings) == {"knee_0": [0]}


def test_a_list_that_names_what_is_not_there_is_an_error(stored, tmp_path):
    with pytest.raises(InputError, match="cases that the dataset does not have: knee_7"):
        healthy_slices(HalfSize(), stored, with_list(tmp_path, "knee_0,0", "knee_7,0"))
    with pytest.raises(InputError, match="names slice 5 of knee_1, whose slices are 0 to 4"):
        healthy_slices(HalfSize(), stored, with_list(tmp_path, "knee_1,5"))
    (stored.folder / "knee_1.nii.gz").unlink()
    with pytest.raises(InputError, match=r"knee_1\.nii\.gz does not exist.*nnUNetv2_preprocess"):
        healthy_slices(HalfSize(), stored, SETTINGS)
