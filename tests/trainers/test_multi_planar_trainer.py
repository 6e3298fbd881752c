"""One 2-D network, trained on planes of several directions, that predicts volumes."""

import blosc2
import numpy as np
import pytest
import torch
from batchgenerators.utilities.file_and_folder_operations import load_json
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunet_anomaly.errors import SettingsError
from nnunet_anomaly.trainers import plane_loader
from nnunet_anomaly.trainers.multi_planar import nnUNetTrainerMultiPlanar, nnUNetTrainerMultiPlanarGapWeighted
from nnunet_anomaly.views import draw_frames

PLANS = "nnUNetMultiPlanarTinyPlans"


@pytest.fixture
def make(planned_planar, new_trainer):
    """A trainer of planes; ``dataset_json`` and settings as in ``new_trainer``."""

    def new(configuration="3d_multiplanar", **more):
        return new_trainer(nnUNetTrainerMultiPlanar, configuration, plans_name=PLANS, **more)

    return new


@pytest.fixture
def loader_of(make):
    """The training loader without transforms."""

    def new(**settings):
        trainer = make(**settings)
        trainer.initialize()
        dataset, _ = trainer.get_tr_and_val_datasets()
        return trainer.plane_loader(dataset, None)

    return new


def test_training_writes_views_into_the_checkpoint_and_goes_on_with_them(make, tmp_path):
    trainer = make()
    trainer.run_training()
    path = str(tmp_path / "checkpoint.pth")
    trainer.save_checkpoint(path)
    checkpoint = torch.load(path, weights_only=False)
    assert checkpoint["inference_allowed_mirroring_axes"] is None
    np.testing.assert_allclose(checkpoint["network_weights"]["frames"], draw_frames(6, 60, 1234), atol=1e-7)

    other = make(seed=5)
    other.initialize()
    assert not np.allclose(other.planar_network().frames, draw_frames(6, 60, 1234))
    other.load_checkpoint(path)
    loader = other.plane_loader(other.get_tr_and_val_datasets()[0], None)
    np.testing.assert_allclose(loader.frames, draw_frames(6, 60, 1234), atol=1e-7)


def test_another_number_of_views_than_the_checkpoints_is_refused(make, tmp_path):
    trainer = make()
    trainer.initialize()
    path = str(tmp_path / "checkpoint.pth")
    trainer.save_checkpoint(path)
    other = make(multi_planar__views=3)
    with pytest.raises(SettingsError, match=r"checkpoint.pth has 6 views, .* of the plans is 3\. Set it to 6"):
        other.load_checkpoint(path)


