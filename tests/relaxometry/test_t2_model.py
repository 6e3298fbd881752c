"""From a dataset of echoes to regions by console commands: a tiny stock nnU-Net, ``tune t2`` and ``t2`` with it."""

from __future__ import annotations

import csv
import json
import re
import shlex

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_anomaly.errors import InputError, LabelError
from nnunet_anomaly.files import load_json, read_image, save_json
from nnunet_anomaly.multi_echo import read_multi_echo
from nnunet_anomaly.relaxometry.region_table import read_region_table
from nnunet_anomaly.workflow.t2_knee import probability_source
from nnunet_anomaly.workflow.t2_model import CartilageModel, Label, echoes_of, label_of, open_model

DATASET, TRAINER, PLANS = "Dataset104_TinyMESE", "nnUNetTrainerNoDA", "nnUNetAnomalyTinyPlans"
SUBJECTS = ("1", "2", "3", "4", "5")


def write_dataset(root, knee, put_knee, make_echoes):
    """Knees of two visits: subjects 1 to 4 to train on, 5 in imagesTs."""
    dataset = root / "nnUNet_raw" / DATASET
    for number, subject in enumerate(SUBJECTS):
        for visit in ("00m", "48m"):
            case = f"{subject}_{visit}_right"
            echoes = make_echoes(knee, seed=2 * number + (visit == "48m"))
            _, mask = put_knee(dataset, case, knee, echoes)
            part = "Ts" if subject == SUBJECTS[-1] else "Tr"
            for folder in (f"images{part}", f"labels{part}"):
                (dataset / folder).mkdir(exist_ok=True)
            mask.rename(dataset / f"labels{part}" / mask.name)
            for echo, image in enumerate(read_multi_echo(dataset, case).images[:3]):
                sitk.WriteImage(image, str(dataset / f"images{part}" / f"{case}_{echo:04d}.nii.gz"))
    cases = {s: [f"{s}_00m_right", f"{s}_48m_right"] for s in SUBJECTS[:-1]}
    description = {
        "channel_names": {str(echo): f"MESE_echo{echo + 1}" for echo in range(3)},
        "labels": {"background": 0, "femoral_cartilage": 1},
        "numTraining": 8,
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "SimpleITKIO",
    }
    save_json(description, dataset / "dataset.json")
    folds = [{"train": [*cases["1"], *cases["2"], *cases["3"]], "val": cases["4"]}]
    save_json(folds, dataset / "splits_final.json")
    return dataset


@pytest.fixture(scope="session")
def trained(new_workspace, drawn, put_knee, make_echoes):
    """nnU-Net's folders with the dataset and fold 0 of a tiny 2-D network, validated without probabilities."""
    workspace = new_workspace("mese")
    knee = drawn(spacing_mm=(3.0, 1.0, 1.0), pixels=64)
    dataset = write_dataset(workspace.root, knee, put_knee, make_echoes)
    command = ["nnUNetv2_plan_and_preprocess", "-d", "104", "-pl", "nnUNetPlannerAnomalyTiny", "-c", "2d"]
    workspace.run(*command, "-np", "1", "-npfp", "1", here=True)
    preprocessed = workspace.root / "nnUNet_preprocessed" / DATASET
    save_json(load_json(dataset / "splits_final.json"), preprocessed / "splits_final.json")
    workspace.train(104, "2d", 0, TRAINER, plans=PLANS, steps=80)
    return workspace


@pytest.fixture(scope="session")
def model(trained):
    return trained.root / "nnUNet_results" / DATASET / f"{TRAINER}__{PLANS}__2d"


@pytest.fixture(scope="session")
def dataset(trained):
    return trained.root / "nnUNet_raw" / DATASET


@pytest.fixture(scope="session")
def tuned(trained, model, tmp_path_factory):
    """The output of the search, after the command that its error names has made the probabilities."""
    output = tmp_path_factory.mktemp("tuning")
    command = ("nnunet-anomaly", "tune", "t2", "-m", str(model), "-o", str(output), "-np", "1")
    error = trained.run(*command, expect=2).stderr
    missing = re.search(r"Make them with: (nnUNetv2_train .*)$", error, re.MULTILINE)
    trained.run(*shlex.split(missing[1]), "-device", "cpu", here=True, nnUNet_n_proc_DA="0")
    trained.run(*command)
    return output


def test_the_search_is_at_least_as_good_as_nnunets_own_threshold(tuned, model):
    best = load_json(tuned / "search.json")["best"]
    with open(tuned / "search.csv", newline="", encoding="utf-8") as handle:
        rows = {(row["probability"], row["minimum_slice_mm2"]): float(row["dice"]) for row in csv.DictReader(handle)}
    summary = load_json(model / "fold_0" / "validation" / "summary.json")
    # of drawn knees refinement by T2 takes nearly nothing, so that the row of 0.501 is nnU-Net's own figure
    assert rows["0.501", "0.0"] == pytest.approx(summary["foreground_mean"]["Dice"], abs=0.02)
    assert best["dice"] == pytest.approx(max(rows.values())) and best["dice"] >= rows["0.501", "0.0"]
    assert load_json(model / "plans.json")["anomaly"]["t2"]["probability"] == best["probability"]


