"""Plans in which one patch holds every image whole."""

import re
import warnings

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_anomaly.errors import InputError
from nnunet_anomaly.planners import whole_volume
from nnunet_anomaly.planners.whole_volume import nnUNetPlannerWholeVolume, nnUNetPlannerWholeVolume_16voxels


@pytest.fixture
def planner(plan_from):
    """Make plans for heads with these shapes and spacings (z, y, x), whose images have this direction."""

    def make(cls, shapes, spacings_mm, directions=None, memory_gb=8):
        def write_images(raw):
            for number in range(len(shapes)):
                image = sitk.Image(4, 4, 4, sitk.sitkUInt8)
                if directions:
                    image.SetDirection(directions[number])
                sitk.WriteImage(image, str(raw / "imagesTr" / f"case_{number}_0000.nii.gz"))
                sitk.WriteImage(image, str(raw / "labelsTr" / f"case_{number}.nii.gz"))

        return plan_from(cls, shapes, spacings_mm, memory_gb, labels={"brain": 1}, write_images=write_images)

    return make


def test_the_largest_brain_fills_the_volume_and_the_smallest_fits(planner):
    plans = planner(nnUNetPlannerWholeVolume, [[150, 180, 140], [75, 170, 163]], [[1, 1, 1], [2, 1, 1]])
    assert plans["plans_name"] == "nnUNetWholeVolumePlans"
    whole, twin = (plans["configurations"][name] for name in ("3d_whole", "2d_whole"))
    assert whole["patch_size"] == [64, 64, 64] and twin["patch_size"] == [64, 64]
    np.testing.assert_allclose(np.array(whole["spacing"]) * 64, np.array([150, 180, 163]) * 1.05)
    assert twin["spacing"] == whole["spacing"] and twin["data_identifier"] == whole["data_identifier"]
    assert whole["use_mask_for_norm"] == [True] and not whole["batch_dice"]
    assert whole["normalization_schemes"] == ["ZScoreClipped01Normalization"]
    assert whole["batch_size"] == twin["batch_size"] == plans["anomaly"]["vae"]["batch_size"] == 32
    three, two = (each["architecture"]["arch_kwargs"] for each in (whole, twin))
    assert three["features_per_stage"] == two["features_per_stage"] == [32, 64, 128, 256]
    assert three["strides"] == [[2, 2, 2]] * 4 and two["strides"] == [[2, 2]] * 4
    assert three["conv_op"].endswith("Conv3d") and two["norm_op"].endswith("BatchNorm2d")
    assert {"3d_fullres", "2d", "3d_inpainting", "2d_inpainting"} < set(plans["configurations"])


@pytest.mark.filterwarnings("ignore:3d_whole of 96 voxels")
def test_another_size_by_name_and_a_smaller_batch_by_memory(planner):
    shapes, spacings_mm = [[100, 100, 100]], [[1, 1, 1]]
    plans = planner(whole_volume.nnUNetPlannerWholeVolume_96voxels, shapes, spacings_mm, memory_gb=24)
    assert plans["plans_name"] == "nnUNetWholeVolumePlans_96voxels"
    assert plans["configurations"]["3d_whole"]["patch_size"] == [96, 96, 96]
    assert plans["anomaly"]["erasing"]["max_slices"] == 48
    batches = [plans["configurations"]["3d_whole"]["batch_size"]]
    for memory_gb in (8, 1):
        tight = planner(whole_volume.nnUNetPlannerWholeVolume_96voxels, shapes, spacings_mm, memory_gb=memory_gb)
        batches.append(tight["configurations"]["3d_whole"]["batch_size"])
    assert batches == [32, 8, 2]
    for wrong in ("nnUNetPlannerWholeVolume_50voxels", "nnUNetPlannerHalfVolume"):
        with pytest.raises(AttributeError):
            getattr(whole_volume, wrong)


def test_a_size_above_the_memory_target_is_warned_of(planner):
    with pytest.warns(UserWarning, match=r"192 voxels .* about 11\.0 GB with a batch of 2, .* target is 8 GB"):
        planner(whole_volume.nnUNetPlannerWholeVolume_192voxels, [[190, 190, 190]], [[1, 1, 1]])


def unplanned(voxels, memory_gb=8):
    made = nnUNetPlannerWholeVolume.__new__(nnUNetPlannerWholeVolume)
    made.voxels, made.UNet_vram_target_GB = voxels, memory_gb
    return made


def test_the_warning_of_memory_names_the_largest_size_that_fits():
    with pytest.warns(UserWarning) as said:
        unplanned(192).warn_of_memory(2)
    (fitting,) = re.findall(r"nnUNetPlannerWholeVolume_(\d+)voxels stays below", str(said[0].message))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        unplanned(int(fitting)).warn_of_memory(2)
    with pytest.warns(UserWarning, match=f"_{fitting}voxels stays below it"):
        unplanned(int(fitting) + 16).warn_of_memory(2)
    with pytest.warns(UserWarning, match="No size stays below it"):
        unplanned(64, memory_gb=0.001).warn_of_memory(2)


