"""Weight maps of preprocessed cases: right, made once, made again when something changed, read in patches."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import blosc2
import numpy as np
import pytest
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2

from nnunet_anomaly import gap_weight_maps
from nnunet_anomaly.errors import AnomalyError, InputError
from nnunet_anomaly.gap_weight_maps import (
    GapWeightedDataset,
    MapSettings,
    StackedChannels,
    gap_weights_above_one,
    maps_folder,
    write_maps,
)
from nnunet_anomaly.losses.gap_weighted import gap_weights
from nnunet_anomaly.settings import GapWeightSettings

SETTINGS = MapSettings(
    amplitude=20.0,
    sigma_mm=3.9,
    erosion_mm=1.0,
    labels=(1, 2),
    spacing_mm=(2.0, 1.0, 1.0),
    first_axis=0,
    patch_size=(8, 16, 16),
)
VALUES = {"amplitude": 20.0, "sigma_mm": 3.9, "erosion_mm": 1.0}


def two_blocks(shape=(10, 20, 24)):
    segmentation = np.zeros(shape, np.int16)
    segmentation[..., 3:10], segmentation[..., 13:20] = 1, 2
    return segmentation


def save_case(folder: Path, case: str, segmentation, spacing=(2.0, 1.0, 1.0)):
    folder.mkdir(exist_ok=True)
    for path in folder.glob(f"{case}*"):
        path.unlink()
    data = np.random.default_rng(0).normal(size=(1, *segmentation.shape)).astype(np.float32)
    blocks, chunks = comp_blosc2_params(data.shape, SETTINGS.patch_size, 4)
    properties = {"spacing": list(spacing), "class_locations": {}}
    nnUNetDatasetBlosc2.save_case(
        data, segmentation[None], properties, str(folder / case), chunks=chunks, blocks=blocks
    )
    return data


@pytest.fixture
def preprocessed(tmp_path):
    folder = tmp_path / "P_3d_fullres"
    for case in ("a", "b"):
        save_case(folder, case, two_blocks())
    return folder


@pytest.fixture
def made(monkeypatch):
    """Cases whose map was computed, in order."""
    computed = []
    write = gap_weight_maps.write_map
    monkeypatch.setattr(
        gap_weight_maps, "write_map", lambda *arguments: computed.append(arguments[2]) or write(*arguments)
    )
    return computed


def read(folder, case):
    return blosc2.open(str(folder / f"{case}.b2nd"), mode="r")[:]


def test_a_map_is_the_weights_of_the_whole_case_less_1(preprocessed, tmp_path):
    folder = maps_folder(preprocessed, GapWeightSettings())
    assert folder == tmp_path / "P_3d_fullres_gap_weights_w20_s3.9_e2.34"
    write_maps(preprocessed, folder, ["a", "b", "a"], SETTINGS, 1)
    found = read(folder, "a")
    assert found.shape == (1, 10, 20, 24) and found.dtype == np.float32
    np.testing.assert_array_equal(found[0], gap_weights(two_blocks(), (2, 1, 1), **VALUES) - 1)
    assert found.max() > 1 and found.min() == 0
    assert sorted(path.name for path in folder.iterdir()) == ["a.b2nd", "a.json", "b.b2nd", "b.json"]
    stored = blosc2.open(str(folder / "a.b2nd"), mode="r")
    assert (stored.blocks, stored.chunks) == comp_blosc2_params(found.shape, SETTINGS.patch_size, 4)
    assert set(nnUNetDatasetBlosc2.get_identifiers(str(preprocessed))) == {"a", "b"}


def test_what_is_outside_or_ignored_is_background():
    segmentation = two_blocks()
    expected = gap_weights_above_one(segmentation, (2, 1, 1), SETTINGS)
    segmentation[..., 22:] = -1  # nnU-Net's mark of what is outside the non-zero part
    segmentation[:3, :, :3] = 3  # the ignore label
    np.testing.assert_array_equal(gap_weights_above_one(segmentation, (2, 1, 1), SETTINGS), expected)


def test_a_slice_is_looked_at_in_2d():
    segmentation = two_blocks((1, 20, 24))
    found = gap_weights_above_one(segmentation, (2, 1, 1), SETTINGS)
    np.testing.assert_array_equal(found[0], gap_weights(segmentation[0], (1, 1), **VALUES) - 1)
    assert found.max() > 1


@pytest.mark.parametrize("label", [0, 1])
def test_fewer_than_two_structures_give_0(label):
    segmentation = np.full((4, 5, 6), label, np.int16)
    assert not gap_weights_above_one(segmentation, (1, 1, 1), SETTINGS).any()


def test_in_2d_the_first_axis_keeps_the_spacing_of_the_case(tmp_path):
    settings = dataclasses.replace(SETTINGS, spacing_mm=(1.0, 1.0), patch_size=(16, 16), first_axis=2)
    segmentation = np.zeros((12, 20, 20), np.int16)
    segmentation[2:5], segmentation[7:10] = 1, 2  # the gap lies along the first axis
    save_case(tmp_path / "P_2d", "a", segmentation, spacing=(1.0, 1.0, 2.5))
    write_maps(tmp_path / "P_2d", tmp_path / "maps", ["a"], settings, 1)
    expected = gap_weights(segmentation, (2.5, 1, 1), **VALUES) - 1
    np.testing.assert_array_equal(read(tmp_path / "maps", "a")[0], expected)


def test_a_map_is_made_once_and_again_when_labels_or_settings_change(preprocessed, tmp_path, made):
    folder = tmp_path / "maps"
    write_maps(preprocessed, folder, ["a", "b"], SETTINGS, 1)
    write_maps(preprocessed, folder, ["a", "b"], SETTINGS, 1)
    assert made == ["a", "b"]
    other = two_blocks()
    other[:5] = 0
    save_case(preprocessed, "b", other)
    write_maps(preprocessed, folder, ["a", "b"], SETTINGS, 1)
    assert made == ["a", "b", "b"]
    np.testing.assert_array_equal(read(folder, "b")[0], gap_weights(other, (2, 1, 1), **VALUES) - 1)
    write_maps(preprocessed, folder, ["a"], dataclasses.replace(SETTINGS, sigma_mm=2.0), 1)
    assert made[3:] == ["a"]


def test_what_a_killed_run_left_is_made_again(preprocessed, tmp_path, made):
    folder = tmp_path / "maps"
    write_maps(preprocessed, folder, ["a", "b"], SETTINGS, 1)
    (folder / "a.json").unlink()  # killed between the map and its record
    (folder / "b.json").write_text("{")
    for name in (".partial_old.b2nd", ".partial_new.b2nd"):
        (folder / name).write_bytes(b"")
    os.utime(folder / ".partial_old.b2nd", (0, 0))
    write_maps(preprocessed, folder, ["a", "b"], SETTINGS, 1)
    # the new one may be what the training of another fold is writing now
    assert [path.name for path in folder.glob(".partial_*")] == [".partial_new.b2nd"]
    (folder / "a.b2nd").unlink()
    write_maps(preprocessed, folder, ["a", "b"], SETTINGS, 1)
    assert made == ["a", "b", "a", "b", "a"]


def test_a_damaged_map_is_made_again(preprocessed, tmp_path, made):
    folder = tmp_path / "maps"
    write_maps(preprocessed, folder, ["a", "b"], SETTINGS, 1)
    before = read(folder, "a")
    path = folder / "a.b2nd"
    path.write_bytes(path.read_bytes()[:-50])
    write_maps(preprocessed, folder, ["a", "b"], SETTINGS, 1)
    assert made == ["a", "b", "a"]
    np.testing.assert_array_equal(read(folder, "a"), before)


def test_a_failed_write_leaves_the_map_before_it(preprocessed, tmp_path, monkeypatch):
    folder = tmp_path / "maps"
    write_maps(preprocessed, folder, ["a"], SETTINGS, 1)
    before = read(folder, "a")
    os.utime(preprocessed / "a_seg.b2nd", ns=(0, 0))

    def full_disk(*arguments, urlpath, **more):
        Path(urlpath).write_bytes(b"half")
        raise RuntimeError("no more")

    monkeypatch.setattr(gap_weight_maps.blosc2, "asarray", full_disk)
    with pytest.raises(AnomalyError, match=r"1 of 1 cases failed. a: RuntimeError: no more"):
        write_maps(preprocessed, folder, ["a"], SETTINGS, 1)
    np.testing.assert_array_equal(read(folder, "a"), before)
    assert sorted(path.name for path in folder.iterdir()) == ["a.b2nd", "a.json"]


def test_a_failed_case_is_named_and_the_others_are_done(preprocessed, tmp_path):
    (preprocessed / "a_seg.b2nd").write_bytes(b"damaged")
    with pytest.raises(AnomalyError, match=r"1 of 2 cases failed\. a: "):
        write_maps(preprocessed, tmp_path / "maps", ["a", "b"], SETTINGS, 1)
    assert (tmp_path / "maps" / "b.json").is_file() and not (tmp_path / "maps" / "a.json").exists()


def test_a_case_that_is_not_preprocessed_is_named(preprocessed, tmp_path):
    with pytest.raises(InputError, match=r"has no c_seg.b2nd \(1 of 2 cases\)"):
        write_maps(preprocessed, tmp_path / "maps", ["a", "c"], SETTINGS, 1)


def test_workers_make_the_same_maps(preprocessed, tmp_path):
    for number in (1, 2):
        write_maps(preprocessed, tmp_path / f"maps_{number}", ["a", "b"], SETTINGS, number)
    for case in ("a", "b"):
        np.testing.assert_array_equal(read(tmp_path / "maps_1", case), read(tmp_path / "maps_2", case))
        records = [json.loads((tmp_path / f"maps_{number}" / f"{case}.json").read_text()) for number in (1, 2)]
        assert records[0] == records[1]


def test_stacked_channels_are_cropped_together():
    one, other = np.arange(48, dtype=np.float32).reshape(2, 2, 3, 4), np.ones((1, 2, 3, 4))
    stacked, whole = StackedChannels(one, other), np.concatenate((one, other))
    assert (stacked.shape, stacked.ndim, stacked.dtype) == ((3, 2, 3, 4), 4, np.float32)
    np.testing.assert_array_equal(stacked[:], whole)
    crop = (slice(None), slice(1, 2), slice(0, 2), slice(2, 4))
    np.testing.assert_array_equal(stacked[crop], whole[crop])
    with pytest.raises(IndexError, match="all together"):
        stacked[0]
    with pytest.raises(ValueError, match="do not lie on one grid"):
        StackedChannels(one, np.ones((1, 2, 3, 5)))


def test_the_dataset_reads_patches_alone(preprocessed, tmp_path):
    maps = tmp_path / "maps"
    write_maps(preprocessed, maps, ["a", "b"], SETTINGS, 1)
    dataset = GapWeightedDataset(str(preprocessed), ["a", "b"], maps=maps)
    data, segmentation, previous, properties = dataset.load_case("a")
    assert data.shape == (2, 10, 20, 24) and previous is None and properties["spacing"] == [2, 1, 1]
    assert all(isinstance(part, blosc2.NDArray) for part in data.parts)
    stock, stock_segmentation, _, _ = nnUNetDatasetBlosc2(str(preprocessed), ["a"]).load_case("a")
    np.testing.assert_array_equal(data[:][:1], stock[:])
    np.testing.assert_array_equal(data[:][1:], read(maps, "a"))
    np.testing.assert_array_equal(segmentation[:], stock_segmentation[:])
    without = GapWeightedDataset(str(preprocessed), ["a"]).load_case("a")[0]
    assert without.shape == data.shape and not without[:][1].any()


def test_maps_of_the_real_pelves_are_high_where_hips_and_femurs_meet(real_data):
    import SimpleITK as sitk

    image = sitk.ReadImage(str(real_data / "hip_labels" / "s12-image-cropped_PRED.nii.gz"))
    labels = sitk.GetArrayFromImage(image)[::3, ::3, ::3]
    settings = dataclasses.replace(SETTINGS, labels=(1, 2, 3, 4, 5))
    spacing_mm = [3 * size for size in image.GetSpacing()[::-1]]
    above_one = gap_weights_above_one(labels.astype(np.int16), spacing_mm, settings)
    assert above_one[labels == 0].max() > 5 and (above_one == 0).mean() > 0.5


def test_files_of_the_maps_are_ours_alone(preprocessed, tmp_path):
    folder = maps_folder(preprocessed, GapWeightSettings())
    write_maps(preprocessed, folder, ["a"], SETTINGS, 1)
    before = {path.name for path in preprocessed.iterdir()}
    shutil.rmtree(folder)
    write_maps(preprocessed, folder, ["a"], SETTINGS, 1)
    assert {path.name for path in preprocessed.iterdir()} == before
