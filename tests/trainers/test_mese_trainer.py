"""A network of one echo in nnU-Net's training and prediction."""

import copy
from pathlib import Path

import blosc2
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from batchgenerators.utilities.file_and_folder_operations import load_json, save_json
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run.run_training import run_training_entry
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.utilities.helpers import softmax_helper_dim1
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_anomaly.errors import InputError, SettingsError
from nnunet_anomaly.files import read_image
from nnunet_anomaly.multi_echo import MultiEcho
from nnunet_anomaly.settings import AnomalySettings
from nnunet_anomaly.trainers.mese import nnUNetTrainerMESE, nnUNetTrainerMESE_2epochs
from nnunet_anomaly.workflow.t2_model import Predictor, open_model

NAME, PLANS = "Dataset104_MESE", "nnUNetMESETinyPlans"
STEPS = 120  # an epoch


@pytest.fixture(scope="module")
def folders(planned_mese, tmp_path_factory):
    """nnU-Net's folders in this process, with results of this module, and one thread."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("nnUNet_raw", "nnUNet_preprocessed"):
            patch.setenv(name, str(planned_mese.root / name))
        patch.setenv("nnUNet_results", str(tmp_path_factory.mktemp("results")))
        patch.setenv("nnUNet_n_proc_DA", "0")
        torch.set_num_threads(1)
        yield planned_mese.root
    torch.set_num_threads(threads)


@pytest.fixture
def content(folders):
    """Plans and dataset.json of the tiny dataset."""
    folder = folders / "nnUNet_preprocessed" / NAME
    return load_json(str(folder / f"{PLANS}.json")), load_json(str(folder / "dataset.json"))


@pytest.fixture
def make(content):
    """A trainer with some settings (``group__key``); ``change(plans, dataset_json)`` may change the rest before."""

    def new(change=lambda plans, dataset_json: None, configuration="2d", **settings):
        plans, dataset_json = content
        values = {f"{key.replace('__', '.')}": value for key, value in settings.items()}
        if values:
            plans["anomaly"] = AnomalySettings.from_plans(plans).with_values(values).to_dict()
        plans["continue_training"] = False
        change(plans, dataset_json)
        trainer = nnUNetTrainerMESE(plans, configuration, 0, dataset_json, torch.device("cpu"))
        trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 1, 2, 1
        return trainer

    return new


class Killed(Exception):
    """Stands for a process that was ended from outside."""


@pytest.fixture(scope="module")
def trained(folders):
    """Folder of a model by nnU-Net's own entry point: killed in its second epoch, gone on with by --c."""
    with pytest.MonkeyPatch.context() as patch:
        initialize, begin, begun = nnUNetTrainerMESE.initialize, nnUNetTrainerMESE.on_epoch_start, []

        def shortened(self):
            self.num_iterations_per_epoch, self.num_val_iterations_per_epoch, self.save_every = STEPS, 10, 1
            initialize(self)

        def killed_in_second_epoch(self):
            begun.append(self.current_epoch)
            if len(begun) == 2:
                raise Killed
            begin(self)

        patch.setattr(nnUNetTrainerMESE, "initialize", shortened)
        patch.setattr(nnUNetTrainerMESE, "on_epoch_start", killed_in_second_epoch)
        patch.setattr(torch, "set_num_threads", lambda number: None)
        patch.setenv("nnUNet_def_n_proc", "1")
        train = ["104", "2d", "0", "-tr", "nnUNetTrainerMESE_2epochs", "-p", PLANS, "-device", "cpu"]
        patch.setattr("sys.argv", ["nnUNetv2_train", *train])
        with pytest.raises(Killed):
            run_training_entry()
        patch.setattr("sys.argv", ["nnUNetv2_train", *train, "--c"])
        run_training_entry()
        assert begun == [0, 1, 1]
        yield Path(nnUNetTrainerMESE_2epochs(*arguments(folders)).output_folder_base)


def arguments(folders):
    """What a trainer of the first fold is made with."""
    folder = folders / "nnUNet_preprocessed" / NAME
    plans = load_json(str(folder / f"{PLANS}.json")) | {"continue_training": False}
    return plans, "2d", 0, load_json(str(folder / "dataset.json")), torch.device("cpu")


def logits_of_model(folder, image):
    """As nnUNetv2_predict: from the plans beside the checkpoint and its weights alone."""
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder), (0,), "checkpoint_final.pth")
    return predictor.predict_logits_from_preprocessed_data(image).float()


def test_it_learns_from_echoes_of_different_contrast(trained):
    log = torch.load(trained / "fold_0" / "checkpoint_final.pth", weights_only=False)["logging"]
    losses = log["train_losses"]
    assert len(losses) == 2 and losses[1] < losses[0] - 0.1
    # all voxels called cartilage would have a Dice of 0.26
    assert load_json(str(trained / "fold_0" / "validation" / "summary.json"))["foreground_mean"]["Dice"] > 0.5


