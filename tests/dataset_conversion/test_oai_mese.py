"""Multi-echo series: OAI-like trees, single series and one real one; damaged in every way that we could think of."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from scipy.io import savemat
from scipy.sparse import csc_matrix

from nnunet_anomaly.cli.main import main
from nnunet_anomaly.dataset_conversion import thomas_split
from nnunet_anomaly.dataset_conversion.cartilage_masks import edge_scores
from nnunet_anomaly.dataset_conversion.dicom_series import tags_of
from nnunet_anomaly.dataset_conversion.multi_echo_series import only_series, read_echo_series
from nnunet_anomaly.dataset_conversion.oai_mese import oai_scans
from nnunet_anomaly.multi_echo import read_multi_echo
from nnunet_anomaly.phantoms.dicom import MR_IMAGE_STORAGE, make_uid, write_slice

TIMES_MS = (10.0, 20.0, 30.0, 40.0)
SHAPE = (5, 12, 14)
SPACING_MM = (3.5, 0.446, 0.313)
# columns to the back, rows down, slices to the right: from medial to lateral in a right knee
SAGITTAL = (0.0, 0.0, -1.0, 1.0, 0.0, 0.0, 0.0, -1.0, 0.0)


def knee(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Echoes (echoes, z, y, x), uint16, and the mask of a bright band, the same in no two directions."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(SHAPE, np.uint8)
    mask[0:2, 2:5, 3:9] = 1
    mask[2, 4:9, 3:7] = 1
    first = np.where(mask, 900, 300) + rng.integers(0, 30, SHAPE)
    return np.stack([first * np.exp(-time_ms / 40) for time_ms in TIMES_MS]).astype(np.uint16), mask


def volume(array: np.ndarray, side: str = "RIGHT", direction: Sequence[float] = SAGITTAL) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(SPACING_MM[::-1])
    image.SetDirection(direction)
    image.SetOrigin((-60.0 if side == "RIGHT" else 75.0, -40.0, 30.0))
    return image


def write_mese(
    folder: Path,
    echoes: np.ndarray,
    side: str = "RIGHT",
    times_ms: Sequence[float] = TIMES_MS,
    identity: str = "a",
    direction: Sequence[float] = SAGITTAL,
    **tags: str,
) -> None:
    """As in the OAI's tree: files and InstanceNumbers count slices first, here from the last position to the first."""
    folder.mkdir(parents=True, exist_ok=True)
    common = {
        "0008|0016": MR_IMAGE_STORAGE,
        "0008|0020": "20060101",
        "0008|0030": "120000",
        "0008|0032": "120000",
        "0008|103e": f"SAG_T2_MAP_{side}",
        "0020|000d": make_uid("study", identity),
        "0020|000e": make_uid("series", identity),
        "0020|0052": make_uid("frame", identity),
        **tags,
    }
    slices = echoes.shape[1]
    for echo, time_ms in enumerate(times_ms):
        image = volume(echoes[echo], side, direction)
        for index in range(slices):
            number = echo * slices + slices - index
            own = {
                "0008|0018": make_uid(identity, number),
                "0018|0081": f"{time_ms:g}",
                "0018|0086": str(echo + 1),
                "0020|0013": str(number),
            }
            write_slice(image[:, :, index : index + 1], folder / f"{number:03d}", {**common, **own})


def rewrite(path: Path, **tags: str) -> None:
    """Change tags of a file, ``g0018_0081="5"``."""
    image = sitk.ReadImage(str(path))
    plane = sitk.GetImageFromArray(sitk.GetArrayFromImage(image))
    plane.CopyInformation(image)
    write_slice(plane, path, {**tags_of(path), **{key[1:].replace("_", "|"): value for key, value in tags.items()}})


@dataclass(frozen=True)
class Tree:
    """An OAI tree and what it is made of."""

    root: Path
    labels: Path
    echoes: dict[str, np.ndarray]
    masks: dict[str, np.ndarray]

    def series(self, name: str) -> Path:
        subject, visit, side = name.split("_")
        return self.root / visit / "0.C.2" / subject / "20060101" / f"10{side}"

    def copy_to(self, folder: Path) -> Tree:
        shutil.copytree(self.root, folder / "oai")
        return Tree(folder / "oai", folder / "labels", self.echoes, self.masks)

    def write_label(self, name: str, kind: str, stem: str | None = None) -> None:
        stem = stem or "_".join(name.split("_")[:2])
        write_label(self.labels, stem, self.masks[name], kind)


def write_label(folder: Path, stem: str, mask: np.ndarray, kind: str) -> None:
    """A mask as it is passed around; bare arrays count slices by InstanceNumber, which runs against the position."""
    folder.mkdir(exist_ok=True)
    bare = mask[::-1]
    if kind == "mat":
        for number, plane in enumerate(bare):
            savemat(folder / f"{stem}_{number}.mat", {"femoral_cartilage": plane})
    elif kind == "npy":
        np.save(folder / f"{stem}.npy", bare.astype(float))
    elif kind == "fc":
        nibabel.save(nibabel.Nifti1Image(np.transpose(bare, (2, 1, 0)), np.eye(4)), folder / f"{stem}_fc.nii.gz")
    else:
        sitk.WriteImage(sitk.DICOMOrient(volume(mask), "LPS"), str(folder / f"{stem}.nii.gz"))


