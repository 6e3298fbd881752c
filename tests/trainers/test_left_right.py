"""Mirroring of segmentation trainers: as nnU-Net's without pairs, else so that left and right are told apart."""

import copy
import shutil
from pathlib import Path

import pytest
import torch
from batchgenerators.utilities.file_and_folder_operations import load_json
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_anomaly.augmentation.twin_mirroring import TwinMirrorTransform
from nnunet_anomaly.errors import SettingsError
from nnunet_anomaly.trainers.anomaly_augmentation import nnUNetTrainerAnomalyAugmentation
from nnunet_anomaly.trainers.anomaly_aware import nnUNetTrainerAnomalyAware
from nnunet_anomaly.trainers.left_right import nnUNetTrainerLeftRight
from nnunet_anomaly.trainers.seeded import nnUNetTrainerSeeded

PAIR = {"symmetry__pairs": [[1, 2]], "symmetry__side_axis": 2}
PLAIN = {"symmetry__mirroring": "plain", "symmetry__test_time_mirroring": "plain"}


@pytest.fixture
def files(planned):
    """The tiny dataset's plans and dataset.json."""
    folder = planned.root / "nnUNet_preprocessed" / "Dataset101_Tiny"
    return [load_json(str(folder / name)) for name in ("nnUNetAnomalyTinyPlans.json", "dataset.json")]


def mirroring_of(trainer):
    """Its training transform for mirroring, and the axes that nnU-Net's predictor mirrors."""
    size = trainer.configuration_manager.patch_size
    rotation, dummy_2d, _, axes = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    pipeline = trainer.get_training_transforms(size, rotation, None, axes, dummy_2d)
    found = [step for step in pipeline.transforms if isinstance(step, MirrorTransform)]
    return found[0] if found else None, trainer.inference_allowed_mirroring_axes


@pytest.mark.parametrize("settings", [{}, {**PAIR, **PLAIN}], ids=["no pairs", "plain"])
def test_without_pairs_and_plain_it_is_nnunet(new_trainer, settings):
    weights = []
    for trainer_class in (nnUNetTrainerSeeded, nnUNetTrainerLeftRight):
        trainer = new_trainer(trainer_class, "3d_fullres", **settings)
        trainer.num_epochs = 1
        trainer.run_training()
        weights.append(torch.cat([parameter.flatten() for parameter in trainer.network.parameters()]))
        assert trainer.inference_allowed_mirroring_axes == (0, 1, 2)
        assert not trainer.network._forward_hooks
        assert type(mirroring_of(trainer)[0]) is MirrorTransform
    assert torch.equal(*weights)


@pytest.mark.parametrize(
    "trainer_class", [nnUNetTrainerLeftRight, nnUNetTrainerAnomalyAware, nnUNetTrainerAnomalyAugmentation]
)
def test_swap(new_trainer, trainer_class):
    transform, axes = mirroring_of(new_trainer(trainer_class, "3d_fullres", **PAIR))
    assert isinstance(transform, TwinMirrorTransform) and transform.allowed_axes == (0, 1, 2)
    assert (transform.side_axis, transform.twins, axes) == (2, {1: 2, 2: 1}, (0, 1))


def test_off(new_trainer):
    off = {"symmetry__mirroring": "off", "symmetry__test_time_mirroring": "off"}
    trainer = new_trainer(nnUNetTrainerLeftRight, "3d_fullres", **PAIR, **off)
    transform, axes = mirroring_of(trainer)
    assert type(transform) is MirrorTransform and transform.allowed_axes == axes == (0, 1)
    trainer.initialize()
    assert not trainer.network._forward_hooks


def test_training_and_prediction_are_set_apart(new_trainer):
    only_training = new_trainer(nnUNetTrainerLeftRight, "3d_fullres", **PAIR, symmetry__test_time_mirroring="plain")
    transform, axes = mirroring_of(only_training)
    assert isinstance(transform, TwinMirrorTransform) and axes == (0, 1, 2)
    only_training.initialize()
    assert not only_training.network._forward_hooks
    only_prediction = new_trainer(nnUNetTrainerLeftRight, "3d_fullres", **PAIR, symmetry__mirroring="plain")
    transform, axes = mirroring_of(only_prediction)
    assert type(transform) is MirrorTransform and transform.allowed_axes == (0, 1, 2) and axes == (0, 1)