def test_prediction_sees_the_second_echo_alone(trained):
    image = torch.randn((3, 4, 32, 32), generator=torch.Generator().manual_seed(0))
    answer = logits_of_model(trained, image)
    others = image.clone()
    others[[0, 2]] = 1e3 * torch.randn((2, 4, 32, 32), generator=torch.Generator().manual_seed(1))
    assert torch.equal(logits_of_model(trained, others), answer)
    second = image.clone()
    second[1, 0] = others[0, 0]
    differing = (logits_of_model(trained, second) != answer).flatten(2).any(2).any(0)
    assert differing.tolist() == [True, False, False, False]  # and every slice by itself


def test_another_echo_can_be_predicted_from_by_the_models_plans(trained, tmp_path):
    image = torch.randn((3, 2, 32, 32), generator=torch.Generator().manual_seed(0))
    plans = load_json(str(trained / "plans.json"))
    changed = copy.deepcopy(plans)
    try:
        changed["anomaly"]["mese"]["prediction_echo"] = 3
        save_json(changed, str(trained / "plans.json"))
        third = logits_of_model(trained, image)
        changed["anomaly"]["mese"]["prediction_echo"] = 4
        save_json(changed, str(trained / "plans.json"))
        with pytest.raises(SettingsError, match=r"prediction_echo is 4, but the dataset has 3 channels\. Set it to"):
            logits_of_model(trained, image)
    finally:
        save_json(plans, str(trained / "plans.json"))
    assert torch.equal(third, logits_of_model(trained, image[[0, 2, 1]]))


def dice(predicted, labels):
    return 2 * ((predicted == 1) & (labels == 1)).sum() / ((predicted == 1).sum() + (labels == 1).sum())


def test_by_nnunets_commands_it_predicts_elsewhere(trained, planned_mese, write_mese_images, tmp_path):
    """Export, import, prediction, each in a process of its own, which knows nothing of this one."""
    names = ["-d", "104", "-tr", nnUNetTrainerMESE_2epochs.__name__, "-p", PLANS, "-c", "2d", "-f", "0"]
    results, elsewhere = ({"nnUNet_results": str(folder)} for folder in (trained.parents[1], tmp_path / "imported"))
    planned_mese.run("nnUNetv2_export_model_to_zip", *names, "-o", str(tmp_path / "model.zip"), **results)
    (tmp_path / "imported").mkdir()
    planned_mese.run("nnUNetv2_install_pretrained_model_from_zip", str(tmp_path / "model.zip"), **elsewhere)

    labels = write_mese_images(tmp_path / "images", "new", 20)
    write_mese_images(tmp_path / "images", "other", 20)
    for channel in (0, 2):  # the same knee, but for the echoes that are not looked at
        path = tmp_path / "images" / f"other_{channel:04d}.nii.gz"
        image = sitk.ReadImage(str(path))
        sitk.WriteImage(sitk.Cast(sitk.AdditiveGaussianNoise(image, 500), sitk.sitkFloat32), str(path))
    command = ["nnUNetv2_predict", "-i", str(tmp_path / "images"), "-o", str(tmp_path / "predicted"), *names]
    planned_mese.run(*command, "-device", "cpu", "-npp", "1", "-nps", "1", **elsewhere)
    predicted, other = (
        sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "predicted" / f"{name}.nii.gz")))
        for name in ("new", "other")
    )
    assert dice(predicted, labels) > 0.5
    np.testing.assert_array_equal(predicted, other)

    # and ``nnunet-anomaly t2`` sees what nnUNetv2_predict sees
    echoes = tuple(read_image(tmp_path / "images" / f"new_{channel:04d}.nii.gz") for channel in range(3))
    stack = MultiEcho(echoes, (10.0, 20.0, 30.0), "right", "1.2.3", "new")
    probability = Predictor(open_model(trained), "cpu").probability(stack)
    np.testing.assert_array_equal(probability > 0.5, predicted == 1)


def test_weights_are_those_of_nnunets_network_for_one_channel(trained):
    checkpoint = torch.load(trained / "fold_0" / "checkpoint_final.pth", weights_only=False)
    plans = load_json(str(trained / "plans.json"))
    manager = PlansManager(plans)
    stock = super(nnUNetTrainerMESE, nnUNetTrainerMESE).build_network_architecture(
        manager, manager.get_configuration("2d"), 1, 2, False
    )
    stock.load_state_dict(checkpoint["network_weights"])
    group = checkpoint["optimizer_state"]["param_groups"][0]
    assert group["betas"] == (0.99, 0.995) and group["weight_decay"] == 0


