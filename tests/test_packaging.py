"""What an installation does: everything here runs in fresh environments with nothing but the package put into them.

The heavy dependencies (torch, nnunetv2, ...) are lent to those environments from the one that runs the tests.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("nnunet_anomaly", "trainers", "planners", "dataset_conversion", "postprocessing")
BUILD_FILES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "constraints.txt", "Makefile")
PTH = "nnunet_anomaly.pth"
OFFLINE = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")

# Asks for our classes where nnU-Net asks for them: the first three through the names that its modules imported. Prints
# for each the module of the class, or None.
LOOK_UP = """
import json
import multiprocessing
from os.path import join


def look_up(_=None):
    import nnunetv2
    from nnunetv2.experiment_planning import plan_and_preprocess_api
    from nnunetv2.preprocessing.preprocessors import default_preprocessor
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    def module_of(search, *arguments):
        try:
            found = search(*arguments)
        except RuntimeError:  # nnU-Net's way to say that there is no such trainer
            return None
        return found and found.__module__

    planners = join(nnunetv2.__path__[0], "experiment_planning")
    schemes = join(nnunetv2.__path__[0], "preprocessing", "normalization")
    return {
        "planner": module_of(
            plan_and_preprocess_api.recursive_find_python_class,
            planners, "nnUNetPlannerAnomaly", "nnunetv2.experiment_planning",
        ),
        "normalisation": module_of(
            default_preprocessor.recursive_find_python_class,
            schemes, "ZScoreClipped01Normalization", "nnunetv2.preprocessing.normalization",
        ),
        "trainer": module_of(recursive_find_trainer_class_by_name, "nnUNetTrainerAnomalyAware"),
        "variant": module_of(recursive_find_trainer_class_by_name, "nnUNetTrainerInpaintingMimic_5epochs"),
    }


if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        in_worker = pool.apply_async(look_up)
        print(json.dumps([look_up(), in_worker.get()]))
"""
# The same with and without the variable that names a folder of trainers, given as the argument.
LOOK_UP_BY_VARIABLE = """
import os
import sys