# two subjects of the paper's training part, one of its validation and one of its test part, one of none
CASES = ("9626869_48m_right", "9626869_96m_right", "9584428_48m_left", "9617005_48m_right", "9543086_48m_right")
OTHER = "9000001_48m_right"


@pytest.fixture(scope="session")
def whole_mese(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """Six series; not to be changed."""
    folder = tmp_path_factory.mktemp("mese")
    tree = Tree(folder / "oai", folder / "labels", {}, {})
    for seed, name in enumerate((*CASES, OTHER)):
        tree.echoes[name], tree.masks[name] = knee(seed)
        side = name.split("_")[2].upper()
        write_mese(tree.series(name), tree.echoes[name], side, identity=name)
        if seed < 1:  # what else lies in such a tree
            dess = tree.series(name).with_name("99dess")
            write_mese(dess, tree.echoes[name][:1], side, (5.0,), "dess", **{"0008|103e": "SAG_3D_DESS_RIGHT"})
    return tree


@pytest.fixture
def tree(whole_mese: Tree, tmp_path: Path) -> Tree:
    """The same, to be damaged at will."""
    return whole_mese.copy_to(tmp_path)


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """One series of a right knee."""
    write_mese(tmp_path / "knee", knee(0)[0])
    return tmp_path / "knee"


def convert(release: Path, *options: object) -> int:
    return main(["convert", "oai-mese", str(release), "-d", "104", "-np", "1", *map(str, options)])


def dataset(raw: Path) -> Path:
    return raw / "Dataset104_KneeMESE"


def load(raw: Path, name: str):
    return json.loads((dataset(raw) / f"{name}.json").read_text())


def voxels(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


# ---- a whole tree


def test_tree_with_labels_is_converted(whole_mese, raw, tmp_path):
    labels = tmp_path / "labels"
    kinds = ("mat", "npy", "fc", "nifti", "npy")
    for name, kind in zip(CASES, kinds, strict=True):
        subject, visit, _ = name.split("_")
        stem = f"{subject}_{visit}" if kind == "nifti" else f"{subject}_{int(visit[:-1]) // 12}"
        write_label(labels, stem, whole_mese.masks[name], kind)
    assert convert(whole_mese.root, "--labels", labels, "--years", "4=48m", "8=96m") == 0
    for name in CASES:
        np.testing.assert_array_equal(voxels(dataset(raw) / "labelsTr" / f"{name}.nii.gz"), whole_mese.masks[name])
        for channel in range(3):
            image = voxels(dataset(raw) / "imagesTr" / f"{name}_{channel:04d}.nii.gz")
            np.testing.assert_array_equal(image, whole_mese.echoes[name][channel])
        stack = read_multi_echo(dataset(raw), name)
        np.testing.assert_array_equal(stack.signals(), whole_mese.echoes[name])
        assert stack.echo_times_ms == TIMES_MS
        assert [stack.subject, stack.time_point, stack.side] == name.split("_")
    assert not (dataset(raw) / "imagesTr" / f"{OTHER}_0000.nii.gz").exists()  # it has no label
    image = sitk.ReadImage(str(dataset(raw) / "imagesTr" / f"{CASES[0]}_0002.nii.gz"))
    np.testing.assert_allclose(image.GetDirection(), SAGITTAL, atol=1e-6)
    np.testing.assert_allclose(image.GetSpacing(), SPACING_MM[::-1], rtol=1e-6)
    np.testing.assert_allclose(image.GetOrigin(), (-60, -40, 30), atol=1e-4)

    description = load(raw, "dataset")
    assert description["channel_names"] == {"0": "MESE_echo1", "1": "MESE_echo2", "2": "MESE_echo3"}
    assert description["labels"] == {"background": 0, "femoral_cartilage": 1}
    assert description["anomaly"]["channel_roles"] == {"0": "image", "1": "image", "2": "image"}
    case = load(raw, "cases")["9584428_48m_left"]
    assert (case["subject"], case["visit"], case["laterality"]) == ("9584428", "48m", "left")
    assert case["echo_times_ms"] == list(TIMES_MS) and case["notes"] == []
    assert case["sources"] == {"series": "48m/0.C.2/9584428/20060101/10left", "label": "9584428_4_fc.nii.gz"}
    for split in load(raw, "splits_final"):  # the visits of a subject stay together
        assert not {name[:7] for name in split["train"]} & {name[:7] for name in split["val"]}


def test_nnunet_accepts_the_dataset(whole_mese, raw, tmp_path, capsys):
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

    for name in CASES[1:3]:
        write_label(tmp_path / "labels", "_".join(name.split("_")[:2]), whole_mese.masks[name], "npy")
    assert convert(whole_mese.root, "--labels", tmp_path / "labels") == 0
    capsys.readouterr()
    verify_dataset_integrity(str(dataset(raw)), 1)
    said = capsys.readouterr().out
    assert "Done" in said and "WARNING" not in said and "Error" not in said


def test_tree_may_be_given_as_a_visit_or_with_packages_around_it(whole_mese, tmp_path):
    names = sorted((*CASES, OTHER))
    assert sorted(scan.name for scan in oai_scans(whole_mese.root, {})) == names
    in_visit = [scan.name for scan in oai_scans(whole_mese.root / "48m", {})]
    assert sorted(in_visit) == [name for name in names if "_48m_" in name]
    (tmp_path / "package" / "results").mkdir(parents=True)
    (tmp_path / "package" / "results" / "48m").symlink_to(whole_mese.root / "48m")
    assert [scan.name for scan in oai_scans(tmp_path, {})] == in_visit
    assert oai_scans(tmp_path / "package" / "results" / "48m" / "0.C.2", {}) == []


def test_split_of_the_paper(whole_mese, raw, tmp_path, capsys):
    for name in (*CASES, OTHER):
        write_label(tmp_path / "labels", "_".join(name.split("_")[:2]), whole_mese.masks[name], "npy")
    assert convert(whole_mese.root, "--labels", tmp_path / "labels", "--split", "thomas") == 0
    said = capsys.readouterr().out
    assert "train: 2 of 115 subjects, 3 MRIs" in said and "test: 1 of 14 subjects, 1 MRIs" in said
    assert "1 series of subjects that are not in the split" in said
    assert load(raw, "splits_final") == [{"train": sorted(CASES[:3]), "val": [CASES[3]]}]
    assert voxels(dataset(raw) / "labelsTs" / f"{CASES[4]}.nii.gz").any()
    assert (dataset(raw) / "multi_echo" / f"{CASES[4]}.nii.gz").is_file()
    assert {name: case["role"] for name, case in load(raw, "cases").items()} == dict(
        zip(CASES, ["train"] * 3 + ["validation", "test"], strict=True)
    )


def test_subjects_of_the_paper_are_as_many_as_it_says():
    numbers = [len(subjects) for subjects in thomas_split.SUBJECTS.values()]
    assert numbers == [115, 14, 14]
    assert len(frozenset.union(*thomas_split.SUBJECTS.values())) == 143


def test_without_labels_every_series_is_a_test_case_and_a_second_run_keeps_it(tree, raw, capsys):
    assert convert(tree.root) == 0
    assert len(list((dataset(raw) / "imagesTs").iterdir())) == 3 * 6
    assert not (dataset(raw) / "labelsTs").exists()

    def digests() -> dict[str, str]:
        files = sorted(path for path in dataset(raw).rglob("*") if path.is_file())
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    before = digests()
    assert convert(tree.root) == 0
    assert "0 cases converted now, 6 kept" in capsys.readouterr().out
    (dataset(raw) / "multi_echo" / f"{OTHER}.json").unlink()  # as after a kill
    (dataset(raw) / "multi_echo" / ".partial_x.nii.gz").write_text("cut")
    assert convert(tree.root) == 0
    assert "1 cases converted now, 5 kept" in capsys.readouterr().out
    assert digests() == before
    (dataset(raw) / "multi_echo" / "foreign.json").write_text("{}")
    assert convert(tree.root) == 2
    assert "foreign.json is of no case" in capsys.readouterr().err


def test_failed_cases_are_named_and_the_others_go_on(tree, raw):
    (tree.series(CASES[1]) / "007").unlink()
    shutil.copytree(tree.series(CASES[3]), tree.series(CASES[3]).with_name("11again"))
    assert convert(tree.root) == 1
    failed = load(raw, "integrity_report")["failed"]
    assert set(failed) == {CASES[1], CASES[3]}
    assert "no 20 ms beside" in failed[CASES[1]]
    assert "2 T2_MAP series of one knee and visit" in failed[CASES[3]] and "11again" in failed[CASES[3]]
    assert not list((dataset(raw) / "multi_echo").glob(f"{CASES[1]}*"))
    assert len(load(raw, "cases")) == 4


# ---- labels and which series they are of


def test_years_that_may_mean_two_visits_have_to_be_told(whole_mese, raw, tmp_path, capsys):
    for year in (4, 8):
        write_label(tmp_path / "labels", f"9626869_{year}", whole_mese.masks[CASES[0]], "npy")
    options = ("--labels", tmp_path / "labels")
    assert convert(whole_mese.root, *options) == 2
    said = capsys.readouterr().err
    assert "--years 4=48m 8=96m" in said and "--years 4=00m 8=48m" in said
    assert convert(whole_mese.root, *options, "--years", "4=48m") == 2
    assert "labels of year 8, for which --years names no visit" in capsys.readouterr().err
    assert convert(whole_mese.root, *options, "--years", "4:48m") == 2
    assert "give year and visit as in 4=48m" in capsys.readouterr().err
    assert convert(whole_mese.root, *options, "--years", "4=00m", "8=48m") == 1  # there is no baseline here
    assert list(load(raw, "cases")) == ["9626869_48m_right"]
    assert load(raw, "integrity_report")["failed"] == {"9626869_4": "it has a label, 9626869_4.npy, but no series"}
    assert load(raw, "cases")["9626869_48m_right"]["sources"]["label"] == "9626869_8.npy"


def test_label_that_may_be_of_either_knee(tree, raw, tmp_path):
    name = "9000001_48m_left"
    tree.echoes[name], tree.masks[name] = knee(9)
    write_mese(tree.series(name), tree.echoes[name], "LEFT", identity="other")
    tree.write_label(name, "npy")
    tree.write_label(CASES[0], "npy", CASES[0])
    options = ("--labels", tree.labels)
    assert convert(tree.root, *options) == 1
    failed = load(raw, "integrity_report")["failed"]
    assert set(failed) == {name, OTHER} and "choose the knee with --side" in failed[name]
    shutil.rmtree(dataset(raw))
    assert convert(tree.root, *options, "--side", "left") == 0
    assert list(load(raw, "cases")) == [name]
    np.testing.assert_array_equal(voxels(dataset(raw) / "labelsTr" / f"{name}.nii.gz"), tree.masks[name])


def test_two_labels_of_one_knee_and_labels_without_series_are_named(tree, raw):
    tree.write_label(OTHER, "npy")
    tree.write_label(OTHER, "fc")
    tree.write_label(CASES[0], "npy")
    tree.write_label(CASES[1], "npy", "9999999_48m")
    assert convert(tree.root, "--labels", tree.labels) == 1
    failed = load(raw, "integrity_report")["failed"]
    assert set(failed) == {OTHER, "9999999_48m"}
    assert "9000001_48m.npy" in failed[OTHER] and "9000001_48m_fc.nii.gz" in failed[OTHER]


@pytest.mark.parametrize(("order", "flip"), [("instance", False), ("position", True), ("reversed", False)])
def test_order_of_slices_of_bare_labels(series, raw, tmp_path, order, flip):
    """The fixture's masks count slices against the position, as its InstanceNumbers do."""
    mask = knee(0)[1]
    write_label(tmp_path / "labels", "knee", mask, "npy")
    assert convert(series, "--labels", tmp_path / "labels", "--label-slices", order) == 0
    label = voxels(dataset(raw) / "labelsTr" / "knee.nii.gz")
    np.testing.assert_array_equal(label, mask[::-1] if flip else mask)
    notes = load(raw, "cases")["knee"]["notes"]
    assert any("with the axes z reversed" in note for note in notes) == flip


def test_instance_numbers_that_do_not_order_labels(series, raw, tmp_path):
    for path in series.iterdir():
        rewrite(path, g0020_0013="1")
    write_label(tmp_path / "labels", "knee", knee(0)[1], "npy")
    assert convert(series, "--labels", tmp_path / "labels") == 1
    assert "give --label-slices position or reversed" in load(raw, "integrity_report")["failed"]["knee"]
    assert convert(series) == 0  # the images need no such number


def bad_label(folder: Path, mask: np.ndarray, kind: str) -> str:
    """Write a label that is wrong, and say what has to be told of it."""
    if kind == "shape":
        np.save(folder / "knee.npy", mask[:4])
        return "4 x 12 x 14 slices, rows and columns, the image 5 x 12 x 14"
    if kind == "values":
        np.save(folder / "knee.npy", mask * 0.7)
        return "the values 0.7; a mask has 0 and 1 alone"
    if kind == "empty":
        np.save(folder / "knee.npy", mask * 0)
        return "all of it is background"
    if kind == "pickle":
        np.save(folder / "knee.npy", np.array([{}]), allow_pickle=True)
        return "knee.npy is not readable as a numpy array"
    if kind == "key":
        for number, plane in enumerate(mask):
            savemat(folder / f"knee_{number}.mat", {"tibial": plane})
        return "knee_0.mat has no variable femoral_cartilage"
    if kind == "cut":
        write_label(folder, "knee", mask, "mat")
        (folder / "knee_3.mat").write_bytes(b"MATLAB 5.0")
        return "knee_3.mat is not readable as a .mat file"
    if kind == "turned":  # a bare array that is named like a mask with a header
        nibabel.save(nibabel.Nifti1Image(np.transpose(mask, (2, 1, 0)), np.eye(4)), folder / "knee.nii.gz")
        return "the label {labels}/knee.nii.gz lies up to "
    raise AssertionError(kind)


@pytest.mark.parametrize("kind", ["shape", "values", "empty", "pickle", "key", "cut", "turned"])
def test_labels_that_are_wrong_are_named(series, raw, tmp_path, kind):
    (tmp_path / "labels").mkdir()
    said = bad_label(tmp_path / "labels", knee(0)[1], kind).format(labels=tmp_path / "labels")
    assert convert(series, "--labels", tmp_path / "labels") == 1
    failed = load(raw, "integrity_report")["failed"]["knee"]
    assert said in failed and ("has to be named NAME_fc.nii.gz" in failed) == (kind == "turned")


@pytest.mark.parametrize("made", [partial(np.asarray, dtype=bool), partial(np.asarray, dtype=float), csc_matrix])
def test_mat_files_of_bool_of_float_and_sparse_ones(series, raw, tmp_path, made):
    mask = knee(0)[1]
    (tmp_path / "labels").mkdir()
    for number, plane in enumerate(mask[::-1]):
        savemat(tmp_path / "labels" / f"knee_{number}.mat", {"femoral_cartilage": made(plane)})
    assert convert(series, "--labels", tmp_path / "labels") == 0
    np.testing.assert_array_equal(voxels(dataset(raw) / "labelsTr" / "knee.nii.gz"), mask)


def test_missing_slice_of_a_mask_is_named(series, raw, tmp_path, capsys):
    write_label(tmp_path / "labels", "knee", knee(0)[1], "mat")
    (tmp_path / "labels" / "knee_2.mat").unlink()
    assert convert(series, "--labels", tmp_path / "labels") == 2
    assert "slice 2 is missing" in capsys.readouterr().err


def test_edge_scores_tell_how_a_mask_lies():
    echoes, mask = knee(3)
    for flip, axes in (("none", ()), ("z", 0), ("y", 1), ("zx", (0, 2))):
        scores = edge_scores(echoes[1], np.flip(mask, axes) if flip != "none" else mask, SPACING_MM)
        assert max(scores, key=scores.__getitem__) == flip
    assert set(edge_scores(echoes[1], mask * 0, SPACING_MM).values()) == {0.0}


# ---- one series


def test_zip_of_a_series_is_read_like_its_folder(series, raw, tmp_path):
    with zipfile.ZipFile(tmp_path / "some knee.zip", "w") as archive:
        for path in sorted(series.iterdir()):
            archive.write(path, f"inner/{path.name}")
        archive.writestr("__MACOSX/._001", b"no DICOM")
    assert convert(tmp_path / "some knee.zip") == 0
    stack = read_multi_echo(dataset(raw), "some_knee")
    np.testing.assert_array_equal(stack.signals(), knee(0)[0])
    assert (stack.side, stack.time_point) == ("right", "20060101")


def test_archive_whose_files_would_have_one_name(series, raw, tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "knee.zip", "w") as archive:
        for path in sorted(series.iterdir()):
            archive.write(path, f"a/{path.name}")
        archive.write(series / "002", "a_001")
    assert convert(tmp_path / "knee.zip") == 2  # the only case
    assert "knee.zip has more than one file a_001" in capsys.readouterr().err


def test_archive_that_would_climb_out_stays_in_its_place(series, raw, tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    with zipfile.ZipFile(tmp_path / "deep" / "er" / "knee.zip", "w") as archive:
        for path in sorted(series.iterdir()):
            archive.write(path, f"../../{path.name}")
    assert convert(tmp_path / "deep" / "er" / "knee.zip") == 0
    np.testing.assert_array_equal(read_multi_echo(dataset(raw), "knee").signals(), knee(0)[0])


def test_copies_of_a_series_are_named(series, raw, tmp_path):
    (tmp_path / "all").mkdir()
    write_mese(tmp_path / "all" / "other", knee(1)[0], identity="b")
    shutil.copytree(series, tmp_path / "all" / "one")
    shutil.copytree(series, tmp_path / "all" / "again")
    assert convert(tmp_path / "all") == 1
    failed = load(raw, "integrity_report")["failed"]
    assert set(failed) == {"one", "again"} and list(load(raw, "cases")) == ["other"]
    assert f"{tmp_path}/all/again, {tmp_path}/all/one hold one series" in failed["one"]


def test_echo_times_that_differ_in_their_last_digits_are_one(series):
    for index in range(SHAPE[0]):
        for echo, time_ms in enumerate((6.31245, 12.6249, 18.93735, 25.2498)):
            rewrite(file_of(series, echo, index), g0018_0081=f"{time_ms + (index % 2 - 0.5) * 1e-6:.8f}")
    found = read_echo_series(only_series(series))
    np.testing.assert_allclose(found.echo_times_ms, 6.31245 * np.arange(1, 5), rtol=1e-5)
    np.testing.assert_array_equal([sitk.GetArrayFromImage(image) for image in found.images], knee(0)[0])


def test_folder_of_series_with_a_damaged_archive(series, raw, tmp_path):
    (tmp_path / "all").mkdir()
    series.rename(tmp_path / "all" / "knee")
    (tmp_path / "all" / "bad.zip").write_bytes(b"PK\3\4 cut off")
    assert convert(tmp_path / "all") == 1
    assert "bad.zip is not readable as a zip file" in load(raw, "integrity_report")["failed"]["bad"]
    assert list(load(raw, "cases")) == ["knee"]


def test_neither_file_names_nor_instance_numbers_nor_times_order_anything(series):
    expected = read_echo_series(only_series(series))
    np.testing.assert_array_equal([sitk.GetArrayFromImage(image) for image in expected.images], knee(0)[0])
    paths = sorted(series.iterdir())
    for seed, path in zip(np.random.default_rng(0).permutation(len(paths)), paths, strict=True):
        rewrite(path, g0020_0013=str(seed), g0008_0032=f"12{seed:02d}00")
        path.rename(path.with_name(f"x{(seed * 7) % len(paths):03d}"))
    shuffled = read_echo_series(only_series(series))
    for ours, theirs in zip(shuffled.images, expected.images, strict=True):
        np.testing.assert_array_equal(sitk.GetArrayFromImage(ours), sitk.GetArrayFromImage(theirs))
        assert ours.GetOrigin() == theirs.GetOrigin() and ours.GetDirection() == theirs.GetDirection()


def test_oblique_geometry_is_kept(tmp_path):
    turned = np.round(sitk.Euler3DTransform((0, 0, 0), 1.4, 0.2, -1.5).GetMatrix(), 9)
    write_mese(tmp_path / "knee", knee(0)[0], direction=turned.tolist())
    for image in read_echo_series(only_series(tmp_path / "knee")).images:
        np.testing.assert_allclose(image.GetDirection(), turned, atol=1e-5)
        np.testing.assert_allclose(image.GetOrigin(), (-60, -40, 30), atol=1e-4)
        np.testing.assert_allclose(image.GetSpacing(), SPACING_MM[::-1], rtol=1e-4)


def test_echoes_that_are_rescaled_differently_keep_their_values(series):
    for index in range(SHAPE[0]):
        path = file_of(series, 1, index)
        image = sitk.ReadImage(str(path))
        write_slice(sitk.Cast(image, sitk.sitkFloat32) * 0.5, path, {**tags_of(path), "0028|1053": "0.5"})
    images = read_echo_series(only_series(series)).images
    assert {image.GetPixelID() for image in images} == {sitk.sitkFloat32}
    np.testing.assert_allclose(sitk.GetArrayFromImage(images[1]), knee(0)[0][1] * 0.5)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(images[0]), knee(0)[0][0])


def file_of(folder: Path, echo: int, index: int) -> Path:
    """File of a slice by its position, see ``write_mese``."""
    return folder / f"{echo * SHAPE[0] + SHAPE[0] - index:03d}"


def lacks_a_slice_in_one_echo(folder: Path) -> str:
    file_of(folder, 1, 2).unlink()
    return "1 of 5 x 4 slices and echoes are missing (5 at 10 ms, 4 at 20 ms, 5 at 30 ms, 5 at 40 ms slices): no 20 ms"


def lacks_a_slice_at_the_end_in_one_echo(folder: Path) -> str:
    file_of(folder, 0, 4).unlink()
    return "no 10 ms beside 006"


def lacks_a_slice_in_all_echoes(folder: Path) -> str:
    for echo in range(4):
        file_of(folder, echo, 2).unlink()
    return "7 mm lie between 004 and 002"


def lacks_an_echo(folder: Path) -> str:
    for index in range(SHAPE[0]):
        file_of(folder, 1, index).unlink()
    return "no file has EchoNumber 2 (the one before has 10 ms"


def lacks_the_first_echo(folder: Path) -> str:
    for index in range(SHAPE[0]):
        file_of(folder, 0, index).unlink()
    return "no file has EchoNumber 1 (the first)"


def has_a_copy(folder: Path) -> str:
    shutil.copy(folder / "003", folder / "copy")
    return "003 and copy are both the slice at 67 mm of the echo at 10 ms; one is a copy of the other"


def has_a_second_series_of_the_same_name(folder: Path) -> str:
    shutil.copy(folder / "003", folder / "z")
    rewrite(folder / "z", g0008_0018=make_uid("another"))
    return "003 and z are both the slice at 67 mm of the echo at 10 ms; slices are doubled, or two series are mixed"


def has_two_series(folder: Path) -> str:
    write_mese(folder / "second", knee(1)[0], identity="b")
    for path in (folder / "second").iterdir():
        path.rename(folder / f"b{path.name}")
    (folder / "second").rmdir()
    return "has 2 DICOM series: 'SAG_T2_MAP_RIGHT' (20 files: "


def has_times_in_seconds(folder: Path) -> str:
    for path in folder.iterdir():
        rewrite(path, g0018_0081=f"{float(tags_of(path)['0018|0081']) / 1000:g}")
    return "the echo times 0.01, 0.02, 0.03, 0.04 seem to be seconds"


def lacks_an_echo_time(folder: Path) -> str:
    rewrite(folder / "004", g0018_0081="")
    return "004 has no EchoTime"


def has_echoes_of_one_time(folder: Path) -> str:
    for path in folder.iterdir():
        rewrite(path, g0018_0081="10")
    return "all 20 files have the EchoTime 10 ms"


def has_numbers_against_its_times(folder: Path) -> str:
    for index in range(SHAPE[0]):
        rewrite(file_of(folder, 0, index), g0018_0086="2")
        rewrite(file_of(folder, 1, index), g0018_0086="1")
    return "EchoNumbers do not ascend with EchoTime: 2 at 10 ms, 1 at 20 ms"


def has_a_file_cut_off(folder: Path) -> str:
    with open(folder / "004", "rb+") as handle:
        handle.truncate(400)
    return "1 of 20 files are not readable as DICOM, cut off perhaps: 004"


def has_an_echo_beside_the_others(folder: Path) -> str:
    for index in range(SHAPE[0]):
        path = file_of(folder, 2, index)
        image = sitk.ReadImage(str(path))
        plane = sitk.GetImageFromArray(sitk.GetArrayFromImage(image))
        plane.CopyInformation(image)
        plane.SetOrigin(np.add(image.GetOrigin(), (0, 0.5, 0)).tolist())
        tags = {key: value for key, value in tags_of(path).items() if key != "0020|0032"}
        write_slice(plane, path, tags)
    return "lies 0.5 mm beside the first one"


def has_a_slice_beside_the_others(folder: Path) -> str:
    path = file_of(folder, 2, 2)
    image = sitk.ReadImage(str(path))
    plane = sitk.GetImageFromArray(sitk.GetArrayFromImage(image))
    plane.CopyInformation(image)
    plane.SetOrigin(np.add(image.GetOrigin(), (0, 3, 0)).tolist())
    write_slice(plane, path, {key: value for key, value in tags_of(path).items() if key != "0020|0032"})
    return f"{path.name} is shifted sideways by 3 mm"


def has_a_turned_slice(folder: Path) -> str:
    path = file_of(folder, 3, 0)
    image = sitk.ReadImage(str(path))
    plane = sitk.GetImageFromArray(sitk.GetArrayFromImage(image))
    plane.CopyInformation(image)
    plane.SetDirection((1, 0, 0, 0, 1, 0, 0, 0, 1))
    write_slice(plane, path, {key: value for key, value in tags_of(path).items() if key != "0020|0037"})
    return "not parallel"


def has_an_empty_echo(folder: Path) -> str:
    for index in range(SHAPE[0]):
        path = file_of(folder, 3, index)
        image = sitk.ReadImage(str(path))
        write_slice(sitk.Cast(image * 0, sitk.sitkUInt16), path, tags_of(path))
    return "of the echo at 40 ms: every voxel is 0"


DAMAGES = [
    lacks_a_slice_in_one_echo,
    lacks_a_slice_at_the_end_in_one_echo,
    lacks_a_slice_in_all_echoes,
    lacks_an_echo,
    lacks_the_first_echo,
    has_a_copy,
    has_a_second_series_of_the_same_name,
    has_two_series,
    has_times_in_seconds,
    lacks_an_echo_time,
    has_echoes_of_one_time,
    has_numbers_against_its_times,
    has_a_file_cut_off,
    has_an_echo_beside_the_others,
    has_a_slice_beside_the_others,
    has_a_turned_slice,
    has_an_empty_echo,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damaged_series_is_named_with_its_files(series, raw, damage: Callable[[Path], str]):
    said = damage(series)
    assert convert(series) == 1
    failed = load(raw, "integrity_report")["failed"]["knee"]
    assert said in failed
    assert str(series) in failed or damage is has_an_empty_echo
    assert not (dataset(raw) / "imagesTs").exists() or not list((dataset(raw) / "imagesTs").iterdir())


def test_number_of_echoes_can_be_asked_for(series, raw, capsys):
    assert convert(series, "--echoes", "7") == 1
    assert "4 echoes (10, 20, 30, 40 ms); --echoes asks for 7" in load(raw, "integrity_report")["failed"]["knee"]
    assert convert(series, "--echoes", "2") == 2
    assert "3 are needed at least" in capsys.readouterr().err
    for path in series.iterdir():
        if float(tags_of(path)["0018|0081"]) > 25:
            path.unlink()
    assert convert(series) == 1
    assert "has 2 echoes (10, 20 ms); at least 3" in load(raw, "integrity_report")["failed"]["knee"]


def test_odd_echoes_are_noted(tmp_path):
    echoes = knee(0)[0]
    write_mese(tmp_path / "a", echoes[::-1].copy())
    assert "does not fall" in read_echo_series(only_series(tmp_path / "a")).notes[0]
    write_mese(tmp_path / "b", echoes, times_ms=(10, 20, 40, 50))
    assert "not evenly spaced (10, 20, 40, 50 ms)" in read_echo_series(only_series(tmp_path / "b")).notes[0]


# ---- the side of the knee


def test_side_by_option_where_no_tag_tells_it(tmp_path, raw, capsys):
    write_mese(tmp_path / "knee", knee(0)[0], **{"0008|103e": "T2 sagittal"})
    assert convert(tmp_path / "knee") == 1
    failed = load(raw, "integrity_report")["failed"]["knee"]
    assert "give --side left or right" in failed
    assert "67 mm to the right of the scanner's, where a right knee lies" in failed
    assert convert(tmp_path / "knee", "--side", "right") == 0
    assert load(raw, "cases")["knee"]["laterality"] == "right"
    assert convert(tmp_path / "knee", "--side", "left") == 0  # made anew
    (note,) = [note for note in load(raw, "cases")["knee"]["notes"] if "is the side right" in note]
    assert note.startswith(
        "it is a left knee by header or --side, but the middle of its slices lies 67 mm to the right"
    )
    assert read_multi_echo(dataset(raw), "knee").side == "left"


def test_left_knee_that_is_called_right_is_noted(tmp_path, raw, capsys):
    write_mese(tmp_path / "knee", knee(0)[0], "LEFT", **{"0008|103e": "SAG_T2_MAP_RIGHT"})
    assert convert(tmp_path / "knee") == 0
    assert "68 mm to the left of the scanner's, where a left knee lies: is the side right?" in capsys.readouterr().out


def test_side_against_the_header_is_refused(series, raw, capsys):
    assert convert(series, "--side", "left") == 2
    assert "all 1 series" in capsys.readouterr().err
    assert not dataset(raw).exists()


def test_tags_that_disagree_need_the_option(tmp_path, raw):
    write_mese(tmp_path / "knee", knee(0)[0], **{"0020|0060": "L"})
    assert convert(tmp_path / "knee") == 1
    assert convert(tmp_path / "knee", "--side", "right") == 0
    assert any("the side is unclear" in note for note in load(raw, "cases")["knee"]["notes"])


def test_options_that_do_not_go_together(series, raw, tmp_path, capsys):
    for options, said in (
        (("--split", "thomas"), "--split needs --labels"),
        (("--years", "4=48m"), "need --labels"),
        (("--labels", tmp_path / "none"), "does not exist"),
        (("--labels", series), "has no labels"),
    ):
        assert convert(series, *options) == 2
        assert said in capsys.readouterr().err
    assert convert(tmp_path / "nowhere") == 2
    assert "does not exist" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert convert(tmp_path / "empty") == 2
    assert "has no multi-echo series" in capsys.readouterr().err


# ---- a real series


def test_real_series(real_data, raw, tmp_path):
    """24 slices x 8 echoes, oblique; InstanceNumber counts echoes first and all AcquisitionTimes are equal."""
    archive = real_data / "knee_mese" / "mese_dicom.zip"
    assert convert(archive, "--side", "right", "--echoes", 8) == 0
    stack = read_multi_echo(dataset(raw), "mese_dicom")
    np.testing.assert_allclose(stack.echo_times_ms, 6.312 * np.arange(1, 9), atol=1e-9)
    signals, image = stack.signals(), stack.images[0]
    assert signals.shape == (8, 24, 256, 256)

    with zipfile.ZipFile(archive) as handle:
        handle.extractall(tmp_path / "files")
    files = {}
    for path in (tmp_path / "files").rglob("*.dcm"):
        tags = tags_of(path)
        files[float(tags["0018|0081"]), float(tags["0020|1041"])] = (path, tags)
    locations = sorted({location for _, location in files})  # SliceLocation, an independent order
    directions = np.array(image.GetDirection()).reshape(3, 3)
    for index, location in enumerate(locations):
        tags = files[6.312, location][1]
        position = np.array([float(part) for part in tags["0020|0032"].split("\\")])
        found = image.TransformIndexToPhysicalPoint((0, 0, index))
        np.testing.assert_allclose(found, position, atol=2e-3)  # the files are that uneven
        orientation = [float(part) for part in tags["0020|0037"].split("\\")]
        np.testing.assert_allclose(directions[:, :2].T.ravel(), orientation, atol=2e-6)
    np.testing.assert_allclose(image.GetSpacing(), (0.625, 0.625, 4), atol=1e-4)
    rng = np.random.default_rng(0)
    for _ in range(20):
        echo, index = int(rng.integers(8)), int(rng.integers(24))
        path = files[round(6.312 * (echo + 1), 3), locations[index]][0]
        np.testing.assert_array_equal(signals[echo, index], voxels(path)[0])
    channel = voxels(dataset(raw) / "imagesTs" / "mese_dicom_0001.nii.gz")
    np.testing.assert_array_equal(channel, signals[1])
    assert load(raw, "cases")["mese_dicom"]["laterality"] == "right"


def test_wrong_reading_of_the_tests_own_files_would_be_seen(series):
    """The fixture's InstanceNumbers run against the position, so that sorting by them gives another volume."""
    by_number = [voxels(path)[0] for path in sorted(series.iterdir())[: SHAPE[0]]]
    assert not np.array_equal(by_number, knee(0)[0][0])
