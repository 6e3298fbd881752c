"""``intensity.ct``: from the setting to what nnU-Net's own command has written."""

import json
import shutil

import blosc2
import numpy as np
import pytest
import SimpleITK as sitk
from batchgenerators.utilities.file_and_folder_operations import load_json
from hypothesis import given
from hypothesis import strategies as st

from nnunet_anomaly.errors import SettingsError
from nnunet_anomaly.planners.ct_intensity import hu_counts, pooled_statistics, set_ct_scheme

PLANS = "nnUNetAnomalyTinyPlans"
DATASET = "Dataset103_Ct"


def plans_for(*schemes):
    """Plans of two segmentation configurations and one for inpainting."""
    configurations = {
        name: {"normalization_schemes": list(schemes), "data_identifier": f"P_{name}"} for name in ("2d", "3d_fullres")
    }
    configurations["3d_cascade_fullres"] = {"inherits_from": "3d_fullres"}
    configurations["3d_inpainting"] = {
        "normalization_schemes": ["ZScoreClipped01Normalization"] * len(schemes),
        "data_identifier": "P_3d_inpainting",
    }
    properties = {str(channel): {"mean": 0.0} for channel in range(len(schemes))}
    return {"configurations": configurations, "foreground_intensity_properties_per_channel": properties}


def test_the_scheme_is_in_the_name_of_the_folder_and_goes_back():
    plans = plans_for("ZScoreNormalization", "CTNormalization")
    before = json.dumps(plans)
    for _ in range(2):
        set_ct_scheme(plans, "quartile_case")
        for name in ("2d", "3d_fullres"):
            configuration = plans["configurations"][name]
            assert configuration["normalization_schemes"] == ["ZScoreNormalization", "QuartileNormalization"]
            assert configuration["data_identifier"] == f"P_{name}_quartile_case"
    assert plans["configurations"]["3d_inpainting"]["data_identifier"] == "P_3d_inpainting"
    set_ct_scheme(plans, "nnunet")
    assert json.dumps(plans) == before


def test_other_statistics_are_another_folder():
    plans = plans_for("CTNormalization")
    with pytest.raises(SettingsError, match=r"intensity\.ct=quartile_fingerprint"):
        set_ct_scheme(plans, "quartile_fingerprint")
    names = []
    for mean in (100.0, 100.0, 101.0):
        statistics = {"anomaly_quartile_mean": mean, "anomaly_quartile_scale": 5.0}
        plans["foreground_intensity_properties_per_channel"]["0"].update(statistics)
        set_ct_scheme(plans, "quartile_fingerprint")
        names.append(plans["configurations"]["2d"]["data_identifier"])
    assert names[0] == names[1] != names[2]
    set_ct_scheme(plans, "quartile_case")
    assert plans["configurations"]["2d"]["data_identifier"] == "P_2d_quartile_case"


@pytest.mark.parametrize("ct", ["nnunet", "quartile_case", "quartile_fingerprint"])
def test_without_ct_nothing_changes(ct):
    plans = plans_for("ZScoreNormalization")
    before = json.dumps(plans)
    set_ct_scheme(plans, ct)
    assert json.dumps(plans) == before


@given(st.lists(st.integers(0, 40), min_size=1, max_size=200))
def test_pooled_statistics_are_those_of_all_values(values):
    mean, scale = pooled_statistics(np.bincount(values, minlength=50))
    low, high = np.quantile(values, (0.25, 0.75), method="inverted_cdf")
    assert mean == pytest.approx(np.mean(values))
    assert scale == pytest.approx((high - low) or np.std(values) or 1)


def test_no_voxel_from_0_hu_on():
    assert pooled_statistics(np.zeros(10, int)) == (0.0, 1.0)


