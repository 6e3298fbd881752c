"""Plans for a network that sees one echo."""

import pytest

from nnunet_anomaly.errors import InputError
from nnunet_anomaly.planners.mese import nnUNetPlannerMESE, nnUNetPlannerMESETiny

ECHOES = ("MESE_echo1", "MESE_echo2", "MESE_echo3")
SHAPE, SPACING_MM = [21, 384, 269], [3.0, 0.313, 0.446]  # of the paper's table 1


@pytest.fixture
def plan(plan_from):
    """Plans for cases of these voxel sizes, which are there by name alone."""

    def make(cls=nnUNetPlannerMESE, spacings_mm=(SPACING_MM,) * 4, channels=ECHOES):
        def touch(folder):
            for index in range(len(spacings_mm)):
                for channel in range(len(channels)):
                    (folder / "imagesTr" / f"knee_{index}_{channel:04d}.nii.gz").touch()
                (folder / "labelsTr" / f"knee_{index}.nii.gz").touch()

        shapes = [SHAPE] * len(spacings_mm)
        return plan_from(cls, shapes, list(spacings_mm), labels={"cartilage": 1}, channels=channels, write_images=touch)

    return make


@pytest.mark.parametrize("channels", [ECHOES, ("CT", "noNorm"), ("T2",)])
def test_all_channels_have_the_papers_intensities(plan, channels):
    plans = plan(channels=channels)
    assert list(plans["configurations"]) == ["2d"] and plans["plans_name"] == "nnUNetMESEPlans"
    configuration = plans["configurations"]["2d"]
    assert configuration["normalization_schemes"] == ["MedianQuartileNormalization"] * len(channels)
    assert configuration["use_mask_for_norm"] == [False] * len(channels)
    assert configuration["data_identifier"] == "nnUNetMESEPlans_2d" and configuration["batch_dice"]
    assert configuration["spacing"] == SPACING_MM[1:]  # nothing is said across slices, so nothing resampled
    assert all(patch >= size for patch, size in zip(configuration["patch_size"], SHAPE[1:], strict=True))


@pytest.mark.parametrize(
    ("channels", "probabilities", "echo"), [(ECHOES, [0.2, 0.6, 0.2], 2), (("T2",), [1.0], 1), (ECHOES[:2], None, 2)]
)
def test_the_block_is_there_and_knows_a_single_echo(plan, channels, probabilities, echo):
    block = plan(channels=channels)["anomaly"]
    assert block["roi"]["labels"] == [1]
    assert block["mese"]["prediction_echo"] == echo
    assert block["mese"]["echo_probabilities"] == (probabilities or [0.2, 0.6, 0.2])  # else the trainer asks for them


def test_the_tiny_one_is_small(plan):
    plans = plan(nnUNetPlannerMESETiny)
    configuration = plans["configurations"]["2d"]
    assert plans["plans_name"] == "nnUNetMESETinyPlans" and list(plans["configurations"]) == ["2d"]
    assert configuration["architecture"]["arch_kwargs"]["features_per_stage"][0] == 8
    assert configuration["batch_size"] <= 6
    assert configuration["normalization_schemes"] == ["MedianQuartileNormalization"] * 3


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_thick_slices_come_first_wherever_they_lie_in_the_file(plan, axis):
    spacing_mm = [0.3, 0.4]
    spacing_mm.insert(axis, 3.0)
    plans = plan(spacings_mm=[spacing_mm] * 3)
    assert plans["transpose_forward"][0] == axis and plans["configurations"]["2d"]["spacing"] == [0.3, 0.4]


@pytest.mark.parametrize(
    ("spacings_mm", "message"),
    [
        ([[1.0, 1.0, 1.0]] * 3, "knee_0 has voxels of 1 x 1 x 1 mm"),
        ([[0.5, 0.49, 0.5]] * 3, "knee_0 has voxels of 0.5 x "),
        ([SPACING_MM, SPACING_MM, [0.4, 0.4, 3.0]], "knee_2 has voxels of 0.4 x 0.4 x 3 mm"),
    ],
)
def test_where_slices_cannot_be_told_it_is_an_error(plan, spacings_mm, message):
    with pytest.raises(InputError, match=message + ".*slices as they were acquired.*-pl nnUNetPlannerAnomaly"):
        plan(spacings_mm=spacings_mm)
