"""Same voxels in another order of axes are brought over exactly, all others are refused."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_anomaly.dataset_conversion.grids import on_grid_of, read_oriented, read_placed
from nnunet_anomaly.errors import GeometryError, InputError


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "PIR", "SAL"])
def test_same_voxels_in_any_order_of_axes_are_brought_over_exactly(tools, orientation):
    _, label = tools.knee(0)
    image = tools.with_geometry(np.zeros_like(label))
    moved = sitk.DICOMOrient(tools.with_geometry(label), orientation)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(on_grid_of(moved, image)), label)


def test_voxels_that_lie_elsewhere_are_refused(tools):
    _, label = tools.knee(0)
    moved = tools.with_geometry(label)
    moved.SetOrigin((50, -40, 30.2))
    with pytest.raises(GeometryError, match=r"0\.2 mm off"):
        on_grid_of(moved, tools.with_geometry(label))


def test_turned_volume_with_the_same_corners_is_refused():
    image = sitk.Image([10, 19, 5], sitk.sitkUInt8)
    image.SetSpacing((2.0, 1.0, 1.0))
    turned = sitk.Image([10, 19, 5], sitk.sitkUInt8)
    turned.SetSpacing((2.0, 1.0, 1.0))
    turned.SetDirection((0, 1, 0, 1, 0, 0, 0, 0, 1))
    with pytest.raises(GeometryError, match="lies up to 0 mm off"):
        on_grid_of(turned, image)


def test_images_of_heads_are_brought_into_one_orientation_exactly(tmp_path):
    array = np.random.default_rng(0).integers(0, 100, (4, 5, 6)).astype(np.int16)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((1.0, 2.0, 3.0))
    image.SetOrigin((5.0, -3.0, 2.0))
    image.SetDirection((0, 0, -1, 1, 0, 0, 0, 1, 0))  # as IXI: x to the back, y to the head, z to the right
    sitk.WriteImage(image, str(tmp_path / "head.nii.gz"))
    found = read_oriented(tmp_path / "head.nii.gz")
    assert found.GetDirection() == (1, 0, 0, 0, 1, 0, 0, 0, 1)
    assert found.GetSize() == (4, 6, 5)
    for index in ((0, 0, 0), (1, 2, 3), (3, 5, 4)):
        there = image.TransformPhysicalPointToIndex(found.TransformIndexToPhysicalPoint(index))
        assert found[index] == image[there]


@pytest.mark.parametrize(
    ("array", "affine", "message"),
    [
        (np.ones((4, 5, 6), np.int16), None, r"neither sform nor qform \(both codes are 0\)"),
        (np.ones((4, 5, 6), np.complex64), np.eye(4), "holds complex numbers. Give their magnitude"),
        (np.ones((5, 6), np.int16), np.eye(4)[[1, 2, 0, 3]], "is 2-D; a volume is needed"),
    ],
)
def test_files_that_do_not_tell_where_their_voxels_are_or_have_no_grey_values_are_named(
    tmp_path, array, affine, message
):
    nibabel.save(nibabel.Nifti1Image(array, affine), tmp_path / "head.nii.gz")
    for read in (read_placed, read_oriented):
        with pytest.raises(InputError, match=message):
            read(tmp_path / "head.nii.gz")


@pytest.mark.parametrize("which", ["sform", "qform"])
def test_one_of_sform_and_qform_is_enough(tmp_path, which):
    image = nibabel.Nifti1Image(np.ones((4, 5, 6), np.int16), np.eye(4))
    image.set_sform(np.eye(4), int(which == "sform"))
    image.set_qform(np.eye(4), int(which == "qform"))
    nibabel.save(image, tmp_path / "head.nii.gz")
    assert read_placed(tmp_path / "head.nii.gz").GetSize() == (4, 5, 6)