def test_every_echo_of_every_case_has_the_papers_intensities(folders):
    paths = sorted((folders / "nnUNet_preprocessed" / NAME / f"{PLANS}_2d").glob("case_??.b2nd"))
    assert len(paths) == 6
    for path in paths:
        for echo in blosc2.open(str(path))[:]:
            np.testing.assert_allclose(np.percentile(echo, (25, 50, 75)), (-1, 0, 1), atol=2e-3)
            assert np.mean(echo == echo.max()) == pytest.approx(0.03, abs=2e-3)


def test_training_sees_one_drawn_echo_and_validation_the_second(make):
    trainer = make(mese__echo_probabilities=[0.5, 0, 0.5])
    trainer.initialize()
    training, held_out = trainer.get_tr_and_val_datasets()
    assert len(training.identifiers) == len(held_out.identifiers) == 30
    for data, echoes in ((training, {0, 2}), (held_out, {1})):
        case = next(iter(data.places.values()))[0]
        stored = data.dataset.load_case(case)[0][:, 4:5]
        found = [data.load_case(f"{case}/4")[0] for _ in range(30)]
        seen = {next(echo for echo in range(3) if np.array_equal(one[0], stored[echo])) for one in found}
        assert seen == echoes
    assert sorted(held_out.draw_pass()) == sorted(held_out.identifiers)
    drawn = training.draw_pass()
    filled = {f"{case}/{number}" for case in training.dataset.identifiers for number in range(2, 8)}
    assert filled <= set(drawn) and len(drawn) < len(training.identifiers)


def test_batches_have_one_channel_and_every_scales_labels(make):
    trainer = make()
    trainer.on_train_start()
    for batch in (next(trainer.dataloader_train), next(trainer.dataloader_val)):
        assert batch["data"].shape == (trainer.batch_size, 1, 32, 32)
        assert len(batch["target"]) == len(trainer.network(batch["data"]))
    log = Path(trainer.log_file).read_text()
    assert "18 slices of 3 training cases hold foreground, 12 do not; of these each pass has about 1" in log


def test_the_loss_is_soft_dice_of_the_batch_alone(make):
    trainer = make()
    trainer.initialize()
    generator = torch.Generator().manual_seed(0)
    scales = trainer._get_deep_supervision_scales()
    shapes = [[round(32 * factor) for factor in scale] for scale in scales]
    heads = [torch.randn(4, 2, *shape, generator=generator) for shape in shapes]
    targets = [torch.randint(0, 2, (4, 1, *shape), generator=generator).float() for shape in shapes]
    for target in targets:
        target[1:] = 0  # slices without cartilage count in the batch's Dice
    found = trainer.loss(heads, targets)
    dice = []
    for head, target in zip(heads, targets, strict=True):
        foreground = head.softmax(1)[:, 1]
        overlap = (foreground * target[:, 0]).sum()
        dice.append(float(2 * overlap / (foreground.sum() + target.sum())))
    weights = np.array([0.5**index for index in range(len(dice))])
    weights[-1] = 0  # nnU-Net leaves the coarsest out
    assert float(found) == pytest.approx(-np.average(dice, weights=weights), abs=1e-5)
    stock = MemoryEfficientSoftDiceLoss(softmax_helper_dim1, batch_dice=True, do_bg=False, smooth=1e-5, ddp=False)
    trainer.loss.weight_factors = (1.0, *[0.0] * (len(heads) - 1))
    assert float(trainer.loss(heads, targets)) == float(stock(heads[0], targets[0]))


@pytest.mark.parametrize(("schedule", "factor"), [("constant", 1), ("poly", 0.5**0.9)])
def test_the_learning_rate_is_as_the_settings_say(make, schedule, factor):
    trainer = make(mese__learning_rate=0.02, mese__learning_rate_schedule=schedule, mese__betas=[0.8, 0.9])
    assert trainer.num_epochs == 1
    trainer.num_epochs = 10
    trainer.initialize()
    assert isinstance(trainer.optimizer, torch.optim.Adam)
    assert trainer.optimizer.param_groups[0]["betas"] == (0.8, 0.9)
    trainer.lr_scheduler.step(5)
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.02 * factor)


def test_epochs_are_those_of_the_settings_or_of_the_name(content):
    plans, dataset_json = content
    more = ("2d", 0, dataset_json, torch.device("cpu"))
    assert nnUNetTrainerMESE(copy.deepcopy(plans) | {"continue_training": False}, *more).num_epochs == 100
    assert nnUNetTrainerMESE_2epochs(copy.deepcopy(plans) | {"continue_training": False}, *more).num_epochs == 2


