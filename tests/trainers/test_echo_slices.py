"""Slices of multi-echo images as samples, in passes and with an echo each."""

import pickle
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter

from nnunet_anomaly.trainers.echo_slices import EchoSlices, PassLoader, foreground_slices

SLICES, FILLED = 60, range(20, 40)


class Cases:
    """Three cases of 60 slices of 4 x 4 voxels; voxels of echo c in slice z are 100 c + z; a third holds cartilage."""

    identifiers = ("knee_0", "knee_1", "knee_2")

    def load_case(self, case):
        image = np.empty((3, SLICES, 4, 4), np.float32)
        image[:] = 100 * np.arange(3)[:, None, None, None] + np.arange(SLICES)[:, None, None]
        labels = np.zeros((1, SLICES, 4, 4), np.int8)
        labels[0, FILLED, 1, 1] = 1
        labels[0, 0] = -1  # outside of what was scanned
        return image, labels, None, {"class_locations": {1: [[0, 20, 1, 1]]}, "spacing": (3, 1, 1)}


def slices(kept=0.1, probabilities=(0.2, 0.6, 0.2)):
    cases = Cases()
    return EchoSlices(cases, foreground_slices(cases, [1]), kept, np.array(probabilities))


class Keys(PassLoader):
    """Without images, which need not go from process to process."""

    def generate_train_batch(self):
        return {"keys": self.get_indices()}


def loader(cls=PassLoader, batch_size=7, **more):
    labels = SimpleNamespace(all_labels=[0, 1], has_ignore_label=False)
    return cls(slices(**more), batch_size, (4, 4), (4, 4), labels)


@pytest.fixture(autouse=True)
def seed():
    np.random.seed(0)  # noqa: NPY002 - the state that is drawn from


def is_filled(identifier):
    return int(identifier.split("/")[1]) in FILLED


def test_foreground_is_what_the_label_map_says():
    found = foreground_slices(Cases(), [1])
    assert list(found) == ["knee_0", "knee_1", "knee_2"]
    assert all(np.flatnonzero(flags).tolist() == list(FILLED) for flags in found.values())
    assert not any(flags.any() for flags in foreground_slices(Cases(), [2]).values())


def test_a_pass_has_every_slice_with_foreground_once_and_another_tenth_of_the_rest():
    data, numbers, seen = slices(), [], []
    for _ in range(200):
        drawn = data.draw_pass()
        assert len(set(drawn)) == len(drawn)
        assert sum(map(is_filled, drawn)) == 3 * len(FILLED)
        empty = frozenset(one for one in drawn if not is_filled(one))
        numbers.append(len(empty))
        seen.append(empty)
    # 120 empty slices, each with a probability of 0.1: 12 on average, with a standard deviation of 3.3
    assert np.mean(numbers) == pytest.approx(12, abs=4 * 3.3 / np.sqrt(200))
    assert np.std(numbers) == pytest.approx(3.3, rel=0.25)
    assert len(set(seen)) == 200  # drawn anew
    assert len(frozenset.union(*seen)) == 120  # and every one has its turn


def test_the_order_of_a_pass_is_random():
    data = slices(kept=0)
    first, second = data.draw_pass(), data.draw_pass()
    assert first != second and sorted(first) == sorted(second)
    assert sorted(first) not in (first, second)
    cases = [one.split("/")[0] for one in first[:20]]
    assert len(set(cases)) == 3


@pytest.mark.parametrize(("kept", "number"), [(0, 60), (1, 180)])
def test_none_or_all_of_the_empty_ones(kept, number):
    assert len(slices(kept=kept).draw_pass()) == number


def test_echoes_are_drawn_for_every_slice_anew():
    data = slices()
    counts = np.zeros(3)
    echoes = []
    for _ in range(3000):
        image, labels, _, properties = data.load_case("knee_1/25")
        assert image.shape == labels.shape == (1, 1, 4, 4) and labels[0, 0, 1, 1] == 1
        echo, number = divmod(int(image[0, 0, 0, 0]), 100)
        assert number == 25 and properties["spacing"] == (3, 1, 1)
        counts[echo] += 1
        echoes.append(echo)
    deviation = np.sqrt(3000 * np.array([0.2, 0.6, 0.2]) * np.array([0.8, 0.4, 0.8]))
    assert (abs(counts - [600, 1800, 600]) < 4 * deviation).all(), counts
    # one after the other they are independent: pairs are as frequent as the product says
    pairs = np.mean([a == b == 1 for a, b in pairwise(echoes)])
    assert pairs == pytest.approx(0.36, abs=0.04)


def test_an_echo_of_probability_1_is_the_only_one():
    data = slices(probabilities=(0, 0, 1))
    assert {float(data.load_case("knee_0/3")[0][0, 0, 0, 0]) for _ in range(20)} == {203}


def test_batches_follow_passes_without_a_gap():
    batches = loader()
    drawn = [key for _ in range(60) for key in batches.generate_train_batch()["keys"]]
    filled = [key for key in drawn if is_filled(key)]
    passes = [filled[start : start + 60] for start in range(0, 60 * (len(filled) // 60), 60)]
    assert len(passes) >= 5
    assert all(len(set(one)) == 60 for one in passes)
    share = 1 - len(filled) / len(drawn)
    assert share == pytest.approx(12 / 72, abs=0.06)


def test_batches_are_of_2d_slices_of_one_channel():
    batch = loader().generate_train_batch()
    assert batch["data"].shape == (7, 1, 4, 4) and batch["target"].shape == (7, 1, 4, 4)
    for image, labels, key in zip(batch["data"], batch["target"], batch["keys"], strict=True):
        assert float(image[0, 0, 0]) % 100 == int(key.split("/")[1])
        assert bool(labels[0, 1, 1] == 1) == is_filled(key)


def test_every_process_draws_passes_of_its_own():
    augmenter = NonDetMultiThreadedAugmenter(loader(Keys), None, num_processes=2, num_cached=2, wait_time=0.01)
    batches = [tuple(next(augmenter)["keys"]) for _ in range(12)]
    augmenter._finish()
    assert len(set(batches)) == 12


def test_a_spawned_process_can_be_given_the_loader():
    batches = loader()
    batches.generate_train_batch()
    other = pickle.loads(pickle.dumps(batches))
    assert other.waiting == batches.waiting != []
    assert len(other.generate_train_batch()["keys"]) == 7
