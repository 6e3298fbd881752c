"""Epoch variants: made on demand, with nnU-Net's names and nnU-Net's constructor."""

from __future__ import annotations

import importlib
import inspect
import pickle
from pathlib import Path

import pytest
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.training_length.nnUNetTrainer_Xepochs import nnUNetTrainer_5epochs
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

MODULE = """
from nnunet_anomaly.trainers.epoch_variants import epoch_variants
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.optimizer.nnUNetTrainerAdam import nnUNetTrainerAdam

class nnUNetTrainerTiny(nnUNetTrainer):
    def __init__(self, plans, configuration, fold, dataset_json, device="cuda"):
        self.arguments = (plans, configuration, fold, dataset_json, device)
        self.num_epochs = 1000

nnUNetTrainerNumber = 3

__getattr__ = epoch_variants(globals())
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tiny_trainers.py").write_text(MODULE)
    return tmp_path


@pytest.fixture
def module(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(importlib.sys.modules, "tiny_trainers", raising=False)
    yield importlib.import_module("tiny_trainers")
    importlib.sys.modules.pop("tiny_trainers", None)


@pytest.mark.parametrize(("suffix", "epochs"), [("1epoch", 1), ("5epochs", 5), ("10epochs", 10), ("1000epochs", 1000)])
def test_variant_is_the_trainer_with_another_number_of_epochs(module, suffix: str, epochs: int) -> None:
    variant = getattr(module, f"nnUNetTrainerTiny_{suffix}")
    trainer = variant({}, "3d_fullres", 0, {"labels": {}}, "cpu")

    assert issubclass(variant, module.nnUNetTrainerTiny)
    assert trainer.num_epochs == epochs
    assert trainer.arguments == ({}, "3d_fullres", 0, {"labels": {}}, "cpu")


def test_variant_looks_like_a_class_written_by_hand(module) -> None:
    variant = module.nnUNetTrainerTiny_5epochs

    assert variant.__name__ == variant.__qualname__ == "nnUNetTrainerTiny_5epochs"
    assert variant.__module__ == "tiny_trainers"
    assert variant is module.nnUNetTrainerTiny_5epochs
    assert pickle.loads(pickle.dumps(variant)) is variant
    theirs, ours = inspect.signature(nnUNetTrainer_5epochs.__init__), inspect.signature(variant.__init__)
    assert list(ours.parameters) == list(theirs.parameters)
    assert [p.default for p in ours.parameters.values()] == [p.default for p in theirs.parameters.values()]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("nnUNetTrainerTiny_1epochs", id="plural of one"),
        pytest.param("nnUNetTrainerTiny_5epoch", id="singular of five"),
        pytest.param("nnUNetTrainerTiny_0epochs", id="no epoch"),
        pytest.param("nnUNetTrainerTiny_05epochs", id="leading zero"),
        pytest.param("nnUNetTrainerTiny_-5epochs", id="negative"),
        pytest.param("nnUNetTrainerTiny_epochs", id="no number"),
        pytest.param("nnUNetTrainerTiny_5epochs_1epoch", id="variant of a variant"),
        pytest.param("nnUNetTrainerTiny_5epochs\n", id="trailing newline"),
        pytest.param("nnUNetTrainerOther_5epochs", id="unknown trainer"),
        pytest.param("nnUNetTrainerNumber_5epochs", id="not a class"),
        pytest.param("nnUNetTrainer_5epochs", id="nnU-Net's trainer"),
        pytest.param("nnUNetTrainerAdam_5epochs", id="imported trainer"),
        pytest.param("anything", id="anything"),
    ],
)
def test_other_names_are_attribute_errors(module, name: str) -> None:
    _ = module.nnUNetTrainerTiny_5epochs  # made before, and yet no base of others

    with pytest.raises(AttributeError, match="module 'tiny_trainers' has no attribute"):
        getattr(module, name)


def test_nnunet_finds_variants_in_a_folder_of_trainers(folder: Path) -> None:
    def find(name: str) -> type | None:
        path = str(folder)
        return recursive_find_python_class(path, name, None, base_folder=path, cleanup_imports_from_base_folder=True)

    found = find("nnUNetTrainerTiny_20epochs")
    assert found is not None
    assert issubclass(found, nnUNetTrainer)
    assert found({}, "2d", 0, {}).num_epochs == 20
    assert find("nnUNetTrainerTiny_0epochs") is None