def run(trained, *arguments, expect=0):
    return trained.run("nnunet-anomaly", "t2", *map(str, arguments), "-device", "cpu", "-np", "1", expect=expect)


def test_a_knee_and_its_follow_up(trained, model, dataset, tuned, tmp_path):
    series = [dataset / "multi_echo" / f"5_{visit}_right.nii.gz" for visit in ("00m", "48m")]
    said = run(trained, "-i", series[0], "-i2", series[1], "-m", model, "-o", tmp_path / "o").stdout
    assert re.search(r"^All +\d+\.\d +\d+\.\d +[+-]\d\.\d$", said, re.MULTILINE)
    record = load_json(tmp_path / "o" / "record.json")
    best = load_json(tuned / "search.json")["best"]
    assert record["settings"]["probability"] == best["probability"], "as tune t2 has written them"
    assert record["model"]["echoes"] == [1, 2, 3] and record["model"]["folds"] == [0]
    for place, path in enumerate(series, start=1):
        folder = tmp_path / "o" / f"time_{place}"
        volumes = {
            name: sitk.GetArrayFromImage(read_image(folder / f"{name}.nii.gz"))
            for name in ("probability", "segmentation", "t2", "quality")
        }
        reference = sitk.GetArrayFromImage(read_image(dataset / "labelsTs" / path.name)) > 0
        found = volumes["segmentation"] > 0
        assert 2 * (found & reference).sum() / (found.sum() + reference.sum()) > 0.8
        assert (volumes["probability"][found] >= best["probability"]).all() and (volumes["t2"][found] > 0).all()
        np.testing.assert_array_equal(volumes["quality"] > 0, volumes["probability"].astype(float) > 0.01)
    # the very probabilities that nnU-Net's own command gives
    own = tmp_path / "own"
    own.mkdir()
    for echo in range(3):
        (own / f"5_00m_right_{echo:04d}.nii.gz").symlink_to(dataset / "imagesTs" / f"5_00m_right_{echo:04d}.nii.gz")
    trained.run(
        *("nnUNetv2_predict", "-d", "104", "-c", "2d", "-f", "0", "-tr", TRAINER, "-p", PLANS, "-device", "cpu"),
        *("-i", str(own), "-o", str(own / "out"), "--save_probabilities", "-npp", "1", "-nps", "1"),
        here=True,
    )
    with np.load(own / "out" / "5_00m_right.npz", allow_pickle=False) as content:
        ours = sitk.GetArrayFromImage(read_image(tmp_path / "o" / "time_1" / "probability.nii.gz"))
        np.testing.assert_allclose(ours, content["probabilities"][1], atol=1e-5)


def test_a_cohort_is_predicted_once(trained, model, dataset, tmp_path):
    output = tmp_path / "o"
    cases = ("1_00m_right", "4_48m_right", "5_00m_right", "5_48m_right")
    said = run(trained, "-i", dataset, "-m", model, "-o", output, "--cases", *cases).stderr
    assert {key[:2] for key in read_region_table(output)} == {
        ("1_right", 1),
        ("4_right", 1),
        ("5_right", 1),
        ("5_right", 2),
    }
    # fold 0 has held out subject 4, and subject 5 is in imagesTs
    assert re.findall(r"Warning: (.*): the model has learnt from (\S+):", said) == [("1_right", "1_00m_right.nii.gz")]
    probability = output / "5_right" / "time_1" / "probability.nii.gz"
    stamp = probability.stat().st_mtime_ns
    again = run(trained, "-i", dataset, "-m", model, "-o", output, "--test-cases", "--set", "t2.probability=0.9")
    assert "1 done" in again.stdout and probability.stat().st_mtime_ns == stamp
    assert load_json(output / "5_right" / "record.json")["settings"]["probability"] == 0.9
    nothing = run(
        trained, "-i", dataset, "-m", model, "-o", output, "--test-cases", "--set", "t2.minimum_slice_mm2=1e6", expect=1
    )
    assert "5_right" in nothing.stderr and "slices with too little cartilage" in nothing.stderr
    assert not read_region_table(output)


def test_models_that_do_not_fit_are_refused_before_the_work(trained, model, dataset, tmp_path):
    series = dataset / "multi_echo" / "5_00m_right.nii.gz"

    def error(folder=model, *more):
        return run(trained, "-i", series, "-m", folder, "-o", tmp_path / "o", *more, expect=2).stderr

    assert "is no model folder" in error(dataset.parent)
    assert "has no label 'meniscus'; it has femoral_cartilage (1)" in error(model, "--label", "meniscus")
    assert "fold_3" in error(model, "-f", "3") and "no fold with other.pth" in error(model, "-chk", "other.pth")
    assert not (tmp_path / "o").exists()


