import functools

import numpy as np
import pytest
from batchgenerators.utilities.file_and_folder_operations import load_json

from nnunet_anomaly.planners.anomaly import derived_settings, nnUNetPlannerAnomaly, nnUNetPlannerAnomalyTiny
from nnunet_anomaly.settings import AnomalySettings, all_fields

DATASET = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "bone": 1, "cartilage": 2}}


def test_radii_follow_the_size_of_the_image():
    knee = derived_settings(DATASET, np.array([160, 384, 384]), np.array([0.7, 0.365, 0.365]))
    assert knee.corruption.radius_mm == pytest.approx((2.8, 11.2), abs=0.01)  # a tenth of 112 mm
    assert knee.roi.labels == (1, 2)
    hippocampus = derived_settings(DATASET, np.array([36, 50, 36]), np.array([1.0, 1.0, 1.0]))
    assert hippocampus.corruption.radius_mm == pytest.approx((1.0, 3.6), abs=0.01)
    flat = derived_settings(DATASET, np.array([1, 256, 256]), np.array([5.0, 0.5, 0.5]))
    assert flat.corruption.radius_mm[1] == pytest.approx(12.8)  # a single slice does not count as an axis


def planner(monkeypatch, tmp_path, cls, shape, spacing_mm):
    """A planner for one case of this shape, without any file but dataset.json and the fingerprint."""
    import json

    names = {"nnUNet_raw": tmp_path / "raw", "nnUNet_preprocessed": tmp_path / "preprocessed"}
    for variable, folder in names.items():
        monkeypatch.setenv(variable, str(folder))
        (folder / "Dataset101_Knee").mkdir(parents=True)
    (names["nnUNet_raw"] / "Dataset101_Knee" / "imagesTr").mkdir()
    description = {**DATASET, "numTraining": 100, "file_ending": ".nii.gz"}
    (names["nnUNet_raw"] / "Dataset101_Knee" / "dataset.json").write_text(json.dumps(description))
    properties = {"mean": 0, "std": 1, "percentile_00_5": -1, "percentile_99_5": 1, "median": 0, "min": -1, "max": 1}
    fingerprint = {
        "spacings": [list(spacing_mm)] * 4,
        "shapes_after_crop": [list(shape)] * 4,
        "foreground_intensity_properties_per_channel": {"0": properties},
        "median_relative_size_after_cropping": 1.0,
    }
    path = names["nnUNet_preprocessed"] / "Dataset101_Knee" / "dataset_fingerprint.json"
    path.write_text(json.dumps(fingerprint))
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    made = cls("Dataset101_Knee")
    monkeypatch.setattr(made, "determine_reader_writer", lambda: type("SimpleITKIO", (), {}))
    return made


@pytest.mark.parametrize("cls", [nnUNetPlannerAnomaly, nnUNetPlannerAnomalyTiny])
def test_the_inpainting_patch_holds_the_whole_joint_at_about_1_5_mm(monkeypatch, tmp_path, cls):
    made = planner(monkeypatch, tmp_path, cls, (160, 384, 384), (0.7, 0.3646, 0.3646))
    made.plan_experiment()
    plans = load_json(str(tmp_path / "preprocessed" / "Dataset101_Knee" / f"{made.plans_identifier}.json"))
    whole = plans["configurations"]["3d_inpainting"]
    extent_mm = np.array(whole["spacing"]) * whole["patch_size"]
    assert (extent_mm >= np.array([112, 140, 140]) * 0.98).all()
    assert whole["normalization_schemes"] == ["ZScoreClipped01Normalization"]
    assert whole["batch_size"] == plans["anomaly"]["inpainting"]["batch_size"] == 2
    if cls is nnUNetPlannerAnomaly:
        assert whole["spacing"] == pytest.approx([1.46, 1.46, 1.46], abs=0.02)
    assert plans["anomaly"]["preset"] == "robust" and plans["anomaly"]["roi"]["labels"] == [1, 2]
    assert plans["foreground_intensity_properties_per_channel"]["0"]["anomaly_clip_sd"] == 5


def test_small_images_keep_their_own_spacing(monkeypatch, tmp_path):
    made = planner(monkeypatch, tmp_path, nnUNetPlannerAnomaly, (36, 50, 36), (1.0, 1.0, 1.0))
    made.plan_experiment()
    plans = load_json(str(tmp_path / "preprocessed" / "Dataset101_Knee" / f"{made.plans_identifier}.json"))
    assert plans["configurations"]["3d_inpainting"]["spacing"] == [1.0, 1.0, 1.0]
    assert plans["configurations"]["2d_inpainting"]["spacing"] == [1.0, 1.0]


@pytest.mark.parametrize(
    "plans_name", ["nnUNetAnomalyTinyPlans", "nnUNetWholeVolumePlans_16voxels", "nnUNetMultiPlanarTinyPlans"]
)
def test_what_planning_derives_is_marked_so(planned_whole, planned_planar, plans_name):
    """Changing to a preset would throw it away otherwise."""
    folder = planned_whole.root / "nnUNet_preprocessed" / "Dataset101_Tiny"
    settings = AnomalySettings.from_plans(load_json(str(folder / f"{plans_name}.json")))
    preset, marked = AnomalySettings.for_preset("robust"), 0
    for key, entry in all_fields():
        planned, usual = (functools.reduce(getattr, key.split("."), one) for one in (settings, preset))
        assert planned == usual or entry.metadata["derived"], key
        marked += planned != usual
    assert marked