def test_counts_of_a_case():
    class Reader:
        def read_images(self, files):
            return np.array([[[[-5.0, 2.4, 7.0, 1e6]]], [[[1.0, -1.0, -1.0, 1.0]]]]), {}

    first, second = hu_counts(Reader, [], [0, 1])
    assert {hu: first[hu] for hu in np.flatnonzero(first)} == {2: 1, 7: 1, 2**15 - 1: 1}
    assert {hu: second[hu] for hu in np.flatnonzero(second)} == {1: 2}


@pytest.fixture(scope="module")
def ct(planned):
    """The tiny dataset as CT (103), planned anew from the fingerprint of the other."""
    raw = planned.root / "nnUNet_raw" / DATASET
    if not raw.is_dir():
        shutil.copytree(planned.root / "nnUNet_raw" / "Dataset101_Tiny", raw)
        description = load_json(str(raw / "dataset.json"))
        (raw / "dataset.json").write_text(json.dumps({**description, "channel_names": {"0": "CT"}}))
        command = ["nnUNetv2_plan_and_preprocess", "-d", "103", "-pl", "nnUNetPlannerAnomalyTiny", "-c", "2d"]
        planned.run(*command, "-np", "1", "-npfp", "1")
    return planned


def test_nnunets_own_command_normalises_by_quartiles(ct):
    folder = ct.root / "nnUNet_preprocessed" / DATASET
    stock = sorted(path.name for path in (folder / f"{PLANS}_2d").iterdir())
    command = ["nnunet-anomaly", "plan", "-d", "103", "-p", PLANS, "-np", "1"]
    raw = [
        sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        for path in sorted((ct.root / "nnUNet_raw" / DATASET / "imagesTr").iterdir())
    ]
    pooled = np.rint(np.concatenate([image[image >= 0] for image in raw]))
    for kind in ("quartile_case", "quartile_fingerprint"):
        output = ct.run(*command, "--set", f"intensity.ct={kind}", "--save-as", kind).stdout
        assert f"nnUNetv2_preprocess -d 103 -plans_name {kind}" in output
        ct.run("nnUNetv2_preprocess", "-d", "103", "-plans_name", kind, "-c", "2d", "-np", "1")
        (written,) = folder.glob(f"{PLANS}_2d_{kind}*")
        values = pooled if kind == "quartile_fingerprint" else raw[0][raw[0] >= 0]
        method = "inverted_cdf" if kind == "quartile_fingerprint" else "linear"
        low, high = np.quantile(values, (0.25, 0.75), method=method)
        expected = (np.maximum(raw[0], 0) - values.mean()) / (high - low)
        found = blosc2.open(str(written / "case_00.b2nd"))[0]
        np.testing.assert_allclose(found, expected, atol=1e-3)
    assert sorted(path.name for path in (folder / f"{PLANS}_2d").iterdir()) == stock
    ct.run(*command[:4], "-p", "quartile_case", "--set", "intensity.ct=nnunet", "--save-as", "back")
    back, first = (load_json(str(folder / f"{name}.json")) for name in ("back", PLANS))
    assert back["configurations"] == first["configurations"]


def test_the_pooled_statistics_stay_when_cases_are_added(ct):
    folder = ct.root / "nnUNet_preprocessed" / DATASET
    command = ["nnunet-anomaly", "plan", "-d", "103", "-np", "1", "--set", "intensity.ct=quartile_fingerprint"]
    ct.run(*command, "-p", PLANS, "--save-as", "first")
    properties = load_json(str(folder / "first.json"))["foreground_intensity_properties_per_channel"]
    images = ct.root / "nnUNet_raw" / DATASET / "imagesTr"
    added = images / "case_99_0000.nii.gz"
    shutil.copyfile(images / "case_00_0000.nii.gz", added)
    labels = added.parents[1] / "labelsTr"
    shutil.copyfile(labels / "case_00.nii.gz", labels / "case_99.nii.gz")
    try:
        ct.run(*command, "-p", "first", "--set", "seed=3", "--save-as", "second")
    finally:
        added.unlink()
        (labels / "case_99.nii.gz").unlink()
    assert load_json(str(folder / "second.json"))["foreground_intensity_properties_per_channel"] == properties