answers = [look_up()]
os.environ["nnUNet_extTrainer"] = sys.argv[1]
print(json.dumps([*answers, look_up()]))
"""
OURS = {
    "planner": "nnunet_anomaly.planners.anomaly",
    "normalisation": "nnunet_anomaly.planners.normalization",
    "trainer": "nnunet_anomaly.trainers.anomaly_aware",
    "variant": "nnunet_anomaly.trainers.inpainting",
}


class Environment:
    """A virtual environment, without variables of ours or nnU-Net's but nnU-Net's own three."""

    def __init__(self, folder: Path, lent_packages: Path) -> None:
        venv.create(folder, symlinks=True)
        self.scripts = folder / "bin"
        (self.site_packages,) = folder.glob("lib/python*/site-packages")
        (self.site_packages / "lent.pth").write_text(f"import site; site.addsitedir({str(lent_packages)!r})\n")
        self.folder = folder

    def run(self, *arguments: str | Path, check: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run the environment's Python."""
        return self._run(self.scripts / "python", *arguments, check=check, **variables)

    def command(self, *arguments: str, **variables: str) -> str:
        """Run one of the environment's console commands and return what it prints."""
        return self._run(self.scripts / arguments[0], *arguments[1:], check=True, **variables).stdout

    def install(self, *arguments: str | Path) -> None:
        self.run("-m", "pip", "install", "--quiet", *OFFLINE, *arguments)

    def _run(self, *command: str | Path, check: bool, **variables: str) -> subprocess.CompletedProcess[str]:
        unwanted = re.compile(r"(NNUNET_ANOMALY|nnUNet_|PYTHON|VIRTUAL_ENV|COV_).*")
        inherited = {name: value for name, value in os.environ.items() if not unwanted.fullmatch(name)}
        folders = {f"nnUNet_{name}": str(self.folder / name) for name in ("raw", "preprocessed", "results")}
        result = subprocess.run(
            [str(part) for part in command],
            capture_output=True, encoding="utf-8", timeout=120, cwd=self.folder, env=inherited | folders | variables,
        )  # fmt: skip
        assert not check or result.returncode == 0, result.stdout + result.stderr
        return result


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy of the source tree: building leaves no trace in the tree itself, and none there gets into the build."""
    folder = tmp_path_factory.mktemp("source")
    for name in (*ROOMS, "tests", *BUILD_FILES):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def lent_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of links to all packages that the tests run with, except our own."""
    folder = tmp_path_factory.mktemp("lent")
    for site_packages in {Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")}:
        for entry in site_packages.iterdir():
            if "nnunet_anomaly" not in entry.name and entry.name != "__pycache__":
                (folder / entry.name).symlink_to(entry)
    return folder


@pytest.fixture(scope="session")
def distributions(source: Path, lent_packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the source archive and the wheel that is built from that archive."""
    folder = tmp_path_factory.mktemp("distributions")
    build = f"from setuptools.build_meta import build_sdist; build_sdist({str(folder)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True, timeout=120)
    pip_wheel = [sys.executable, "-m", "pip", "wheel", "--wheel-dir", str(folder), *OFFLINE]
    subprocess.run([*pip_wheel, *map(str, folder.glob("*.tar.gz"))], check=True, capture_output=True, timeout=120)
    return folder


@pytest.fixture
def new_environment(tmp_path: Path, lent_packages: Path, distributions: Path) -> Environment:
    """An environment with the wheel, for one test to spoil."""
    environment = Environment(tmp_path / "environment", lent_packages)
    environment.install(*distributions.glob("*.whl"))
    return environment


@pytest.fixture(scope="session", params=["wheel", "editable"])
def environment(
    request: pytest.FixtureRequest,
    source: Path,
    lent_packages: Path,
    distributions: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Environment:
    """An environment as ``pip install .`` or ``pip install -e .`` leaves it."""
    environment = Environment(tmp_path_factory.mktemp(request.param) / "environment", lent_packages)
    environment.install(*(distributions.glob("*.whl") if request.param == "wheel" else ("-e", source)))
    return environment


def python_files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.py")}


def test_wheel_holds_all_rooms_and_one_pth_file_at_its_root(source: Path, distributions: Path) -> None:
    (wheel,) = distributions.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {f"nnunet_anomaly/{name}" for name in python_files(source / "nnunet_anomaly")}
    for room in ROOMS[1:]:
        modules |= {f"nnunet_anomaly/{room}/{name}" for name in python_files(source / room)}

    assert {name for name in names if name.endswith(".py")} == modules
    assert {name.partition("/")[0] for name in names} - {PTH, "nnunet_anomaly"} == {
        name.partition("/")[0] for name in names if ".dist-info/" in name
    }
    assert PTH in names


def test_source_archive_holds_what_building_and_testing_need(source: Path, distributions: Path) -> None:
    (archive,) = distributions.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}

    expected = {path.relative_to(source).as_posix() for path in source.rglob("*.py")} | set(BUILD_FILES)
    assert {name for name in expected if not name.startswith("build/")} <= names


def test_nnunet_finds_our_classes_in_main_process_and_spawned_workers(environment: Environment) -> None:
    script = environment.folder / "look_up.py"
    script.write_text(LOOK_UP)

    assert json.loads(environment.run(script).stdout.splitlines()[-1]) == [OURS, OURS]


def test_switched_off_only_trainers_are_found_and_by_nnunets_own_variable(environment: Environment) -> None:
    script = environment.folder / "look_up_by_variable.py"
    script.write_text(LOOK_UP.partition("if __name__")[0] + LOOK_UP_BY_VARIABLE)
    folder = environment.command("nnunet-anomaly", "trainers-path", NNUNET_ANOMALY_PLUGIN="0").strip()

    printed = environment.run(script, folder, NNUNET_ANOMALY_PLUGIN="0").stdout
    without, by_variable = json.loads(printed.splitlines()[-1])

    assert without == dict.fromkeys(OURS)
    # In such a folder, nnU-Net imports modules as top-level ones.
    assert by_variable == without | {"trainer": "anomaly_aware", "variant": "inpainting"}


def test_start_costs_less_than_a_millisecond_and_imports_nothing_heavy(environment: Environment) -> None:
    def cost_us() -> int:
        """Time to import the plug-in and its package, as measured by Python itself."""
        lines = environment.run("-X", "importtime", "-c", "pass").stderr.splitlines()
        (line,) = [line for line in lines if line.split("|")[-1].strip() == "nnunet_anomaly.plugin"]
        return int(line.split("|")[1])

    assert min(cost_us() for _ in range(5)) < 1000  # the least of five: other programs may be running
    heavy = "import sys; print(*{'torch', 'nnunetv2', 'numpy'} & set(sys.modules))"
    assert environment.run("-c", heavy).stdout == "\n"


def test_uninstalling_leaves_nothing_behind(new_environment: Environment) -> None:
    assert (new_environment.site_packages / PTH).exists()

    new_environment.run("-m", "pip", "uninstall", "--yes", "nnunet-anomaly")

    assert not [path for path in new_environment.site_packages.iterdir() if "anomaly" in path.name]


def remove(package: Path) -> None:
    shutil.rmtree(package)


def break_plugin(package: Path) -> None:
    (package / "plugin.py").write_text("def broken(:")


@pytest.mark.parametrize(("damage", "message"), [(remove, ""), (break_plugin, "SyntaxError")])
def test_python_starts_though_the_package_is_gone_or_broken(
    damage: Callable[[Path], None], message: str, new_environment: Environment
) -> None:
    damage(new_environment.site_packages / "nnunet_anomaly")

    result = new_environment.run("-c", "print('started')")

    assert result.stdout == "started\n"
    assert message in result.stderr if message else not result.stderr


STRONG = r"(?<!L)GPL|(?<!Lesser )General Public"  # stronger than the LGPL


def licences() -> dict[str, str]:
    """Licence of every package that ours and its tests need, as its metadata says."""
    found: dict[str, str] = {}
    waiting = {"nnunet-anomaly[dev]"}
    while waiting:
        wanted = Requirement(waiting.pop())
        if wanted.name.lower() in found:
            continue
        try:
            package = metadata.metadata(wanted.name)
        except metadata.PackageNotFoundError:
            continue  # for another system or Python
        classifiers = [line for line in package.get_all("Classifier") or [] if line.startswith("License")]
        # some put the whole text into the old field, which names other licences in passing
        named = [package.get("License-Expression"), *classifiers, (package.get("License") or "")[:80].splitlines()[:1]]
        found[wanted.name.lower()] = " | ".join(str(name) for name in named if name)
        for line in metadata.requires(wanted.name) or []:
            needed = Requirement(line)
            if needed.marker is None or any(
                needed.marker.evaluate({"extra": extra}) for extra in wanted.extras or {""}
            ):
                waiting.add(str(needed).split(";")[0])
    return found


def test_nothing_that_is_installed_is_under_the_gpl():
    found = licences()
    assert len(found) > 40
    assert re.search(STRONG, "AGPL-3.0") and re.search(STRONG, "GNU General Public License v2")
    assert not re.search(STRONG, "LGPL-3.0-or-later") and not re.search(STRONG, "GNU Lesser General Public License")
    assert not {name: licence for name, licence in found.items() if re.search(STRONG, licence)}
