import filecmp
import os

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_anomaly.cli.main import main
from nnunet_anomaly.errors import InputError, SettingsError
from nnunet_anomaly.files import load_json
from nnunet_anomaly.phantoms import brain_release
from nnunet_anomaly.phantoms.brain_cases import CaseKey, make_case
from nnunet_anomaly.phantoms.brain_release import (
    BRATS_RELEASES,
    BrainPhantom,
    make_brain_phantom,
    plan_cases,
    plan_healthy,
    plan_stroke,
    plan_tumour,
)

GRID = (32, 40, 36)
SEED = 2
PHANTOM = BrainPhantom(SEED, healthy=2, tumours=2, strokes=2, test=1, grid=GRID)


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    """BraTS 2021 and ATLAS 2.0, two cases of each kind and a test case of either release."""
    folder = tmp_path_factory.mktemp("brains") / "phantom"
    outcome = make_brain_phantom(folder, PHANTOM)
    assert len(outcome.done) == 8 and outcome.exit_code == 0
    return folder


def tree(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def release_tree(folder):
    return [name for name in tree(folder) if not name.startswith("truth/") and name != "phantom.json"]


def read(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def assert_same_bytes(first, second):
    assert tree(first) == tree(second)
    _, different, unreadable = filecmp.cmpfiles(first, second, tree(first), shallow=False)
    assert not different and not unreadable


def test_tree_is_the_releases_file_for_file(phantom):
    brats = "RSNA_ASNR_MICCAI_BraTS2021_TrainingData_16July2021"
    expected = ["IXI-T1/IXI002-Guys-0828-T1.nii.gz", "IXI-T1/IXI003-HH-0889-T1.nii.gz"]
    expected += [
        f"{brats}/{case}/{case}_{kind}.nii.gz"
        for case in ("BraTS2021_00000", "BraTS2021_00001")
        for kind in ("t1", "t1ce", "t2", "flair", "seg")
    ]
    expected += [
        f"RSNA_ASNR_MICCAI_BraTS2021_ValidationData/BraTS2021_09000/BraTS2021_09000_{kind}.nii.gz"
        for kind in ("t1", "t1ce", "t2", "flair")
    ]
    space = "ses-1_space-MNI152NLin2009aSym"
    for subject in ("r001s001", "r002s001"):
        start = f"ATLAS_2/Training/{subject[:4].upper()}/sub-{subject}/ses-1/anat/sub-{subject}_{space}"
        expected += [f"{start}_T1w.nii.gz", f"{start}_label-L_desc-T1lesion_mask.nii.gz"]
    expected += [f"ATLAS_2/Testing/R051/sub-r051s001/ses-1/anat/sub-r051s001_{space}_T1w.nii.gz"]
    assert release_tree(phantom) == sorted(expected)
    cases = ["IXI002-Guys-0828-T1", "IXI003-HH-0889-T1", "BraTS2021_00000", "BraTS2021_00001", "BraTS2021_09000"]
    strokes = ["sub-r001s001_ses-1", "sub-r002s001_ses-1", "sub-r051s001_ses-1"]
    truth = [f"truth/{kind}" for case in cases + strokes for kind in (f"brain/{case}.nii.gz", f"cases/{case}.json")]
    truth += [f"truth/lesions/{case}.nii.gz" for case in cases[2:] + strokes]
    assert sorted(set(tree(phantom)) - set(release_tree(phantom))) == sorted(
        [*truth, "truth/lesions.json", "phantom.json"]
    )


@pytest.mark.parametrize(
    "release,case,files",
    [
        (
            "2019",
            "MICCAI_BraTS_2019_Data_Training/HGG/BraTS19_2013_2_1",
            [f"BraTS19_2013_2_1_{kind}.nii.gz" for kind in ("t1", "t1ce", "t2", "flair", "seg")],
        ),
        (
            "2020",
            "MICCAI_BraTS2020_TrainingData/BraTS20_Training_001",
            [f"BraTS20_Training_001_{kind}.nii" for kind in ("t1", "t1ce", "t2", "flair", "seg")],
        ),
        (
            "2023",
            "ASNR-MICCAI-BraTS2023-GLI-Challenge-TrainingData/BraTS-GLI-00000-000",
            [f"BraTS-GLI-00000-000-{kind}.nii.gz" for kind in ("t1n", "t1c", "t2w", "t2f", "seg")],
        ),
    ],
)
def test_other_releases_of_brats(tmp_path, release, case, files):
    make_brain_phantom(tmp_path, BrainPhantom(SEED, tumours=1, brats=release, grid=GRID))
    assert release_tree(tmp_path) == sorted(f"{case}/{name}" for name in files)
    labels = read(next((tmp_path / case).glob("*seg*")))
    assert set(np.unique(labels)) == {0, 1, 2, 3 if release == "2023" else 4}


def test_case_355_of_2020_has_labels_of_another_name(tmp_path):
    make_brain_phantom(tmp_path, BrainPhantom(SEED, tumours=2, brats="2020", misnamed_case=True, grid=GRID))
    folder = tmp_path / "MICCAI_BraTS2020_TrainingData"
    assert sorted(path.name for path in folder.iterdir()) == ["BraTS20_Training_001", "BraTS20_Training_355"]
    names = {path.name for path in (folder / "BraTS20_Training_355").iterdir()}
    assert "W39_1998.09.19_Segm.nii" in names and "BraTS20_Training_355_seg.nii" not in names
    assert (folder / "BraTS20_Training_001" / "BraTS20_Training_001_seg.nii").is_file()
    assert set(np.unique(read(folder / "BraTS20_Training_355" / "W39_1998.09.19_Segm.nii"))) == {0, 1, 2, 4}


def test_atlas_r1_1_has_defaced_heads_and_a_mask_for_each_lesion(tmp_path):
    make_brain_phantom(tmp_path, BrainPhantom(SEED, strokes=5, atlas="R1.1", grid=GRID))
    truth = load_json(tmp_path / "truth" / "lesions.json")["cases"]
    expected, visits = [], []
    for name, record in truth.items():
        subject, visit = name.split("_")
        folder = f"ATLAS_R1.1/Site{record['patient'] % 9 + 1}/{subject}/{visit}"
        middles = ["", *(f"_{number}" for number in range(1, len(record["lesions"])))]
        expected += [f"{folder}/{subject}_LesionSmooth{middle}_stx.nii.gz" for middle in middles]
        expected += [f"{folder}/{subject}_t1w_deface_stx.nii.gz"]
        union = sum(read(tmp_path / folder / f"{subject}_LesionSmooth{middle}_stx.nii.gz") > 0 for middle in middles)
        np.testing.assert_array_equal(union, read(tmp_path / "truth" / "lesions" / f"{name}.nii.gz"))
        visits.append((subject, visit))
        # slices, rows, columns run up, to the front and to the right: the face lies low in front
        image = read(tmp_path / folder / f"{subject}_t1w_deface_stx.nii.gz")
        assert not image[:4, -6:].any() and image[-4:, -6:].any()
    assert release_tree(tmp_path) == sorted(expected)
    assert [f"{31769 + number:06d}" for number in (0, 1, 2, 3)] == sorted({subject for subject, _ in visits})
    assert ("031772", "t01") in visits and ("031772", "t02") in visits
    assert any(len(record["lesions"]) > 1 for record in truth.values())


def test_masks_and_truth_have_the_geometry_of_their_images(phantom):
    truth = load_json(phantom / "truth" / "lesions.json")["cases"]
    for name, record in truth.items():
        image = sitk.ReadImage(str(phantom / record["images"][0]))
        assert image.GetPixelID() == sitk.sitkInt16 and image.GetSize() == GRID[::-1]
        others = [path for path in (phantom / record["images"][0]).parent.iterdir() if name in path.name]
        others += [phantom / "truth" / kind / f"{name}.nii.gz" for kind in ("brain", "lesions")]
        for path in others:
            if path.exists():
                other = sitk.ReadImage(str(path))
                assert other.GetSize() == image.GetSize()
                for get in ("GetSpacing", "GetOrigin", "GetDirection"):
                    np.testing.assert_allclose(getattr(other, get)(), getattr(image, get)(), atol=1e-4)


def test_headers_are_those_of_the_releases(phantom):
    truth = load_json(phantom / "truth" / "lesions.json")["cases"]
    directions = {"tumour": np.eye(3), "stroke": np.diag([-1.0, -1.0, 1.0])}
    for record in truth.values():
        image = sitk.ReadImage(str(phantom / record["images"][0]))
        direction = np.array(image.GetDirection()).reshape(3, 3)
        if record["kind"] == "healthy":  # columns to the back, rows up, slices to the right, a little oblique
            assert direction[1, 0] > 0.98 and direction[2, 1] > 0.98 and direction[0, 2] < -0.98
        else:
            np.testing.assert_allclose(direction, directions[record["kind"]], atol=1e-6)


def test_lesion_files_agree_with_the_records(phantom):
    truth = load_json(phantom / "truth" / "lesions.json")
    assert truth["phantom"] == load_json(phantom / "phantom.json")
    for name, record in truth["cases"].items():
        assert record == load_json(phantom / "truth" / "cases" / f"{name}.json")
        brain = read(phantom / "truth" / "brain" / f"{name}.nii.gz")
        image = sitk.ReadImage(str(phantom / record["images"][0]))
        voxel_mm3 = float(np.prod(image.GetSpacing()))
        assert record["brain_mm3"] == pytest.approx(brain.sum() * voxel_mm3, rel=1e-4)
        assert record["has_lesions"] == (record["kind"] != "healthy")
        assert record["masks_in_release"] == (record["kind"] != "healthy" and record["patient"] < 9000)
        if not record["has_lesions"]:
            assert record["lesion_mm3"] == 0 and record["lesions"] == []
            continue
        lesions = read(phantom / "truth" / "lesions" / f"{name}.nii.gz")
        assert set(np.unique(lesions)) == {0, 1} and brain[lesions > 0].all()
        assert record["lesion_mm3"] == pytest.approx(lesions.sum() * voxel_mm3, rel=1e-4)
        assert sum(one["voxels"] for one in record["lesions"]) == lesions.sum()
        if record["masks_in_release"]:
            folder = (phantom / record["images"][0]).parent
            (mask,) = [path for path in folder.iterdir() if "seg" in path.name or "label" in path.name]
            np.testing.assert_array_equal(read(mask) > 0, lesions > 0)


def test_fewer_cases_first_or_in_parallel_give_the_same_bytes(phantom, tmp_path):
    smaller = BrainPhantom(SEED, healthy=1, tumours=1, grid=GRID)
    assert len(make_brain_phantom(tmp_path, smaller).done) == 2
    outcome = make_brain_phantom(tmp_path, PHANTOM, num_processes=2)
    assert (len(outcome.done), len(outcome.skipped)) == (6, 2)
    assert_same_bytes(phantom, tmp_path)


def test_a_killed_run_is_finished_and_no_case_made_again(phantom, tmp_path, monkeypatch):
    make_brain_phantom(tmp_path, PHANTOM)
    name = "BraTS2021_00001"
    # as a kill leaves it: one case without its record, an image gone, another begun, no summary
    (tmp_path / "truth" / "cases" / f"{name}.json").unlink()
    next(tmp_path.rglob(f"{name}_flair.nii.gz")).unlink()
    (tmp_path / ".partial" / name).mkdir(parents=True)
    (tmp_path / ".partial" / name / "junk").write_text("half")
    (tmp_path / ".partial_x1y2.json").write_text("{")
    (tmp_path / "truth" / "lesions.json").unlink()
    kept = tmp_path / "truth" / "brain" / "BraTS2021_00000.nii.gz"
    os.utime(kept, (1, 1))
    outcome = make_brain_phantom(tmp_path, PHANTOM)
    assert outcome.done == [name] and len(outcome.skipped) == 7
    assert kept.stat().st_mtime == 1
    assert_same_bytes(phantom, tmp_path)


def test_a_failed_case_is_named_and_left_out(tmp_path, monkeypatch):
    bad = plan_healthy(SEED, 1).name

    def failing(key, *arguments, **options):
        if key.patient == 1:
            raise OSError("no such luck")
        return make_case(key, *arguments, **options)

    monkeypatch.setattr(brain_release, "make_case", failing)
    small = BrainPhantom(SEED, healthy=3, grid=GRID)
    outcome = make_brain_phantom(tmp_path, small)
    assert outcome.exit_code == 1 and list(outcome.failed) == [bad] and "no such luck" in outcome.failed[bad]
    assert len(load_json(tmp_path / "truth" / "lesions.json")["cases"]) == 2
    assert not [name for name in tree(tmp_path) if bad in name]
    monkeypatch.undo()
    assert make_brain_phantom(tmp_path, small).done == [bad]


def test_names_are_unique_and_numbers_of_visits_follow_patients():
    for brats in BRATS_RELEASES:
        phantom = BrainPhantom(0, 1200, 800, 700, 40, brats=brats, misnamed_case=brats == "2020")
        names = [plan.name for plan in plan_cases(phantom)]
        assert len(set(names)) == len(names) == 1200 + 840 + 740
    gliomas = BrainPhantom(0, brats="2023")
    plans = [plan_tumour(gliomas, index) for index in range(10)]
    assert [plan.name[10:] for plan in plans[:6]] == [
        "00000-000",
        "00001-000",
        "00002-000",
        "00003-000",
        "00003-001",
        "00004-000",
    ]
    assert len({(plan.key.patient, plan.key.visit) for plan in plans}) == 10
    grades = {plan.name: plan.high_grade for plan in plans}
    assert grades["BraTS-GLI-00003-000"] is grades["BraTS-GLI-00003-001"] is False
    folders = {plan_tumour(BrainPhantom(0, brats="2019"), index).folder.parts[1] for index in range(4)}
    assert folders == {"HGG", "LGG"}
    assert plan_stroke(BrainPhantom(0), 4).name == "sub-r004s001_ses-2"
    numbered = BrainPhantom(0, brats="2020", misnamed_case=True)
    assert [plan_tumour(numbered, index).name[-3:] for index in (0, 1, 354, 355)] == ["355", "001", "354", "356"]
    assert plan_tumour(numbered, 0).key == CaseKey(0, 1, 0)


@pytest.mark.parametrize(
    "changes,word",
    [
        ({"seed": 3}, "seed"),
        ({"brats": "2019"}, "brats"),
        ({"atlas": "R1.1", "test": 0}, "atlas"),
        ({"contrast": "t2"}, "contrast"),
        ({"grid": (33, 40, 36)}, "grid"),
        ({"grid": None}, "grid"),
        ({"healthy": 1}, "healthy"),
        ({"test": 0}, "test"),
    ],
)
def test_a_folder_with_another_phantom_is_refused(phantom, changes, word):
    before = tree(phantom)
    with pytest.raises(InputError, match=word):
        make_brain_phantom(phantom, BrainPhantom(**{**vars(PHANTOM), **changes}))
    assert tree(phantom) == before


@pytest.mark.parametrize(
    "changes,word",
    [
        ({"healthy": 0}, "--healthy"),
        ({"healthy": -1}, "--healthy"),
        ({"tumours": 10_000}, "--tumours"),
        ({"test": 1}, "--test"),
        ({"test": 1, "strokes": 1, "atlas": "R1.1"}, "R1.1"),
        ({"seed": -1}, "--seed"),
        ({"brats": "2018"}, "--brats"),
        ({"contrast": "t1ce"}, "--contrast"),
        ({"misnamed_case": True}, "2020"),
        ({"grid": (8, 40, 40)}, "--grid"),
        ({"grid": (40, 400, 40)}, "--grid"),
    ],
)
def test_bad_parameters_are_refused_before_anything_is_written(tmp_path, changes, word):
    with pytest.raises(SettingsError, match=word):
        make_brain_phantom(tmp_path / "new", BrainPhantom(**{"seed": 0, "healthy": 1, **changes}))
    assert not (tmp_path / "new").exists()


def test_folders_without_images_and_folders_with_other_files_are_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    for option in ("labels", "shapes"):
        with pytest.raises(InputError, match=r"\.nii"):
            make_brain_phantom(tmp_path / "new", BrainPhantom(0, healthy=1, **{option: tmp_path}))
    with pytest.raises(InputError, match="not an empty folder"):
        make_brain_phantom(tmp_path, BrainPhantom(0, healthy=1))
    assert tree(tmp_path) == ["thesis.tex"]


def test_hidden_files_are_left_out_and_images_that_are_no_volumes_named(tmp_path):
    folder = tmp_path / "maps"
    folder.mkdir()
    (folder / "._head.nii.gz").write_bytes(b"a copy by macOS")
    with pytest.raises(InputError, match=r"there is no \.nii"):
        make_brain_phantom(tmp_path / "new", BrainPhantom(0, healthy=1, labels=folder))
    sagittal = np.eye(4)[[1, 2, 0, 3]]
    for array, what in ((np.ones((5, 6), np.uint8), "2-D"), (np.ones((4, 5, 6), np.complex64), "of complex numbers")):
        nibabel.save(nibabel.Nifti1Image(array, sagittal), folder / "head.nii.gz")
        with pytest.raises(InputError, match=rf"--labels: .*head\.nii\.gz is {what}; a volume is needed"):
            make_brain_phantom(tmp_path / "new", BrainPhantom(0, healthy=1, labels=folder))


def test_command(tmp_path, capsys):
    folder = tmp_path / "brains"
    arguments = ["phantom", "brain", "--healthy", "1", "--seed", "2", "-o", str(folder)]
    assert main([*arguments, "--contrast", "random", "--grid", "32", "40", "36"]) == 0
    assert "1 cases made" in capsys.readouterr().out
    found = load_json(folder / "phantom.json")
    assert (found["grid"], found["contrast"], found["healthy"], found["tumours"]) == (list(GRID), "random", 1, 0)
    assert main(arguments) == 2
    assert "another phantom" in capsys.readouterr().err
    assert main(["phantom", "brain", "-o", str(tmp_path / "none")]) == 2
    with pytest.raises(SystemExit):
        main([*arguments, "--full-grid", "--grid", "32", "40", "36"])


def test_real_label_maps_and_stroke_shapes_from_the_command(real_data, tmp_path):
    inputs = ["--labels", str(real_data / "head_labels"), "--lesion-shapes", str(real_data / "stroke_masks")]
    command = ["phantom", "brain", "--strokes", "1", "-o", str(tmp_path), "--grid", "48", "56", "52"]
    assert main([*command, *inputs]) == 0
    (record,) = load_json(tmp_path / "truth" / "lesions.json")["cases"].values()
    assert record["head"].startswith("training_seg_") and record["lesions"][0]["site"] == "real_shape"