def test_a_single_echo_trains_and_predicts(make, folders, tmp_path, monkeypatch):
    """A dataset of one channel, as its planner would plan it: the second echo of the tiny dataset."""
    stored = folders / "nnUNet_preprocessed" / NAME
    alone = tmp_path / "preprocessed" / NAME
    (alone / f"{PLANS}_2d").mkdir(parents=True)
    for path in (stored / f"{PLANS}_2d").iterdir():
        if path.suffix == ".b2nd" and not path.stem.endswith("_seg"):
            echo = np.ascontiguousarray(blosc2.open(str(path))[1:2])
            blosc2.asarray(echo, urlpath=str(alone / f"{PLANS}_2d" / path.name), mode="w")
        else:
            (alone / f"{PLANS}_2d" / path.name).write_bytes(path.read_bytes())
    for name in ("dataset_fingerprint.json", "splits_final.json"):
        (alone / name).write_bytes((stored / name).read_bytes())
    monkeypatch.setenv("nnUNet_preprocessed", str(alone.parent))
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))

    def one_channel(plans, dataset_json):
        dataset_json["channel_names"] = {"0": "MESE_echo2"}
        for key in ("normalization_schemes", "use_mask_for_norm"):
            plans["configurations"]["2d"][key] = plans["configurations"]["2d"][key][:1]

    trainer = make(one_channel, mese__echo_probabilities=[1.0], mese__prediction_echo=1)
    trainer.run_training()
    assert np.isfinite(trainer.logger.get_value("train_losses", step=-1))
    image = torch.randn((1, 2, 32, 32), generator=torch.Generator().manual_seed(0))
    assert logits_of_model(trainer.output_folder_base, image).shape == (2, 2, 32, 32)


def test_ignored_voxels_train(make):
    def ignore(plans, dataset_json):
        dataset_json["labels"]["ignore"] = 2

    trainer = make(ignore)
    trainer.run_training()
    assert np.isfinite(trainer.logger.get_value("train_losses", step=-1))


def test_a_compiled_network_sees_the_same_echo(make):
    trainer = make()
    trainer.initialize()
    trainer.set_deep_supervision_enabled(False)
    image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    network = trainer.network.eval()
    compiled = torch.compile(network, backend="eager")
    with torch.inference_mode():
        assert torch.equal(compiled(image[:, 1:2]), network(image))
        assert torch.equal(compiled(image), network(image))


def with_scheme(scheme):
    def change(plans, dataset_json):
        plans["configurations"]["2d"]["normalization_schemes"] = [scheme] * 3

    return change


def without_block(plans, dataset_json):
    del plans["anomaly"]


def in_3d(plans, dataset_json):
    plans["configurations"]["2d"]["patch_size"] = [8, 32, 32]


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (None, {"echo_probabilities": [0.5, 0.5]}, "echo_probabilities has 2 numbers, but the dataset has 3 channels"),
        (None, {"echo_probabilities": [0.5, 0.5, 0.5]}, r"echo_probabilities sums to 1\.5, not to 1\. Set it.*--set "),
        (None, {"echo_probabilities": [0.2, 0.6, 0.1]}, r"sums to 0\.9, not to 1"),
        (None, {"prediction_echo": 4}, r"prediction_echo is 4, but the dataset has 3 channels\. Set it to a number"),
        (with_scheme("ZScoreNormalization"), {}, "has ZScoreNormalization. Train it on 2d .* -pl nnUNetPlannerMESE"),
        (in_3d, {}, "configuration '2d' is 3-D. Train it on 2d of plans made by -pl nnUNetPlannerMESE"),
        (without_block, {}, 'have no "anomaly" block'),
    ],
)
def test_what_does_not_fit_is_an_error(make, change, settings, message):
    settings = {f"mese__{key}": value for key, value in settings.items()}
    with pytest.raises(SettingsError, match=message):
        make(change, **settings) if change else make(**settings)


def test_gpus_that_cannot_share_a_batch_evenly_are_an_error(make, monkeypatch):
    trainer = make()
    trainer.is_ddp, size = True, trainer.configuration_manager.batch_size
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: size + 1)
    with pytest.raises(SettingsError, match=f"batch size is {size}, which {size + 1} GPUs cannot share evenly. Set"):
        trainer.initialize()


def test_thirds_sum_to_1(make):
    trainer = make(mese__echo_probabilities=[0.3333, 0.3333, 0.3333])
    assert trainer.get_tr_and_val_datasets()[0].echo_probabilities.sum() == pytest.approx(1, abs=1e-12)


def test_a_fold_without_cartilage_is_an_error(make):
    trainer = make()
    trainer.label_manager._all_labels = [0, 5]
    with pytest.raises(InputError, match="No slice of the training cases of fold 0 holds foreground"):
        trainer.get_tr_and_val_datasets()
