import pytest
import torch
from torch import nn
from torch._dynamo import OptimizedModule

from nnunet_anomaly.errors import InputError, MissingCheckpointError
from nnunet_anomaly.transfer import (
    differences_in_preprocessing,
    differing_channels,
    differing_classes,
    differing_tensors,
    transfer_weights,
    unwrapped,
)

LABELS = {"background": 0, "femur_left": 1, "femur_right": 2}
DATASET = {"labels": LABELS, "channel_names": {"0": "CT"}}


def compiled(model):
    """Wrapped as by nnU-Net, without loading the compiler, which this is not about (and which needs a UTF-8 locale)."""
    return torch.compile(model, backend="eager")


def network(features=3):
    return nn.Sequential(nn.Conv2d(1, features, 3), nn.BatchNorm2d(features))


def save(path, model, dataset_json=DATASET):
    content = {"network_weights": model.state_dict(), "init_args": {"dataset_json": dataset_json, "plans": {}}}
    torch.save({**content, "trainer_name": "nnUNetTrainer", "current_epoch": 7}, path)
    return path


@pytest.mark.parametrize("wrap", [lambda model: model, compiled], ids=["plain", "compiled"])
def test_all_weights_and_buffers_are_taken(tmp_path, wrap):
    source, target = network(), network()
    source[1].running_mean += 5
    wrapped = wrap(target)
    rest = transfer_weights(wrapped, save(tmp_path / "c.pth", source), DATASET)
    assert all(torch.equal(value, target.state_dict()[key]) for key, value in source.state_dict().items())
    assert (rest["trainer_name"], rest["current_epoch"]) == ("nnUNetTrainer", 7)
    assert all(parameter.requires_grad for parameter in target.parameters())


def test_a_region_is_the_same_in_whichever_order_it_is_written():
    assert differing_classes({"background": 0, "both": [1, 2]}, {"background": 0, "both": [2, 1]}) == []
    assert differing_classes({"background": 0, "both": [1, 2]}, {"background": 0, "both": [1, 3]})


@pytest.mark.parametrize("init_args", [None, {"dataset_json": None}, {"dataset_json": {"labels": [], "modality": {}}}])
def test_checkpoints_that_do_not_say_what_they_are_are_named(tmp_path, init_args):
    torch.save({"network_weights": {}, "init_args": init_args}, tmp_path / "odd.pth")
    with pytest.raises(InputError, match=r"odd\.pth does not say what its network was trained on"):
        transfer_weights(network(), tmp_path / "odd.pth", DATASET)


def test_wrappers_are_taken_off():
    bare = network()
    assert isinstance(compiled(bare), OptimizedModule)
    assert unwrapped(compiled(bare)) is unwrapped(bare) is bare


@pytest.mark.parametrize(
    ("here", "messages"),
    [
        ({"background": 0, "femur_left": 1}, ["'femur_right' (2) is a class of the checkpoint alone"]),
        ({**LABELS, "sacrum": 3}, ["'sacrum' (3) is a class of the dataset alone"]),
        (
            {"background": 0, "femur_left": 2, "femur_right": 1},
            [
                "'femur_left' is 1 in the checkpoint and 2 in the dataset",
                "'femur_right' is 2 in the checkpoint and 1 in the dataset",
            ],
        ),
        ({"femur_right": 2, "background": 0, "femur_left": 1}, []),  # outputs go by value
        ({**LABELS, "ignore": 3}, []),
        ({"background": 0, "femur_left": [1], "femur_right": (2,)}, []),
    ],
)
def test_classes_that_differ_are_listed(tmp_path, here, messages):
    assert differing_classes(LABELS, here) == messages
    if messages:
        model = network()
        before = {key: value.clone() for key, value in model.state_dict().items()}
        path = save(tmp_path / "c.pth", network())
        with pytest.raises(InputError) as error:
            transfer_weights(model, path, {**DATASET, "labels": here})
        assert all(message in str(error.value) for message in [*messages, str(path)])
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_regions_go_by_their_order():
    one = {"background": 0, "whole": [1, 2], "core": [2]}
    assert differing_classes(one, dict(one)) == []
    assert differing_classes(one, {"ignore": 3, **one}) == differing_classes({**one, "ignore": 3}, one) == []
    (message,) = differing_classes(one, {"background": 0, "core": [2], "whole": [1, 2]})
    assert "another order" in message


def test_channels_go_by_name():
    assert differing_channels(DATASET, {"modality": {"0": "ct"}}) == []
    (message,) = differing_channels(DATASET, {"channel_names": {"0": "CT", "1": "noNorm"}})
    assert "['ct'] in the checkpoint and ['ct', 'nonorm']" in message


def test_another_architecture_is_described(tmp_path):
    path = save(tmp_path / "c.pth", network(4))
    with pytest.raises(InputError, match=r"0.weight \(4, 1, 3, 3\), \(3, 1, 3, 3\)"):
        transfer_weights(network(), path, DATASET)
    there, here = ({name: torch.zeros(1) for name in names} for names in ("abcdefgh", "hx"))
    assert differing_tensors(there, here) == [
        "the architecture has tensors that the checkpoint lacks: x",
        "the checkpoint has tensors that the architecture lacks: a, b, c, d, e and 2 more",
    ]


def test_a_missing_file_and_one_of_another_kind_are_named(tmp_path):
    with pytest.raises(MissingCheckpointError, match=r"missing\.pth, which does not exist"):
        transfer_weights(network(), tmp_path / "missing.pth", DATASET)
    (tmp_path / "text.pth").write_text("no checkpoint")
    with pytest.raises(InputError, match=r"text\.pth is not readable as a checkpoint"):
        transfer_weights(network(), tmp_path / "text.pth", DATASET)
    torch.save([1], tmp_path / "list.pth")
    with pytest.raises(InputError, match=r"list\.pth is no checkpoint of nnU-Net"):
        transfer_weights(network(), tmp_path / "list.pth", DATASET)
    with pytest.raises(InputError, match=r"which is a folder\. Name a file"):
        transfer_weights(network(), tmp_path, DATASET)


@pytest.mark.parametrize("missing", ["dataset_json", "labels", "channel_names"])
def test_a_checkpoint_that_does_not_say_what_it_was_trained_on_is_named(tmp_path, missing):
    path = save(tmp_path / "c.pth", network(), {key: value for key, value in DATASET.items() if key != missing})
    if missing == "dataset_json":
        torch.save({"network_weights": {}, "init_args": {}}, path)
    with pytest.raises(InputError, match=r"c\.pth does not say what its network was trained on"):
        transfer_weights(network(), path, DATASET)


def test_other_preprocessing_is_told():
    def plans(scheme="CTNormalization", mean=1.0, spacing=(1.0, 1.0)):
        configuration = {"spacing": list(spacing), "normalization_schemes": [scheme], "patch_size": [8, 8]}
        intensities = {"0": {"mean": mean}}
        return {"configurations": {"2d": configuration}, "foreground_intensity_properties_per_channel": intensities}

    assert differences_in_preprocessing(plans(), plans(), "2d") == []
    assert differences_in_preprocessing(plans(), plans(mean=2.0), "2d") == ["statistics of CT intensities"]
    assert differences_in_preprocessing(plans("ZScoreNormalization"), plans("ZScoreNormalization", 2.0), "2d") == []
    (found,) = differences_in_preprocessing(plans(spacing=(1, 2)), plans(), "2d")
    assert found == "spacing [1, 2] before, [1.0, 1.0] now"
    assert differences_in_preprocessing(plans(), plans(), "3d_fullres") == []