@pytest.mark.parametrize(("side_axis", "expected"), [(0, None), (1, 0), (2, 1)])
def test_slices_have_the_axis_within_them_or_not(new_trainer, side_axis, expected):
    trainer = new_trainer(nnUNetTrainerLeftRight, "2d", symmetry__pairs=[[1, 2]], symmetry__side_axis=side_axis)
    assert trainer.side_axis == expected
    transform, axes = mirroring_of(trainer)
    trainer.initialize()
    hooks = list(trainer.network._forward_hooks.values())
    if expected is None:
        assert type(transform) is MirrorTransform and axes == (0, 1) and not hooks
    else:
        assert transform.side_axis == expected and axes == (1 - expected,) and hooks[0].axis == expected + 2


def test_when_no_axis_is_left_the_predictor_mirrors_none(new_trainer, monkeypatch):
    trainer = new_trainer(nnUNetTrainerLeftRight, "3d_fullres", **PAIR)
    stock = nnUNetTrainerSeeded.configure_rotation_dummyDA_mirroring_and_inital_patch_size

    def side_alone(self):
        rotation, dummy_2d, size, _ = stock(self)
        self.inference_allowed_mirroring_axes = (2,)
        return rotation, dummy_2d, size, (2,)

    monkeypatch.setattr(
        nnUNetTrainerLeftRight.__mro__[2], "configure_rotation_dummyDA_mirroring_and_inital_patch_size", side_alone
    )
    assert mirroring_of(trainer)[1] is None


def test_an_axis_that_is_not_known_and_labels_that_are_not_there_are_errors(new_trainer):
    for mirroring in ("swap", "off"):
        with pytest.raises(SettingsError, match=r"side_axis is -1.*DICOMOrient"):
            new_trainer(nnUNetTrainerLeftRight, "3d_fullres", symmetry__pairs=[[1, 2]], symmetry__mirroring=mirroring)
    with pytest.raises(SettingsError, match=r"symmetry.pairs has \[7\]; the dataset's labels are \[1, 2\]"):
        new_trainer(nnUNetTrainerLeftRight, "3d_fullres", symmetry__pairs=[[1, 7]], symmetry__side_axis=2)


def test_stock_prediction_is_the_same_for_the_mirror_image(new_trainer):
    """From the checkpoint and the plans beside it alone, as nnUNetv2_predict does."""
    trainer = new_trainer(nnUNetTrainerLeftRight, "3d_fullres", **PAIR)
    trainer.num_epochs = 1
    trainer.run_training()
    image = torch.randn((1, *trainer.configuration_manager.patch_size), generator=torch.Generator().manual_seed(0))

    def predicted(image, **changes):
        # one window; its weights are not symmetric, and nearly 0 in half precision in the corners
        predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False, use_gaussian=False)
        predictor.initialize_from_trained_model_folder(trainer.output_folder_base, (0,), "checkpoint_final.pth")
        assert predictor.allowed_mirroring_axes == (0, 1)
        for name, value in changes.items():
            setattr(predictor, name, value)
        return predictor.predict_logits_from_preprocessed_data(image)

    for tta in ({}, {"use_mirroring": False}):  # --disable_tta
        logits = predicted(image, **tta)
        mirrored = predicted(image.flip(3), **tta).flip(3)[[0, 2, 1]]
        torch.testing.assert_close(logits, mirrored, rtol=0, atol=2e-3)  # nnU-Net sums in half precision
    stock = copy.deepcopy(trainer.network).eval()
    stock._forward_hooks.clear()
    trainer.set_deep_supervision_enabled(False)
    stock.decoder.deep_supervision = False
    with torch.inference_mode():
        once, looked_twice = stock(image[None]), trainer.network.eval()(image[None])
        again = stock(image[None].flip(4)).flip(4)[:, [0, 2, 1]]
    assert torch.equal(looked_twice, (once + again) / 2) and not torch.allclose(once, again, atol=1e-4)


