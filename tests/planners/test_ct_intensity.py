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
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_anomaly.errors import InputError, SettingsError
from nnunet_anomaly.planners.ct_intensity import add_quartile_statistics, hu_counts, pooled_statistics, set_ct_scheme

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


def effective(plans, name):
    """Schemes and folder of a configuration, as nnU-Net resolves them."""
    resolved = PlansManager(plans)._internal_resolve_configuration_inheritance(name)
    return resolved["normalization_schemes"], resolved["data_identifier"]


def test_configurations_that_inherit_share_no_folder_with_other_schemes():
    plans = plans_for("CTNormalization")
    configurations = plans["configurations"]
    configurations["grandchild"] = {"inherits_from": "child", "data_identifier": "P_grandchild"}
    configurations["child"] = {"inherits_from": "3d_fullres", "data_identifier": "P_child"}
    configurations["same_folder"] = {"inherits_from": "child"}
    configurations["own_scheme"] = {"inherits_from": "3d_inpainting", "normalization_schemes": ["CTNormalization"]}
    configurations["other_scheme"] = {"inherits_from": "2d", "normalization_schemes": ["ZScoreNormalization"]}
    set_ct_scheme(plans, "quartile_case")
    for name in ("child", "grandchild"):
        assert effective(plans, name) == (["QuartileNormalization"], f"P_{name}_quartile_case")
    assert effective(plans, "same_folder") == effective(plans, "child")
    assert configurations["3d_cascade_fullres"] == {"inherits_from": "3d_fullres"}
    assert effective(plans, "own_scheme") == (["QuartileNormalization"], "P_3d_inpainting_quartile_case")
    assert effective(plans, "other_scheme") == (["ZScoreNormalization"], "P_2d")
    set_ct_scheme(plans, "nnunet")
    for name in ("child", "grandchild"):
        assert effective(plans, name) == (["CTNormalization"], f"P_{name}")


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


def test_counts_of_a_case(tmp_path):
    files = [tmp_path / "a_0000.nii.gz", tmp_path / "a_0001.nii.gz"]
    for path, values in zip(files, ([-5.0, 2.4, 7.0, 1e6], [1.0, -1.0, -1.0, 1.0]), strict=True):
        sitk.WriteImage(sitk.GetImageFromArray(np.array([[values]])), str(path))
    first, second = hu_counts(SimpleITKIO, [str(path) for path in files], [0, 1])
    assert {hu: first[hu] for hu in np.flatnonzero(first)} == {2: 1, 7: 1, 2**15 - 1: 1}
    assert {hu: second[hu] for hu in np.flatnonzero(second)} == {1: 2}


@pytest.fixture
def raw_ct(tmp_path):
    """Three cases of two channels, and their plans; only the second channel is CT."""
    rng = np.random.default_rng(0)
    for case in "abc":
        for folder, name in (("imagesTr", f"{case}_0000"), ("imagesTr", f"{case}_0001"), ("labelsTr", case)):
            (tmp_path / folder).mkdir(exist_ok=True)
            image = sitk.GetImageFromArray(rng.integers(1, 200, (8, 9, 10)).astype(np.int16))
            sitk.WriteImage(image, str(tmp_path / folder / f"{name}.nii.gz"))
    plans = plans_for("ZScoreNormalization", "CTNormalization")
    plans["image_reader_writer"] = "SimpleITKIO"
    return tmp_path, plans, {"numTraining": 3, "file_ending": ".nii.gz"}


def test_statistics_are_of_the_ct_channel_of_all_cases(raw_ct):
    folder, plans, dataset_json = raw_ct
    add_quartile_statistics(plans, folder, dataset_json, 1)
    values = np.concatenate([sitk.GetArrayFromImage(sitk.ReadImage(str(p))) for p in folder.glob("*/*_0001.nii.gz")])
    low, high = np.quantile(values, (0.25, 0.75), method="inverted_cdf")
    first, second = (plans["foreground_intensity_properties_per_channel"][key] for key in "01")
    assert "anomaly_quartile_mean" not in first
    assert second["anomaly_quartile_mean"] == pytest.approx(values.mean())
    assert second["anomaly_quartile_scale"] == high - low


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize(
    "damage,message",
    [
        (lambda images: cut(images / "b_0001.nii.gz", -200), "b_0001.nii.gz is cut off or damaged"),
        (lambda images: cut(images / "b_0001.nii.gz", 100), "b_0001.nii.gz is not readable as an image|cut off"),
        (lambda images: (images / "b_0001.nii.gz").unlink(), "of b 1 of 2 channels are there"),
        (
            lambda images: [path.unlink() for path in images.glob("b_*")],
            "images of 2 training cases; numTraining .* is 3. Label maps without image: b",
        ),
        (lambda images: [path.unlink() for path in images.iterdir()], "images of 0 training cases"),
    ],
    ids=["cut off", "100 bytes", "channel absent", "case absent", "empty"],
)
def test_raw_images_that_are_not_whole_are_refused(raw_ct, damage, message):
    folder, plans, dataset_json = raw_ct
    damage(folder / "imagesTr")
    before = json.dumps(plans)
    with pytest.raises(InputError, match=message):
        add_quartile_statistics(plans, folder, dataset_json, 1)
    assert json.dumps(plans) == before