def test_a_size_that_no_image_has_is_refused():
    assert unplanned(512).size == 512
    with pytest.raises(InputError, match="1000000 voxels are too many; 512"):
        _ = unplanned(1_000_000).size


def test_stages_leave_four_voxels_or_more():
    expected = {16: 2, 32: 3, 48: 3, 64: 4, 96: 4, 128: 5, 144: 4, 160: 5}
    assert {size: whole_volume.stages_of(size) for size in expected} == expected


def test_the_size_follows_from_the_memory_target_and_the_code_from_the_size(planner):
    cls = whole_volume.nnUNetPlannerWholeVolume_byMemory
    sizes = []
    for memory_gb in (2, 8, 40, 1000):
        plans = planner(cls, [[150, 190, 140]], [[1, 1, 1]], memory_gb=memory_gb)
        configuration = plans["configurations"]["3d_whole"]
        sizes.append(configuration["patch_size"][0])
        stages = len(configuration["architecture"]["arch_kwargs"]["features_per_stage"])
        assert stages == whole_volume.stages_of(sizes[-1]) and configuration["batch_size"] >= 8
    assert plans["plans_name"] == "nnUNetWholeVolumePlans_byMemory"
    assert sizes == sorted(set(sizes)) and sizes[-1] == 208  # a twentieth more than 190, in steps of 16
    vae = planner(nnUNetPlannerWholeVolume, [[150, 190, 140]], [[1, 1, 1]])["anomaly"]["vae"]
    assert (vae["latent_size_3d"], vae["latent_size_2d"]) == (512, 128)


def test_the_estimate_counts_the_linear_layers(planner, monkeypatch):
    made = whole_volume.nnUNetPlannerWholeVolume.__new__(nnUNetPlannerWholeVolume)
    # 64^3: 16384 numbers to 1024 and from 512; 4 bytes, 4 copies
    without = made.memory_gb(64, 32) - 4 * 4e-9 * 3 * 16384 * 512
    assert without == pytest.approx(made.memory_gb(64, 64) - made.memory_gb(64, 32))
    narrow = whole_volume.nnUNetPlannerWholeVolumeTiny.__new__(whole_volume.nnUNetPlannerWholeVolumeTiny)
    assert narrow.deepest_numbers(16, 3) == 16 * 4**3
    assert narrow.memory_gb(16, 2) - narrow.memory_gb(16, 1) < narrow.memory_gb(16, 1)


# columns are the directions of x, y and z: straight, flipped, slightly oblique; then sagittal slices
STRAIGHT = (1, 0, 0, 0, 1, 0, 0, 0, 1)
FLIPPED = (-1, 0, 0, 0, -1, 0, 0, 0, 1)
OBLIQUE = (0.995, -0.0998, 0, 0.0998, 0.995, 0, 0, 0, 1)
SAGITTAL = (0, 0, 1, 1, 0, 0, 0, 1, 0)


def test_axes_of_the_body_come_from_the_headers(planner):
    cases = [[20, 20, 20]] * 3, [[1, 1, 1]] * 3
    found = planner(nnUNetPlannerWholeVolume_16voxels, *cases, [STRAIGHT, OBLIQUE, STRAIGHT])["anomaly"]
    assert (found["erasing"]["side_axis"], found["erasing"]["slice_axis"]) == (2, 0)
    assert found["vae"]["orientation"] == "LPS"
    found = planner(nnUNetPlannerWholeVolume_16voxels, *cases, [SAGITTAL] * 3)["anomaly"]
    assert (found["erasing"]["side_axis"], found["erasing"]["slice_axis"]) == (0, 1)
    assert found["vae"]["orientation"] == "PSL"
    for other, lies in ((FLIPPED, "RAS"), (SAGITTAL, "PSL")):
        with pytest.raises(InputError, match=f"lie differently.*case_0: LPS.*case_2: {lies}"):
            planner(nnUNetPlannerWholeVolume_16voxels, *cases, [STRAIGHT, STRAIGHT, other])


def test_thick_slices_come_first_in_nnunets_order(planner):
    """nnU-Net puts the axis of the thickest slices first; the axes of the body follow it."""
    plans = planner(nnUNetPlannerWholeVolume_16voxels, [[60, 20, 64]] * 2, [[1, 3, 1]] * 2, [STRAIGHT] * 2)
    assert plans["transpose_forward"][0] == 1
    erasing = plans["anomaly"]["erasing"]
    assert plans["transpose_forward"][erasing["side_axis"]] == 2
    assert plans["transpose_forward"][erasing["slice_axis"]] == 0
    extents = np.array(plans["configurations"]["3d_whole"]["spacing"]) * 16
    np.testing.assert_allclose(extents[0], 60 * 1.05)  # 20 slices of 3 mm