def test_which_echo_a_channel_is():
    def channels(*names):
        return {"channel_names": {str(place): name for place, name in enumerate(names)}}

    assert echoes_of(channels("MESE_echo1", "MESE_echo2", "MESE_echo3")) == (1, 2, 3)
    assert echoes_of(channels("echo 2")) == (2,)
    assert echoes_of(channels("MR", "T2w")) == (1, 2)
    assert echoes_of({"modality": {"0": "Echo_7"}}) == (7,)
    ten = channels(*(f"echo{number}" for number in range(1, 12)))
    assert echoes_of(ten) == tuple(range(1, 12)), "channel 10 comes after 9"


def test_which_label_is_cartilage(tmp_path):
    several = {"labels": {"background": 0, "bone": 1, "femoral_cartilage": 2, "ignore": 3}}
    assert label_of(several, tmp_path, None) == Label("femoral_cartilage", (2,), 2)
    assert label_of(several, tmp_path, "1") == label_of(several, tmp_path, "bone") == Label("bone", (1,), 1)
    assert label_of({"labels": {"background": 0, "x": 1}}, tmp_path, None) == Label("x", (1,), 1)
    with pytest.raises(LabelError, match=r"bone \(1\), cartilage \(2\)\. Name one by --label"):
        label_of({"labels": {"background": 0, "bone": 1, "cartilage": 2}}, tmp_path, None)
    with pytest.raises(LabelError, match="no label 'ignore'"):
        label_of(several, tmp_path, "ignore")
    regions = {"labels": {"background": 0, "all": [1, 2], "femoral_cartilage": 2}}
    assert label_of(regions, tmp_path, None) == Label("femoral_cartilage", (2,), 1)
    assert label_of(regions, tmp_path, "all") == Label("all", (1, 2), 0)


def test_series_with_too_few_echoes_and_other_readers(tmp_path):
    model = CartilageModel(tmp_path / "m", (0,), "c.pth", (1, 2, 9), Label("x", (1,), 1), "D", "")
    model.check_series(9, tmp_path)
    with pytest.raises(InputError, match=r"has 8 echoes, but the model .* sees echo 1, 2, 9"):
        model.check_series(8, tmp_path)
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "dataset.json").write_text(json.dumps({"channel_names": {"0": "a"}, "labels": {"x": 1}}))
    (tmp_path / "m" / "plans.json").write_text(json.dumps({"image_reader_writer": "NibabelIOWithReorient"}))
    with pytest.raises(InputError, match="NibabelIOWithReorient"):
        open_model(tmp_path / "m")


@pytest.fixture
def folder(tmp_path):
    """A model folder that can be looked at, of two folds; fold 0 has held out a, fold 1 b."""
    folder = tmp_path / "results" / "Dataset104_Knee" / "T__P__2d"
    for fold, case in ((0, "a"), (1, "b"), ("all", "a")):
        (folder / f"fold_{fold}" / "validation").mkdir(parents=True)
        (folder / f"fold_{fold}" / "validation" / f"{case}.nii.gz").touch()
        (folder / f"fold_{fold}" / "checkpoint_final.pth").touch()
    save_json({"channel_names": {"0": "MESE_echo1"}, "labels": {"background": 0, "x": 1}}, folder / "dataset.json")
    plans = {"dataset_name": "Dataset104_Knee", "image_reader_writer": "SimpleITKIO"}
    save_json({**plans, "anomaly": {"mese": {"prediction_echo": 2}}}, folder / "plans.json")
    return folder


def test_what_a_model_has_learnt_from(folder, tmp_path):
    dataset = tmp_path / "raw" / "Dataset104_Knee"
    for path in ("multi_echo/a.nii.gz", "labelsTr/a.nii.gz", "multi_echo/t.nii.gz", "labelsTs/t.nii.gz"):
        (dataset / path).parent.mkdir(parents=True, exist_ok=True)
        (dataset / path).touch()

    def learnt(case="a", folds=None, dataset=dataset):
        return open_model(folder, folds).has_learnt_from(dataset / "multi_echo" / f"{case}.nii.gz")

    assert learnt() and learnt(folds=[1]) and not learnt(folds=[0]), "both folds are averaged; one has held it out"
    assert learnt(folds=["all"]), "which nnU-Net validates with what it has learnt from"
    assert not learnt("t")
    other = dataset.rename(dataset.with_name("Dataset105_Knee"))
    assert not learnt(dataset=other) and not open_model(folder).has_learnt_from(tmp_path / "dicom")


def test_probabilities_of_other_plans_are_out_of_date_but_not_those_of_other_thresholds(folder, tmp_path):
    (tmp_path / "a.nii.gz").touch()
    (tmp_path / "a.json").touch()

    def source(**anomaly):
        plans = load_json(folder / "plans.json")
        plans["anomaly"] |= anomaly
        save_json(plans, folder / "plans.json")
        return probability_source(tmp_path / "a.nii.gz", open_model(folder))

    first = source()
    assert source(t2={"probability": 0.7}) == first
    assert source(mese={"prediction_echo": 1}) != first
