"""The seam to nnU-Net: which names we answer for, and what happens where nnU-Net changed."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import types
import warnings
from pathlib import Path

import pytest

from nnunet_anomaly import plugin, trainers

TRAINERS = (
    "nnUNetTrainerInpainting",
    "nnUNetTrainerInpaintingMimic",
    "nnUNetTrainerAnomalyAware",
    "nnUNetTrainerAnomalyAugmentation",
    "nnUNetTrainerGapWeighted",
)
PLANNING, NORMALIZATION, TRAINING = (
    "nnunetv2.experiment_planning",
    "nnunetv2.preprocessing.normalization",
    "nnunetv2.training.nnUNetTrainer",
)


@pytest.mark.parametrize(
    ("name", "nnunet_package"),
    [
        ("nnUNetPlannerAnomaly", PLANNING),
        ("ZScoreClipped01Normalization", NORMALIZATION),
        ("QuartileNormalization", NORMALIZATION),
        ("QuartileFingerprintNormalization", NORMALIZATION),
        *((name, TRAINING) for name in TRAINERS),
        *((f"{name}_1epoch", TRAINING) for name in TRAINERS),
        *((f"{name}_50epochs", TRAINING) for name in TRAINERS),
    ],
)
def test_own_classes_are_found(name: str, nnunet_package: str) -> None:
    found = plugin.find_class(name, nnunet_package)

    assert found is not None
    assert found.__name__ == name
    assert found.__module__.startswith("nnunet_anomaly.")


@pytest.mark.parametrize(
    ("name", "nnunet_package"),
    [
        pytest.param("nnUNetTrainerInpainting", PLANNING, id="trainer for planner"),
        pytest.param("nnUNetTrainerInpainting", NORMALIZATION, id="trainer for normalisation"),
        pytest.param("nnUNetPlannerAnomaly", NORMALIZATION, id="planner for normalisation"),
        pytest.param("ZScoreClipped01Normalization", PLANNING, id="normalisation for planner"),
        pytest.param("ZScoreClipped01Normalization", TRAINING, id="normalisation for trainer"),
        pytest.param("nnUNetPlannerAnomaly", TRAINING, id="planner for trainer"),
        pytest.param("nnUNetPlannerAnomaly", "nnunetv2.utilities.label_handling", id="other package"),
        pytest.param("nnUNetTrainerInpainting", None, id="folder outside nnU-Net"),
        pytest.param("nnUNetTrainerInpainting", "elsewhere.training", id="not nnU-Net"),
        pytest.param("ExperimentPlanner", PLANNING, id="nnU-Net's own planner"),
        pytest.param("nnUNetTrainer", TRAINING, id="nnU-Net's own trainer"),
        pytest.param("nnUNetTrainer_5epochs", TRAINING, id="nnU-Net's own variant"),
        pytest.param("nnUNetTrainerNoSuchThing", TRAINING, id="unknown name"),
    ],
)
def test_other_names_are_not_answered(name: str, nnunet_package: str | None) -> None:
    assert plugin.find_class(name, nnunet_package) is None


@pytest.mark.parametrize(
    ("source", "error"),
    [("import no_such_dependency", ModuleNotFoundError), ("def broken(:", SyntaxError), ("1 / 0", ZeroDivisionError)],
)
def test_error_in_one_of_our_modules_surfaces(
    source: str, error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a_broken_trainer.py").write_text(source)
    monkeypatch.setattr(trainers, "__path__", [str(tmp_path)])

    with pytest.raises(error):
        plugin.find_class("nnUNetTrainerNoSuchThing", TRAINING)


def search_module(function: object) -> types.ModuleType:
    """Stand-in for nnU-Net's module, holding ``function`` as its search."""
    module = types.ModuleType(plugin.SEARCH_MODULE)
    if function is not None:
        setattr(module, plugin.SEARCH_FUNCTION, function)
    return module


def test_search_answers_first_and_we_after_it() -> None:
    asked = []

    def recursive_find_python_class(folder, class_name, current_module, base_folder=None, verbose=False):
        asked.append((folder, class_name, current_module, base_folder, verbose))
        return dict if class_name == "theirs" else None

    module = search_module(recursive_find_python_class)
    plugin.wrap_search(module)
    search = module.recursive_find_python_class

    assert search("folder", "theirs", TRAINING, verbose=True) is dict
    assert asked == [("folder", "theirs", TRAINING, None, True)]
    assert search("folder", "nnUNetPlannerAnomaly", PLANNING).__name__ == "nnUNetPlannerAnomaly"
    assert search("folder", "nnUNetPlannerAnomaly", current_module=PLANNING).__name__ == "nnUNetPlannerAnomaly"
    assert search(class_name="neither", folder="folder", current_module=PLANNING) is None
    assert search.__name__ == plugin.SEARCH_FUNCTION


