"""Fixtures of the stress test's tests: tiny networks of every kind, hardly or not at all trained.

Networks that have learnt nothing give label maps that the smallest difference in their input changes.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

PLANS = "nnUNetAnomalyTinyPlans"
DATA, AWARE_DATA, TWO_PASS_DATA = "Dataset101_Tiny", "Dataset201_TinyErrorMaps", "Dataset202_TinyTwoPasses"
PLAIN, AWARE, WHOLE = "nnUNetTrainerSeeded", "nnUNetTrainerAnomalyAware", "nnUNetTrainerAnomalyAwareEndToEnd"
G, A = "nnUNetTrainerInpainting", "nnUNetTrainerInpaintingMimic"


@contextmanager
def inside(workspace) -> Iterator[None]:
    """nnU-Net's folders are those of a workspace, and torch has one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            patch.setenv(name, str(workspace.root / name))
        patch.setenv("nnUNet_n_proc_DA", "0")
        yield
    torch.set_num_threads(threads)


def make_model(trainer_name: str, plans: dict, configuration: str, fold: int | str, dataset_json: dict) -> Path:
    """A model folder's fold; reconstruction networks learn for a step, as their validation is needed, others not."""
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    cls = recursive_find_trainer_class_by_name(trainer_name)
    plans = copy.deepcopy(plans) | {"continue_training": False}
    trainer = cls(plans, configuration, fold, dataset_json, torch.device("cpu"))
    folder = Path(trainer.output_folder_base)
    if trainer_name in (G, A):
        trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch, trainer.num_epochs = 1, 1, 1
        trainer.run_training()
        trainer.perform_actual_validation()
        return folder
    trainer.initialize()
    trainer.inference_allowed_mirroring_axes = tuple(range(len(trainer.configuration_manager.patch_size)))
    trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    for name in ("progress.png", "validation/summary.json"):  # which nnU-Net exports, too
        path = Path(trainer.output_folder) / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")
    (folder / "dataset_fingerprint.json").write_text("{}")
    (folder / "plans.json").write_text(json.dumps(trainer.plans_manager.plans))
    (folder / "dataset.json").write_text(json.dumps(dataset_json))
    return folder


def with_error_channel(plans: dict, dataset: str) -> dict:
    """Plans of a dataset with one more channel, which nothing normalises."""
    plans = copy.deepcopy(plans) | {"dataset_name": dataset}
    intensities = plans["foreground_intensity_properties_per_channel"]
    intensities["1"] = intensities["0"]
    for configuration in plans["configurations"].values():
        if "normalization_schemes" in configuration:
            configuration["normalization_schemes"] += ["NoNormalization"]
            configuration["use_mask_for_norm"] += [False]
    return plans


@pytest.fixture(scope="session")
def models(planned, new_workspace) -> SimpleNamespace:
    """A workspace with models of both folds, in 2-D: plain, with an error channel, with two passes, end to end.

    Tests must leave it as it is; ``changeable`` copies it.
    """
    workspace = new_workspace("stress_models")
    for name in ("nnUNet_raw", "nnUNet_preprocessed"):
        shutil.copytree(planned.root / name / DATA, workspace.root / name / DATA)
    preprocessed = workspace.root / "nnUNet_preprocessed"
    plans = json.loads((preprocessed / DATA / f"{PLANS}.json").read_text())
    dataset_json = json.loads((preprocessed / DATA / "dataset.json").read_text())
    with inside(workspace):
        for fold in (0, 1):
            for trainer in (G, A):
                a = make_model(trainer, plans, "2d_inpainting", fold, dataset_json)
        whole = copy.deepcopy(plans)
        whole["anomaly"]["end_to_end"]["model"] = str(a)
        for fold in (0, 1):
            plain = make_model(PLAIN, plans, "2d", fold, dataset_json)
            make_model(WHOLE, whole, "2d", fold, dataset_json)
            validation = plain / f"fold_{fold}" / "validation"
            for case in json.loads((preprocessed / DATA / "splits_final.json").read_text())[fold]["val"]:
                shutil.copy(workspace.root / "nnUNet_raw" / DATA / "labelsTr" / f"{case}.nii.gz", validation)
    masks = ("-tr", G, "--masks-from", plain.name)
    for dataset, more in {AWARE_DATA: ("-tr", A), TWO_PASS_DATA: masks}.items():
        command = ("nnunet-anomaly", "error-maps", "-d", "101", "-p", PLANS, "-c", "2d_inpainting", "-o", dataset)
        workspace.run(*command, "-device", "cpu", "-np", "1", *more)
        derived = json.loads((workspace.root / "nnUNet_raw" / dataset / "dataset.json").read_text())
        identifier = plans["configurations"]["2d"]["data_identifier"]  # a trainer looks at the kind of its files
        shutil.copytree(preprocessed / DATA / identifier, preprocessed / dataset / identifier)
        shutil.copy(workspace.root / "nnUNet_raw" / dataset / "splits_final.json", preprocessed / dataset)
        with inside(workspace):
            for fold in (0, 1):
                make_model(AWARE, with_error_channel(plans, dataset), "2d", fold, derived)
    return SimpleNamespace(workspace=workspace, root=workspace.root, dataset_json=dataset_json, plans=plans)