@pytest.fixture(scope="module")
def ct(planned):
    """The tiny dataset once more, as CT (103), with the plans that the other has."""
    raw, preprocessed = (planned.root / name for name in ("nnUNet_raw", "nnUNet_preprocessed"))
    shutil.copytree(raw / "Dataset101_Tiny", raw / DATASET)
    shutil.copytree(preprocessed / "Dataset101_Tiny", preprocessed / DATASET)
    for folder in (raw / DATASET, preprocessed / DATASET):
        description = load_json(str(folder / "dataset.json"))
        (folder / "dataset.json").write_text(json.dumps({**description, "channel_names": {"0": "CT"}}))
    path = preprocessed / DATASET / f"{PLANS}.json"
    text = path.read_text().replace("Dataset101_Tiny", DATASET).replace('"ZScoreNormalization"', '"CTNormalization"')
    path.write_text(text)
    yield planned
    shutil.rmtree(raw / DATASET)
    shutil.rmtree(preprocessed / DATASET)


def plan(workspace, plans, *more):
    return workspace.run("nnunet-anomaly", "plan", "-d", "103", "-p", plans, "-np", "1", *more).stdout


def raw_images(workspace):
    paths = sorted((workspace.root / "nnUNet_raw" / DATASET / "imagesTr").iterdir())
    return paths, [sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in paths]


def test_nnunets_own_command_normalises_by_quartiles_of_all_cases(ct):
    folder = ct.root / "nnUNet_preprocessed" / DATASET
    output = plan(ct, PLANS, "--set", "intensity.ct=quartile_fingerprint", "--save-as", "pooled")
    assert "nnUNetv2_preprocess -d 103 -plans_name pooled" in output
    before = sorted(path.name for path in (folder / f"{PLANS}_2d").iterdir())
    ct.run("nnUNetv2_preprocess", "-d", "103", "-plans_name", "pooled", "-c", "2d", "-np", "1", here=True)
    (written,) = folder.glob(f"{PLANS}_2d_quartile_fingerprint_*")
    _, images = raw_images(ct)
    values = np.rint(np.concatenate([image[image >= 0] for image in images]))
    low, high = np.quantile(values, (0.25, 0.75), method="inverted_cdf")
    expected = (np.maximum(images[0], 0) - values.mean()) / (high - low)
    np.testing.assert_allclose(blosc2.open(str(written / "case_00.b2nd"))[0], expected, atol=1e-3)
    assert sorted(path.name for path in (folder / f"{PLANS}_2d").iterdir()) == before


def test_every_case_by_itself_and_back(ct):
    folder = ct.root / "nnUNet_preprocessed" / DATASET
    plan(ct, PLANS, "--set", "intensity.ct=quartile_case", "--save-as", "by_case")
    plans = PlansManager(str(folder / "by_case.json"))
    paths, images = raw_images(ct)
    configuration = plans.get_configuration("3d_fullres")
    description = load_json(str(folder / "dataset.json"))
    preprocessor = DefaultPreprocessor(verbose=False)
    data, _, _ = preprocessor.run_case([str(paths[0])], None, plans, configuration, description)
    values = images[0][images[0] >= 0]
    low, high = np.percentile(values, (25, 75))
    np.testing.assert_allclose(data[0], (np.maximum(images[0], 0) - values.mean()) / (high - low), atol=1e-3)
    plan(ct, "by_case", "--set", "intensity.ct=nnunet", "--save-as", "back")
    back, first = (load_json(str(folder / f"{name}.json")) for name in ("back", PLANS))
    assert back["configurations"] == first["configurations"]


def test_the_pooled_statistics_stay_when_cases_are_added(ct):
    folder = ct.root / "nnUNet_preprocessed" / DATASET
    plan(ct, PLANS, "--set", "intensity.ct=quartile_fingerprint", "--save-as", "first")
    raw = ct.root / "nnUNet_raw" / DATASET
    shutil.copyfile(raw / "imagesTr" / "case_00_0000.nii.gz", raw / "imagesTr" / "case_99_0000.nii.gz")
    shutil.copyfile(raw / "labelsTr" / "case_00.nii.gz", raw / "labelsTr" / "case_99.nii.gz")
    description = load_json(str(raw / "dataset.json"))
    (raw / "dataset.json").write_text(json.dumps({**description, "numTraining": description["numTraining"] + 1}))
    plan(ct, "first", "--set", "seed=3", "--save-as", "second")
    plan(ct, PLANS, "--set", "intensity.ct=quartile_fingerprint", "--save-as", "anew")
    key = "foreground_intensity_properties_per_channel"
    first, second, anew = (load_json(str(folder / f"{name}.json"))[key] for name in ("first", "second", "anew"))
    assert first == second != anew