def test_a_validation_step_is_nnunets(new_trainer):
    results = []
    for trainer_class in (nnUNetTrainerSeeded, nnUNetTrainerLeftRight):
        trainer = new_trainer(trainer_class, "3d_fullres", **PAIR)
        trainer.initialize()
        trainer.network.eval()
        size = trainer.configuration_manager.patch_size
        generator = torch.Generator().manual_seed(0)
        targets = [
            torch.randint(
                0, 3, (2, 1, *(round(n * f) for n, f in zip(size, scale, strict=True))), generator=generator
            ).float()
            for scale in trainer._get_deep_supervision_scales()
        ]
        with torch.no_grad():
            results.append(
                trainer.validation_step({"data": torch.randn((2, 1, *size), generator=generator), "target": targets})
            )
    assert results[0]["loss"] == results[1]["loss"]
    assert (results[0]["tp_hard"] == results[1]["tp_hard"]).all()


def equivariant(network, image, inputs, outputs):
    """Whether a mirrored image (and exchanged input labels) gives mirrored, exchanged logits."""
    with torch.inference_mode():
        return torch.allclose(network(image.flip(4)[:, inputs]), network(image).flip(4)[:, outputs], atol=1e-5)


def test_regions(new_trainer, files):
    plans, dataset_json = files
    dataset_json["labels"] = {"background": 0, "both": [1, 2], "one": 1, "other": 2}
    dataset_json["regions_class_order"] = [1, 1, 2]
    trainer = new_trainer(nnUNetTrainerLeftRight, "3d_fullres", plans=plans, dataset_json=dataset_json, **PAIR)
    assert trainer.settings.symmetry.region_twins == (0, 2, 1)
    assert trainer.plans_manager.plans["anomaly"]["symmetry"]["region_twins"] == [0, 2, 1]  # saved with the model
    trainer.initialize()
    trainer.set_deep_supervision_enabled(False)
    image = torch.randn((1, 1, *trainer.configuration_manager.patch_size))
    assert equivariant(trainer.network.eval(), image, [0], [0, 2, 1])


def network_after(trainer, test_time_mirroring):
    """The network that prediction builds once the plans in the model's folder were changed."""
    plans = copy.deepcopy(trainer.plans_manager.plans)
    plans["anomaly"]["symmetry"]["test_time_mirroring"] = test_time_mirroring
    manager, outputs = PlansManager(plans), trainer.label_manager.num_segmentation_heads
    return trainer.build_network_architecture(manager, manager.get_configuration("3d_fullres"), 1, outputs, False)


def test_regions_may_go_from_off_to_swap_after_training(new_trainer, files):
    plans, dataset_json = files
    # twins at other places than those of labels, background first
    dataset_json["labels"] = {"background": 0, "one": 1, "other": 2, "both": [1, 2]}
    dataset_json["regions_class_order"] = [1, 2, 1]
    off = {**PAIR, "symmetry__test_time_mirroring": "off"}
    trainer = new_trainer(nnUNetTrainerLeftRight, "3d_fullres", plans=plans, dataset_json=dataset_json, **off)
    assert not network_after(trainer, "off")._forward_hooks
    (hook,) = network_after(trainer, "swap")._forward_hooks.values()
    assert hook.output_twins == [1, 0, 2]


@pytest.mark.parametrize("mirroring", ["swap", "plain"])
@pytest.mark.parametrize("regions", [True, False])
def test_swap_after_plain_is_refused(new_trainer, files, mirroring, regions):
    plans, dataset_json = files
    if regions:
        dataset_json["labels"] = {"background": 0, "both": [1, 2], "one": 1, "other": 2}
        dataset_json["regions_class_order"] = [1, 1, 2]
    plain = {**PAIR, "symmetry__mirroring": mirroring, "symmetry__test_time_mirroring": "plain"}
    trainer = new_trainer(nnUNetTrainerLeftRight, "3d_fullres", plans=plans, dataset_json=dataset_json, **plain)
    assert not network_after(trainer, "plain")._forward_hooks
    with pytest.raises(SettingsError, match="trained with plain"):
        network_after(trainer, "swap")