def test_nnunets_predictor_gives_the_mean_probability(make):
    trainer = make()
    trainer.initialize()
    trainer.set_deep_supervision_enabled(False)
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    arguments = (trainer.plans_manager, trainer.configuration_manager, None, trainer.dataset_json)
    predictor.manual_initialization(trainer.network, *arguments, "nnUNetTrainerMultiPlanar", None)
    shape = trainer.configuration_manager.patch_size
    image = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    found = predictor.predict_sliding_window_return_logits(image).float().softmax(0)
    expected = trainer.network(image[None])[0].softmax(0)
    # nnU-Net's sums are in half precision, and its weights in a patch's corners are as small as that has numbers
    centre = (slice(None), *(slice(size // 4, -(size // 4)) for size in shape))
    torch.testing.assert_close(found[centre], expected[centre], rtol=0, atol=2e-3)
    assert (found.argmax(0) == expected.argmax(0)).float().mean() > 0.99
    larger = torch.zeros(1, shape[0] + 3, *shape[1:])
    assert predictor.predict_sliding_window_return_logits(larger).shape[1:] == larger.shape[1:]


@pytest.mark.parametrize("ignore", [False, True])
def test_regions_and_ignored_voxels_train(make, planned_planar, ignore):
    folder = planned_planar.root / "nnUNet_preprocessed" / "Dataset101_Tiny"
    dataset_json = load_json(str(folder / "dataset.json"))
    if ignore:  # there is none in the label maps, but all that nnU-Net does about it
        dataset_json["labels"]["ignore"] = 3
        assert draws_ignored(make, dataset_json)
        return
    dataset_json["labels"] = {"background": 0, "whole": [1, 2], "cartilage": 2}
    dataset_json["regions_class_order"] = [1, 2]
    trainer = make(dataset_json=dataset_json)
    trainer.num_epochs = 1
    trainer.run_training()
    assert trainer.planar_network().independent
    trainer.set_deep_supervision_enabled(False)
    trainer.network.eval()
    logits = trainer.network(torch.randn(1, 1, *trainer.configuration_manager.patch_size))
    assert logits.shape[1] == 2 and (logits > 0).any()  # logits of sigmoids, not logarithms


def draws_ignored(make, dataset_json):
    """Planes that are not for the foreground go through labelled voxels where there is an ignore label."""
    trainer = make(dataset_json=dataset_json)
    trainer.initialize()
    loader = trainer.plane_loader(trainer.get_tr_and_val_datasets()[0], None)
    loader.read(loader.indices[0])
    case = loader.pool[loader.indices[0]]
    only = np.array([[0, 3, 4, 5]])
    case = case._replace(class_locations={loader.annotated_classes_key: only})
    return loader.get_bbox(case.labels.shape, False, case.class_locations)[0] == [3, 4, 5]


def test_planes_show_the_volume(loader_of):
    """An image of positions: every pixel of a plane says where it lies."""
    loader = loader_of()
    shape, spacing_mm = (16, 24, 20), np.array(loader.spacing_mm)
    index = np.stack((*np.indices(shape), np.ones(shape))).astype(np.float32)
    labels = np.zeros(shape, dtype=np.int8)
    labels[4:6, 10:12, 7:9] = 2
    case = plane_loader.Case(torch.from_numpy(index)[None], labels, {2: np.argwhere(labels[None] == 2)})
    np.random.seed(0)  # noqa: NPY002
    seen = set()
    for _ in range(40):
        sample = loader.plane_of(case, True)
        (*image, ones), found = sample["image"].numpy(), sample["segmentation"].numpy()
        assert found.shape == (1, *ones.shape) == (1, *[loader.plane_pixels] * 2) and found.dtype == np.int16
        assert (found == 2).any()  # through the foreground
        assert (found[0][ones == 0] == -1).all() and (found[0][ones > 0.9999] >= 0).all()
        image_mm, inside = np.array(image) * spacing_mm[:, None, None], ones > 0.9999
        rows = np.diff(image_mm, axis=1)[:, inside[1:] & inside[:-1]]
        np.testing.assert_allclose(np.linalg.norm(rows, axis=0), loader.pixel_mm, rtol=1e-3)
        nearest = [np.rint(p[inside]).astype(int) for p in image]
        assert (labels[tuple(nearest)] == found[0][inside]).mean() > 0.99  # but for rounding of halves
        points_mm = image_mm[:, inside] - image_mm[:, inside].mean(axis=1, keepdims=True)
        normal = np.linalg.svd(points_mm)[0][:, 2]
        seen.add(int(np.abs(loader.frames[:, 0] @ normal).argmax()))
        assert np.abs(loader.frames[:, 0] @ normal).max() > 0.999
    assert seen == set(range(6))


def test_a_third_of_planes_goes_through_the_foreground_and_any_voxel_is_seen(loader_of):
    loader = loader_of()
    batch = loader.generate_train_batch()
    size = loader.plane_pixels
    assert batch["data"].shape == (loader.batch_size, 1, size, size) and batch["data"].dtype == torch.float32
    assert batch["target"].shape == (loader.batch_size, 1, size, size) and len(batch["keys"]) == loader.batch_size
    forced = [j for j in range(loader.batch_size) if loader.get_do_oversample(j)]
    assert forced and len(forced) < loader.batch_size
    for _ in range(5):
        target = loader.generate_train_batch()["target"]
        assert all((target[j] > 0).any() for j in forced)


def test_cases_stay_in_memory_up_to_the_bound(loader_of, monkeypatch):
    loader = loader_of()
    read, load_case = [], loader._data.load_case
    monkeypatch.setattr(loader._data, "load_case", lambda key: read.append(key) or load_case(key))
    for _ in range(30):
        loader.generate_train_batch()
    assert sorted(read) == sorted(loader.indices)  # each once

    one = max(case.bytes for case in loader.pool.values())
    monkeypatch.setattr(plane_loader, "POOL_BYTES", 1.5 * one)
    loader.pool.clear()
    read.clear()
    keys = [set(loader.generate_train_batch()["keys"]) for _ in range(30)]
    assert len(loader.pool) == 1 and all(len(batch) == 1 for batch in keys)
    assert set().union(*keys) == set(loader.indices) and len(read) <= 30 + loader.batch_size


def test_left_and_right_are_not_mirrored(make):
    def mirrors(**settings):
        trainer = make(**settings)
        trainer.initialize()
        pipeline = trainer.get_dataloaders()[0].data_loader.transforms
        assert trainer.inference_allowed_mirroring_axes is None
        return [t.allowed_axes for t in pipeline.transforms if isinstance(t, MirrorTransform)]

    assert mirrors() == [(0, 1)]
    assert mirrors(symmetry__pairs=[[1, 2]]) == []
    assert mirrors(symmetry__pairs=[[1, 2]], symmetry__mirroring="plain") == [(0, 1)]


@pytest.mark.parametrize("probability", [0, 1])
def test_elastic_deformation_is_the_only_spatial_transform(make, probability):
    trainer = make(gap_weights__elastic_probability=probability)
    size = (trainer.settings.multi_planar.plane_pixels,) * 2
    spatial = trainer.get_training_transforms(size, (0, 0), None, (), False).transforms[0]
    image = torch.arange(size[0] * size[1]).reshape(1, *size).float()
    assert torch.equal(spatial(image=image.clone())["image"], image) == (probability == 0)


def test_what_does_not_fit_is_an_error(make):
    with pytest.raises(SettingsError, match=r"not made for configuration '2d'.*nnUNetPlannerMultiPlanar"):
        make("2d")
    with pytest.raises(SettingsError, match=r"plane_pixels is 26; .* multiple of"):
        make(multi_planar__plane_pixels=26).initialize()
    with pytest.raises(SettingsError, match="views that are 60 degrees apart were not found"):
        make(multi_planar__views=9).initialize()


def test_gap_weights_are_sampled_along_with_the_planes(planned_planar, new_trainer):
    settings = {"gap_weights.sigma_mm": 20, "gap_weights.erosion_mm": 0, "gap_weights.elastic_probability": 0}
    trainer = new_trainer(nnUNetTrainerMultiPlanarGapWeighted, "3d_multiplanar", plans_name=PLANS, **settings)
    trainer.initialize()
    dataset, _ = trainer.get_tr_and_val_datasets()
    loader = trainer.plane_loader(dataset, None)
    loader.read(key := dataset.identifiers[0])
    case = loader.pool[key]
    above_one = blosc2.open(str(dataset.maps / f"{key}.b2nd"))[:]
    assert above_one.max() > 1
    np.testing.assert_array_equal(case.image[0, -1], above_one[0])
    planes = torch.stack([loader.plane_of(case, foreground=True)["image"] for _ in range(8)])
    assert planes.shape[1] == 2
    assert 1e-3 < planes[:, 1].max() <= above_one.max() + 1e-4


def test_planes_with_gap_weights_train_and_the_network_does_not_see_them(planned_planar, new_trainer):
    trainer = new_trainer(nnUNetTrainerMultiPlanarGapWeighted, "3d_multiplanar", plans_name=PLANS)
    trainer.run_training()
    assert trainer.num_input_channels == 1
    assert np.isfinite(trainer.logger.get_value("train_losses", step=-1))


def test_without_gaps_the_loss_is_the_cross_entropy(planned_planar, new_trainer):
    settings = {"gap_weights.amplitude": 0, "gap_weights.elastic_probability": 0}
    trainer = new_trainer(nnUNetTrainerMultiPlanarGapWeighted, "3d_multiplanar", plans_name=PLANS, **settings)
    trainer.initialize()
    trainer.set_deep_supervision_enabled(False)
    logits = torch.randn(2, trainer.label_manager.num_segmentation_heads, 8, 8, requires_grad=True)
    labels = torch.randint(0, 2, (2, 1, 8, 8))
    loss = trainer.loss.loss.loss if hasattr(trainer.loss.loss, "loss") else trainer.loss.loss
    with trainer.loss.weighted_by(torch.zeros(2, 1, 8, 8)):
        found = loss(logits, labels.float())
    torch.testing.assert_close(found, torch.nn.functional.cross_entropy(logits, labels[:, 0]))