@pytest.fixture
def changeable(models, tmp_path) -> SimpleNamespace:
    """A copy of all folders, to be changed."""
    root = tmp_path / "workspace"
    shutil.copytree(models.root, root, symlinks=True)
    return SimpleNamespace(workspace=type(models.workspace)(root), root=root)


@pytest.fixture(scope="session")
def stress() -> Callable:
    """Run ``nnunet-anomaly stress`` on dataset 101 with 2-D models: ``stress(models, output, *more, expect=0)``.

    Without figures against severity, which take most of the time, but for ``figures=True``.
    """

    def run(models, output: Path, *more: str, tr=(PLAIN,), folds=("0",), expect: int = 0, figures: bool = False):
        command = ["nnunet-anomaly", "stress", "-d", "101", "-p", PLANS, "-c", "2d", "-o", str(output)]
        chosen = [word for name in tr for word in ("-tr", name)]
        how = ["-device", "cpu", "-np", "1", "--worst", "0", "-f", *folds]
        with pytest.MonkeyPatch.context() as patch:
            if not figures:
                patch.setattr("nnunet_anomaly.workflow.stress_report._add_metric", lambda *_: None)
            return models.workspace.run(*command, *chosen, *how, *more, expect=expect)

    return run


@pytest.fixture(scope="session")
def tiny_slices(models, new_workspace) -> Callable:
    """A dataset (103) of single slices with a plain model of fold 0: ``tiny_slices(".png")``."""
    import SimpleITK as sitk
    from skimage import io

    def write(path: Path, array) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".png":
            io.imsave(path, array, check_contrast=False)
            return
        image = sitk.GetImageFromArray(array)
        image.SetSpacing((1.5, 1.5))
        sitk.WriteImage(image, str(path))

    def make(ending: str):
        workspace, name = new_workspace("stress_slices"), "Dataset103_Slices"
        raw, preprocessed = (workspace.root / folder / name for folder in ("nnUNet_raw", "nnUNet_preprocessed"))
        for number in (3, 4):
            for kind, suffix in (("images", "_0000"), ("labels", "")):
                volume = models.root / "nnUNet_raw" / DATA / f"{kind}Tr" / f"case_{number:02d}{suffix}.nii.gz"
                array = sitk.GetArrayFromImage(sitk.ReadImage(str(volume)))[8].clip(0, 255).astype("uint8")
                write(raw / f"{kind}Tr" / f"slice_{number}{suffix}{ending}", array)
        reader = "NaturalImage2DIO" if ending == ".png" else "SimpleITKIO"
        dataset_json = models.dataset_json | {"file_ending": ending, "overwrite_image_reader_writer": reader}
        plans = models.plans | {"dataset_name": name, "image_reader_writer": reader}
        identifier = plans["configurations"]["2d"]["data_identifier"]
        shutil.copytree(models.root / "nnUNet_preprocessed" / DATA / identifier, preprocessed / identifier)
        (raw / "dataset.json").write_text(json.dumps(dataset_json))
        (preprocessed / "splits_final.json").write_text(json.dumps([{"train": ["slice_4"], "val": ["slice_3"]}]))
        with inside(workspace):
            make_model(PLAIN, plans, "2d", 0, dataset_json)
        return workspace

    return make