def start(new_trainer, files, fold, **symmetry):
    trainer = new_trainer(nnUNetTrainerLeftRight, "3d_fullres", fold=fold, plans=copy.deepcopy(files[0]), **symmetry)
    trainer.on_train_start()
    return trainer


LEFT_TO_NNUNET = {**PAIR, "symmetry__test_time_mirroring": "plain"}


def test_a_checkpoint_of_plain_plans_is_validated_without_its_axis(new_trainer, files):
    """nnU-Net's predictor would mirror left and right together, and the hook exchange them: both sides the same."""
    trainer = start(new_trainer, files, 0, **LEFT_TO_NNUNET)
    path = Path(trainer.output_folder) / "checkpoint_best.pth"
    trainer.save_checkpoint(str(path))
    assert trainer.inference_allowed_mirroring_axes == (0, 1, 2)
    changed = new_trainer(nnUNetTrainerLeftRight, "3d_fullres", plans=copy.deepcopy(files[0]), **PAIR)
    changed.load_checkpoint(str(path))  # --val
    assert changed.inference_allowed_mirroring_axes == (0, 1)


@pytest.mark.parametrize("left_to_nnunet", [LEFT_TO_NNUNET, {}], ids=["plain", "no pairs"])
@pytest.mark.parametrize("known", [PAIR, {**PAIR, "symmetry__test_time_mirroring": "off"}], ids=["swap", "off"])
def test_folds_that_mirror_sides_differently_do_not_share_a_folder(new_trainer, files, left_to_nnunet, known):
    """Both ways round, and also while the other fold is in its first epoch, without a checkpoint."""
    for first, second in ((left_to_nnunet, known), (known, left_to_nnunet)):
        trainer = start(new_trainer, files, 0, **first)
        with pytest.raises(SettingsError, match=r"has fold_0 by other plans.*symmetry\.(pairs|test_time).*--save-as"):
            start(new_trainer, files, 1, **second)
        start(new_trainer, files, 1, **first)
        shutil.rmtree(trainer.output_folder_base)
        start(new_trainer, files, 0, **second)
        start(new_trainer, files, 0, **first)  # the same fold once more
        shutil.rmtree(trainer.output_folder_base)


def test_regions_without_a_twin_are_refused_and_the_option_is_named(new_trainer, files):
    plans, dataset_json = files
    dataset_json["labels"] = {"background": 0, "both": [1, 2], "one": 1}
    dataset_json["regions_class_order"] = [2, 1]
    arguments = {"dataset_json": dataset_json, **PAIR}
    with pytest.raises(SettingsError, match=r"becomes one of \[2\].*symmetry\.test_time_mirroring=off"):
        new_trainer(nnUNetTrainerLeftRight, "3d_fullres", plans=copy.deepcopy(plans), **arguments)
    across = {**arguments, "symmetry__side_axis": 0}  # sagittal slices
    assert new_trainer(nnUNetTrainerLeftRight, "2d", plans=copy.deepcopy(plans), **across).side_axis is None
    stale = {"symmetry__test_time_mirroring": "off", "symmetry__region_twins": [1, 0]}
    trainer = new_trainer(nnUNetTrainerLeftRight, "3d_fullres", plans=plans, **arguments, **stale)
    assert trainer.settings.symmetry.region_twins == (-1, -1)
    with pytest.raises(SettingsError, match="by regions of which one has no twin"):
        network_after(trainer, "swap")


def test_cascade(new_trainer, files):
    plans, _ = files
    plans["configurations"]["3d_lowres"] = {**plans["configurations"]["3d_fullres"], "next_stage": "3d_cascade"}
    plans["configurations"]["3d_cascade"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    trainer = new_trainer(nnUNetTrainerLeftRight, "3d_cascade", plans=plans, **PAIR)
    trainer.initialize()
    trainer.set_deep_supervision_enabled(False)
    assert trainer.num_input_channels == 3  # image, label 1, label 2
    image = torch.randn((1, 3, *trainer.configuration_manager.patch_size))
    assert equivariant(trainer.network.eval(), image, [0, 2, 1], [0, 2, 1])
    assert not equivariant(trainer.network, image, [0, 1, 2], [0, 2, 1])