def test_failure_of_nnunets_search_does_not_hide_our_classes_and_is_kept_for_others() -> None:
    def recursive_find_python_class(folder, class_name, current_module):
        raise RuntimeError("operator torchvision::nms does not exist")

    module = search_module(recursive_find_python_class)
    plugin.wrap_search(module)

    with pytest.warns(RuntimeWarning, match=r"nms does not exist.*nnUNetPlannerAnomaly is not affected"):
        found = module.recursive_find_python_class("folder", "nnUNetPlannerAnomaly", PLANNING)
    assert found.__name__ == "nnUNetPlannerAnomaly"
    with pytest.raises(RuntimeError, match="nms does not exist"):
        module.recursive_find_python_class("folder", "nnUNetTrainerNoSuchThing", PLANNING)


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (None, "has no function recursive_find_python_class"),
        (lambda folder, name, module: None, "has no parameter class_name and no current_module"),
    ],
)
def test_warns_where_the_search_changed(function: object, what: str) -> None:
    module = search_module(function)

    with pytest.warns(RuntimeWarning, match=what) as caught:
        plugin.wrap_search(module)

    assert "nnUNet_extTrainer" in str(caught[0].message)
    assert plugin.KNOWN_VERSIONS in str(caught[0].message)
    assert getattr(module, plugin.SEARCH_FUNCTION, None) is function


@pytest.mark.parametrize("moved", [False, True])
def test_warns_where_the_search_moved(moved: bool, tmp_path: Path) -> None:
    nnunetv2 = types.ModuleType("nnunetv2")
    nnunetv2.__path__ = [str(tmp_path)]
    (tmp_path / "utilities").mkdir()
    if not moved:
        (tmp_path / "utilities" / "find_class_by_name.py").touch()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        plugin.check_layout(nnunetv2)

    assert len(caught) == moved
    assert all("has no module nnunetv2.utilities.find_class_by_name" in str(warning.message) for warning in caught)


SEARCH = "def recursive_find_python_class(folder, class_name, current_module): return None"


def fake_nnunet(folder: Path, search: str | None) -> None:
    """Write a package named nnunetv2, with a module that takes the search by ``from ... import``."""
    utilities = folder / "nnunetv2" / "utilities"
    utilities.mkdir(parents=True)
    for package in (utilities, utilities.parent):
        (package / "__init__.py").touch()
    (utilities / "user.py").write_text(
        "from nnunetv2.utilities.find_class_by_name import recursive_find_python_class as search\n"
    )
    if search is not None:
        (utilities / "find_class_by_name.py").write_text(search)


def run_python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter, with ``folder`` first on the path and only the plug-in registered."""
    head = f"import sys; sys.path.insert(0, {str(folder)!r}); from nnunet_anomaly.plugin import register; register()\n"
    command = [sys.executable, "-c", head + textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60)


def test_hook_wraps_before_others_take_the_name_and_leaves_the_module_as_it_was(tmp_path: Path) -> None:
    fake_nnunet(tmp_path, SEARCH)

    result = run_python(
        """
        import importlib, inspect
        from nnunet_anomaly import plugin
        register()
        assert sum(isinstance(finder, plugin.NnunetFinder) for finder in sys.meta_path) == 1
        from nnunetv2.utilities import find_class_by_name, user

        assert user.search is find_class_by_name.recursive_find_python_class
        assert user.search.__wrapped__.__code__.co_filename == find_class_by_name.__file__
        assert type(find_class_by_name.__loader__).__name__ == "SourceFileLoader"
        assert find_class_by_name.__spec__.loader is find_class_by_name.__loader__
        assert "def recursive_find_python_class" in inspect.getsource(find_class_by_name)
        importlib.reload(find_class_by_name)
        assert hasattr(find_class_by_name.recursive_find_python_class, "__wrapped__")
        assert importlib.util.find_spec("nnunetv2.utilities.no_such_module") is None
        """,
        tmp_path,
    )

    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize(
    ("search", "what"),
    [
        (None, "it has no module nnunetv2.utilities.find_class_by_name"),
        ("def search_of_another_name(): pass", "has no function recursive_find_python_class"),
        ("def recursive_find_python_class(name): return None", "has no parameter class_name"),
    ],
)
def test_changed_nnunet_gives_one_plain_warning(search: str | None, what: str, tmp_path: Path) -> None:
    fake_nnunet(tmp_path, search)

    result = run_python("import nnunetv2\nimport nnunetv2.utilities.find_class_by_name", tmp_path)

    assert ("No module named" in result.stderr) == (search is None)  # the import itself goes as it would without us
    assert result.returncode == (search is None)
    assert result.stderr.count("RuntimeWarning: nnunet-anomaly cannot make itself known") == 1
    assert what in result.stderr
