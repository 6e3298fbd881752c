"""What cannot be tested is said before anything is predicted: exit code 2, and a message that names it."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import pytest
import torch

from nnunet_anomaly.errors import InputError
from nnunet_anomaly.files import load_json
from nnunet_anomaly.workflow.stress_models import find_model, name_models, unpack_model

PLANS = "nnUNetAnomalyTinyPlans"
PLAIN, AWARE = "nnUNetTrainerSeeded", "nnUNetTrainerAnomalyAware"
A = f"nnUNetTrainerInpaintingMimic__{PLANS}__2d_inpainting"
DATA, AWARE_DATA, TWO_PASS_DATA = "Dataset101_Tiny", "Dataset201_TinyErrorMaps", "Dataset202_TinyTwoPasses"
AWARE_MODEL, TWO_PASS_MODEL = f"{AWARE_DATA}/{AWARE}__{PLANS}__2d", f"{TWO_PASS_DATA}/{AWARE}__{PLANS}__2d"


def edit(path: Path, change) -> None:
    content = load_json(path)
    change(content)
    path.unlink()  # it may be a link
    path.write_text(json.dumps(content))


def refused(result, *messages: str) -> None:
    for message in messages:
        assert message in result.stderr, result.stderr[-2000:]
    assert "Traceback" not in result.stderr


def model_of(workspace, dataset=DATA, trainer=PLAIN) -> Path:
    return workspace.root / "nnUNet_results" / dataset / f"{trainer}__{PLANS}__2d"


@pytest.mark.parametrize(
    "more, message",
    [
        (["--corruptions", "bright_lesion", "lesion"], "--corruptions: lesion is not among bright_lesion, dark_lesion"),
        (["--severities", "1.5"], "give a number from 0 to 1"),
        (["--severities", "often"], "or one of none, mild, moderate, severe"),
        (["--severities", "0", "none"], "--severities has nothing but 0"),
        (["--region", "bone", "marrow"], "--region: marrow is not among the labels bone, cartilage"),
        (["--cases", "case_00"], "--cases: case_00 is not among the held-out cases, such as case_03"),
        (["--cases", "0"], "there are 1 to 3 cases to take"),
        (["--cases", "4"], "there are 1 to 3 cases to take"),
        (["--size-mm", "5", "--corruptions", "noise", "bias_field"], "--size-mm: noise, bias_field has no size"),
        (["--size-mm", "-1"], "argument --size-mm: '-1' is no length in mm above 0"),
        (["--nsd-tolerance-mm", "nan"], "argument --nsd-tolerance-mm: 'nan' is no length in mm above 0"),
        (["--worst", "-1"], "argument --worst: '-1' is no number from 0 on"),
        (["--names", "a", "b"], "--names must give 1 different names, one for each -tr; got ['a', 'b']"),
        (["--names", "a/b"], "'a/b' cannot be a model's name"),
        (["--names", ".."], "'..' cannot be a model's name"),
        (["--names", "mine, cleaned"], "'mine, cleaned' ends in ', cleaned'"),
        (["-tr", PLAIN], "--names must give 2 different names"),
        (["-p", "nnUNetPlans"], "there is no trained model at "),
        (["-tr", AWARE_MODEL + "_typo"], "there is no trained model at "),
        (["-f", "7"], "has folds 0 to 1, but not 7"),
        (["-f", "all"], "Fold all has learnt from every case, so that none is held out. Give labelled cases"),
        (["-i", "images"], "-i and -l go together"),
        (["-i", "empty", "-l", "empty"], "empty holds no image named <case>_0000.nii.gz"),
        (["-d", "999"], "There is no dataset '999'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_what_is_typed_wrong_is_named(models, stress, tmp_path, more, message):
    result = stress(models, tmp_path / "out", *more, expect=2)
    refused(result, message)
    assert not (tmp_path / "out" / "cases").exists()


def test_a_typo_in_the_plans_lists_the_models_that_are_there(models, stress, tmp_path):
    result = stress(models, tmp_path, "-p", "nnUNetPlans", expect=2)
    refused(result, f"{PLAIN}__nnUNetPlans__2d. Dataset101_Tiny has ", A, f"{PLAIN}__{PLANS}__2d")


def test_new_cases_need_a_label_map_each_and_trained_folds(models, stress, tmp_path):
    images, labels = (models.root / "nnUNet_raw" / DATA / name for name in ("imagesTr", "labelsTr"))
    (tmp_path / "labels").mkdir()
    for case in ("case_00", "case_01", "case_02"):
        shutil.copy(labels / f"{case}.nii.gz", tmp_path / "labels")
    result = stress(models, tmp_path, "-i", str(images), "-l", str(tmp_path / "labels"), expect=2)
    refused(result, "labels has no case_03.nii.gz, case_04.nii.gz, case_05.nii.gz")
    new = ("-i", str(images), "-l", str(labels), "--allow-leak")
    refused(
        stress(models, tmp_path, *new, folds=("0", "2"), expect=2),
        "has no checkpoint_final.pth for fold 2; it has 0, 1.",
    )
    best = stress(models, tmp_path, "-chk", "checkpoint_best.pth", expect=2)
    refused(best, "has no checkpoint_best.pth for fold 0; it has no fold")


def test_the_output_is_a_folder_and_a_gpu_is_there(models, stress, tmp_path):
    (tmp_path / "out").write_text("mine")
    refused(stress(models, tmp_path / "out", expect=2), "out is a file; name a folder")
    assert (tmp_path / "out").read_text() == "mine"
    if not torch.cuda.is_available():
        refused(stress(models, tmp_path / "new", "-device", "cuda", expect=2), "no CUDA device here")


# -- models that do not fit -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda plans: plans.update(image_reader_writer="NibabelIO"), "reads images by NibabelIO, but the dataset is"),
        (lambda plans: plans["configurations"]["2d"].update(previous_stage="2d_lowres"), "second stage of a cascade"),
    ],
    ids=["reader", "cascade"],
)
def test_plans_that_do_not_fit_are_refused(changeable, stress, tmp_path, change, message):
    edit(model_of(changeable) / "plans.json", change)
    refused(stress(changeable, tmp_path / "out", expect=2), "Seeded", message)


def test_a_model_that_does_not_segment_is_refused(models, stress, tmp_path):
    refused(stress(models, tmp_path / "out", tr=(A,), expect=2), "nnunet-anomaly error-maps")


def test_another_reader_of_what_makes_the_error_maps_is_refused(changeable, stress, tmp_path):
    plans = changeable.root / "nnUNet_results" / DATA / A / "plans.json"
    edit(plans, lambda plans: plans.update(image_reader_writer="NibabelIO"))
    result = stress(changeable, tmp_path / "out", tr=(AWARE_MODEL,), expect=2)
    refused(result, f"{A}, which makes error maps for AnomalyAware, reads images by NibabelIO")


def test_channels_in_another_order_and_other_labels_are_refused(changeable, stress, tmp_path):
    raw, model = changeable.root / "nnUNet_raw" / DATA / "dataset.json", model_of(changeable) / "dataset.json"
    before = raw.read_text(), model.read_text()
    for path, names in ((raw, ["T1", "T2"]), (model, ["T2", "T1"])):
        channels = {str(number): name for number, name in enumerate(names)}
        roles = dict.fromkeys(channels, "image")
        changed = {"channel_names": channels, "anomaly": {"channel_roles": roles}}
        edit(path, lambda content, changed=changed: content.update(changed))
    result = stress(changeable, tmp_path / "out", expect=2)
    refused(result, "Seeded was trained on the channels T2, T1", "but the dataset has T1, T2, in this order")
    raw.write_text(before[0]), model.write_text(before[1])
    edit(model, lambda content: content.update(labels={"background": 0, "bone": 2, "cartilage": 1}))
    result = stress(changeable, tmp_path / "out", expect=2)
    refused(result, "Seeded gives the labels {'bone': (2,), 'cartilage': (1,)}", "Compare models of the same labels")


def test_an_ignore_label_is_refused(changeable, stress, tmp_path):
    edit(
        changeable.root / "nnUNet_raw" / DATA / "dataset.json",
        lambda content: content["labels"].update(ignore=3),
    )
    refused(stress(changeable, tmp_path / "out", expect=2), "has an ignore label")


# -- what is held out -------------------------------------------------------------------------------------------------


def test_without_splits_nothing_is_held_out(changeable, stress, tmp_path):
    for name in ("nnUNet_raw", "nnUNet_preprocessed"):
        (changeable.root / name / DATA / "splits_final.json").unlink()
    refused(stress(changeable, tmp_path / "out", expect=2), "has no splits_final.json", "by -i IMAGES -l LABELS")


@pytest.mark.parametrize(
    "change, folds, message",
    [
        (lambda splits: splits[0].update(val=[]), ["0"], "holds out no case"),
        (lambda splits: splits[1].update(val=["case_03"]), ["0", "1"], "folds 0 and 1 both hold out case_03"),
    ],
    ids=["empty", "twice"],
)
def test_folds_that_hold_out_nothing_or_the_same_are_refused(changeable, stress, tmp_path, change, folds, message):
    edit(changeable.root / "nnUNet_preprocessed" / DATA / "splits_final.json", change)
    refused(stress(changeable, tmp_path / "out", folds=folds, expect=2), message)


def swap_splits(workspace, *datasets: str) -> None:
    for dataset in datasets:
        edit(workspace.root / "nnUNet_preprocessed" / dataset / "splits_final.json", lambda splits: splits.reverse())


def test_cases_that_a_model_has_learnt_from_are_a_leak(models, changeable, stress, tmp_path):
    raw = models.root / "nnUNet_raw" / DATA
    seen = ("-i", str(raw / "imagesTr"), "-l", str(raw / "labelsTr"))
    result = stress(models, tmp_path / "out", *seen, expect=2)
    refused(result, "Fold 0 of Seeded has learnt from case_00, case_01, case_02.", "--allow-leak")
    quick = ("--corruptions", "noise", "--severities", "1", "--cases", "case_00")
    stress(models, tmp_path / "out", *seen, "--allow-leak", *quick)
    # folds that changed since: S's own dataset still tells
    swap_splits(changeable, DATA)
    result = stress(changeable, tmp_path / "changed", tr=(AWARE_MODEL,), expect=2)
    refused(result, "Fold 0 of AnomalyAware has learnt from case_00, case_01, case_02.")
    # and where it does not, the checkpoint of A does
    swap_splits(changeable, AWARE_DATA)
    result = stress(changeable, tmp_path / "changed", tr=(AWARE_MODEL,), expect=2)
    refused(result, f"Fold 0 of {A}, which makes error maps for AnomalyAware, has learnt from case_00, case_01")


def test_what_nothing_is_known_of_may_have_leaked(changeable, stress, tmp_path):
    shutil.rmtree(changeable.root / "nnUNet_preprocessed" / AWARE_DATA)
    result = stress(changeable, tmp_path / "out", tr=(AWARE_MODEL,), expect=2)
    refused(result, "Nothing says which cases fold 0", "no splits_final.json of Dataset201_TinyErrorMaps")


def test_fold_all_has_learnt_from_cases_that_are_in_no_split_too(changeable, stress, tmp_path):
    model, preprocessed = model_of(changeable), changeable.root / "nnUNet_preprocessed" / DATA
    shutil.copytree(model / "fold_0", model / "fold_all")
    content = torch.load(model / "fold_all" / "checkpoint_final.pth", weights_only=False)
    content["init_args"].pop("split", None)  # as nnU-Net's own trainers, which note nothing
    torch.save(content, model / "fold_all" / "checkpoint_final.pth")
    only = [{"train": ["case_00"], "val": ["case_01"]}]
    (preprocessed / "splits_final.json").unlink()
    (preprocessed / "splits_final.json").write_text(json.dumps(only))
    raw = changeable.root / "nnUNet_raw" / DATA
    new = ("-i", str(raw / "imagesTr"), "-l", str(raw / "labelsTr"), "--cases", "case_05")
    result = stress(changeable, tmp_path / "out", *new, folds=("all",), expect=2)
    refused(result, "Fold all of Seeded has learnt from case_05.")


def test_several_a_in_one_network_have_seen_every_training_case(changeable, stress, tmp_path):
    name = f"{DATA}/nnUNetTrainerAnomalyAwareEndToEnd__{PLANS}__2d"
    plans = changeable.root / "nnUNet_results" / name / "plans.json"
    # of two folds, an A that is fine-tuned is the other fold's alone
    for inside in ({"networks": 2}, {"networks": 1, "fine_tuned": True, "exported": "mean"}):
        edit(plans, lambda plans, inside=inside: plans["anomaly"]["end_to_end"].update(inside))
        result = stress(changeable, tmp_path / "out", tr=(name,), expect=2)
        refused(result, "has A of other folds inside (end_to_end.exported=mean)", "case_03, case_04, case_05")


# -- error maps -------------------------------------------------------------------------------------------------------


def test_a_network_that_says_what_to_erase_and_was_trained_again_is_named(changeable, stress, tmp_path):
    masks = f"{PLAIN}__{PLANS}__2d"
    checkpoint = changeable.root / "nnUNet_results" / DATA / masks / "fold_0" / "checkpoint_final.pth"
    content = torch.load(checkpoint, weights_only=False)
    content["network_weights"] = {name: 2 * values for name, values in content["network_weights"].items()}
    torch.save(content, checkpoint)
    result = stress(changeable, tmp_path / "out", tr=(TWO_PASS_MODEL,), expect=2)
    refused(result, f"{masks} was trained again since {TWO_PASS_DATA} was made")


def test_networks_of_error_maps_that_are_gone_or_trained_again_are_named(changeable, stress, tmp_path):
    checkpoint = changeable.root / "nnUNet_results" / DATA / A / "fold_0" / "checkpoint_final.pth"
    content = torch.load(checkpoint, weights_only=False)
    content["network_weights"] = {name: 2 * values for name, values in content["network_weights"].items()}
    torch.save(content, checkpoint)
    result = stress(changeable, tmp_path / "out", tr=(AWARE_MODEL,), expect=2)
    refused(result, f"{A} was trained again since Dataset201_TinyErrorMaps was made")
    checkpoint.unlink()
    result = stress(changeable, tmp_path / "out", tr=(AWARE_MODEL,), expect=2)
    refused(result, "AnomalyAware needs error maps by ", f"{A}/fold_0/checkpoint_final.pth, which is not there")


def test_two_passes_need_the_network_that_says_what_to_erase(changeable, stress, tmp_path):
    shutil.rmtree(model_of(changeable) / "fold_0")
    result = stress(changeable, tmp_path / "out", tr=(TWO_PASS_MODEL,), expect=2)
    refused(result, f"needs error maps by {model_of(changeable)}/fold_0/checkpoint_final.pth, which is not there")


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda content: content["anomaly"]["derived_from"].update(masks_from="my_masks"),
            "made with label maps from 'my_masks', which is no trained model of Dataset101_Tiny",
        ),
        (lambda content: content["anomaly"].pop("derived_from"), "does not say which networks it comes from"),
        (
            lambda content: (
                content["channel_names"].update({"2": "noNorm"}),
                content["anomaly"]["channel_roles"].update({"2": "error_map"}),
            ),
            "has 2 error-map channels; the stress test can make one",
        ),
    ],
    ids=["folder of masks", "origin unknown", "two error maps"],
)
def test_error_maps_that_cannot_be_made_again_are_refused(changeable, stress, tmp_path, change, message):
    edit(model_of(changeable, TWO_PASS_DATA, AWARE) / "dataset.json", change)
    refused(stress(changeable, tmp_path / "out", tr=(TWO_PASS_MODEL,), expect=2), message)


# -- zip files --------------------------------------------------------------------------------------------------------


def zip_of(path: Path, *names: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "{}")
    return path


MODEL = ("Dataset101_Tiny/T__P__2d/plans.json", "Dataset101_Tiny/T__P__2d/dataset.json")


@pytest.mark.parametrize(
    "name", ["../out.txt", "a/../../out.txt", "/out.txt", "C:\\out.txt", "C:/out.txt", "..\\out.txt", "\\out.txt"]
)
def test_a_zip_that_climbs_out_is_refused_and_nothing_is_written(models, stress, tmp_path, name):
    path = zip_of(tmp_path / "in" / "model.zip", *MODEL, name)
    result = stress(models, tmp_path / "in" / "out", tr=(str(path),), expect=2)
    refused(result, "which leads out of the folder: do not trust this file")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["model.zip"]


@pytest.mark.parametrize(
    "names, found",
    [
        (["readme.txt"], "it holds none"),
        ([*MODEL, *(name.replace("T__", "U__") for name in MODEL)], "it holds T__P__2d, U__P__2d"),
    ],
    ids=["none", "two"],
)
def test_a_zip_holds_one_model(models, stress, tmp_path, names, found):
    path = zip_of(tmp_path / "model.zip", *names)
    refused(stress(models, tmp_path / "out", tr=(str(path),), expect=2), "must hold one model", found)
    assert not list((tmp_path / "out").rglob("*.json"))


def test_what_is_no_zip_or_is_damaged_is_refused(models, stress, tmp_path):
    path = tmp_path / "model.zip"
    refused(stress(models, tmp_path / "out", tr=(str(path),), expect=2), "is no zip file, or does not exist")
    path.write_text("text")
    refused(stress(models, tmp_path / "out", tr=(str(path),), expect=2), "is no zip file, or does not exist")
    with zipfile.ZipFile(path, "w") as archive:  # not compressed, so that its content is found again
        archive.writestr("a/plans.json", "this is what it holds")
    path.write_bytes(path.read_bytes().replace(b"this is", b"that is"))
    refused(stress(models, tmp_path / "out", tr=(str(path),), expect=2), "cannot be unpacked", "Bad CRC-32")
    assert not list((tmp_path / "out" / "unpacked").iterdir())


def test_two_zips_of_one_name_are_two_models_unpacked_once(tmp_path):
    one = zip_of(tmp_path / "one" / "model.zip", *MODEL)
    two = zip_of(tmp_path / "two" / "model.zip", *(name.replace("T__", "U__") for name in MODEL))
    folders = [unpack_model(path, tmp_path / "unpacked") for path in (one, two)]
    assert [folder.name for folder in folders] == ["T__P__2d", "U__P__2d"]
    time_of_change = (folders[0] / "plans.json").stat().st_mtime_ns
    assert unpack_model(one, tmp_path / "unpacked") == folders[0]
    assert (folders[0] / "plans.json").stat().st_mtime_ns == time_of_change
    assert not list((tmp_path / "unpacked").glob(".*"))


# -- names ------------------------------------------------------------------------------------------------------------


def test_models_are_named_by_what_tells_them_apart():
    def names(*folders):
        return name_models([Path(folder) for folder in folders], None)

    assert names("D1/nnUNetTrainer__P__2d") == ["nnUNetTrainer"]
    assert names("D1/nnUNetTrainer__P__2d", "D1/nnUNetTrainerA__P__2d") == ["nnUNetTrainer", "A"]
    assert names("D1/nnUNetTrainerA__P__2d", "D1/nnUNetTrainerA__Q__2d") == ["A_P", "A_Q"]
    assert names("D1/nnUNetTrainerA__P__2d", "D1/nnUNetTrainerA__P__3d") == ["A_2d", "A_3d"]
    assert names("D1/nnUNetTrainerA__P__2d", "D2/nnUNetTrainerA__P__2d") == ["A_D1", "A_D2"]
    assert names("D1/nnUNetTrainer_5epochs__P__2d") == ["5epochs"]
    with pytest.raises(InputError, match="2 different names"):
        names("D1/nnUNetTrainerA__P__2d", "D1/nnUNetTrainerA__P__2d")


def test_a_model_is_found_by_trainer_folder_and_path(models, monkeypatch, tmp_path):
    monkeypatch.setenv("nnUNet_results", str(models.root / "nnUNet_results"))
    folder = model_of(models)
    for text in (PLAIN, folder.name, f"{DATA}/{folder.name}", str(folder)):
        assert find_model(text, DATA, PLANS, "2d", tmp_path) == folder.resolve()
