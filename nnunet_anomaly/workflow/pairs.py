"""Which labels of a folder of predictions are left and right: by the plans or the names, and by where they lie."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from nnunet_anomaly.dataset_roles import labels_by_name
from nnunet_anomaly.errors import InputError, SettingsError
from nnunet_anomaly.files import load_json
from nnunet_anomaly.label_maps import read_label_map, spacing_zyx_mm
from nnunet_anomaly.settings import BLOCK, AnomalySettings
from nnunet_anomaly.twins import LEFT, RIGHT, agreed_side, pairs_by_name, side_of_left

Pair = tuple[int, int]

SAMPLE = 10  # label maps that are looked at, evenly spread


def find_pairs(folder: Path, files: Mapping[str, Path]) -> tuple[list[list[int]], list[str]]:
    """Pairs of left and right labels, and sentences that say where they are from and how they lie.

    They are ``anomaly.symmetry.pairs`` of plans.json, else those that the names of labels in dataset.json tell; stock
    ``nnUNetv2_predict`` puts both files beside its predictions. A pair that does not lie side by side the same way
    round in nearly all of a sample of label maps is left out. One that none of them shows on both sides stays: nothing
    is relabelled there.

    Args:
        folder: where plans.json or dataset.json lie.
        files: the label maps, by case.

    Raises:
        InputError: dataset.json has no labels.
        SettingsError: there are no pairs, or none lies side by side.
    """
    pairs, source = _named_pairs(folder)
    said = [f"Pairs of left and right: {_words(pairs)} ({source})."]
    kept = []
    for pair, sides in _sides(pairs, files).items():
        name, counts = _words([pair]), Counter(sides.values())
        side = agreed_side(sides.values())
        if sides and side is None:
            said.append(
                f"{name} is left out: of {counts.total()} label maps with both, the first lies to the patient's left "
                f"in {counts[LEFT]} and to the right in {counts[RIGHT]}. If it is a pair nevertheless, give it with "
                "--pairs."
            )
            continue
        kept.append(list(pair))
        if not sides:
            said.append(f"{name}: no label map that was looked at shows both sides.")
        elif side == RIGHT:
            said.append(f"{name}: the one named left lies on the patient's right; are the label maps mirrored?")
        if others := [case for case, where in sides.items() if where != side]:
            said.append(
                f"{name}: not so in {', '.join(others)}, of {counts.total()} that were looked at. Look at them."
            )
    if not kept:
        raise SettingsError(f"{' '.join(said)} No pair is left. Give pairs, for example --pairs 1:2 3:4.")
    return kept, said


def _named_pairs(folder: Path) -> tuple[tuple[Pair, ...], str]:
    """Pairs, and where they are written."""
    plans, dataset = folder / "plans.json", folder / "dataset.json"
    if plans.is_file() and BLOCK in (content := load_json(plans)):
        pairs = AnomalySettings.from_plans(content).symmetry.pairs
        if pairs:
            return pairs, f"anomaly.symmetry.pairs of {plans}"
    if dataset.is_file():
        pairs = pairs_by_name(labels_by_name(load_json(dataset), dataset))
        if pairs:
            return pairs, f"names of labels in {dataset}"
    raise SettingsError(
        f"--pairs: neither anomaly.symmetry.pairs in {plans} nor the names of labels in {dataset} (such as femur_left "
        "and femur_right) tell which labels are left and right. Give them, for example --pairs 1:2 3:4."
    )


def _sides(pairs: Sequence[Pair], files: Mapping[str, Path]) -> dict[Pair, dict[str, str]]:
    """On which side the first of every pair lies, by case, for those of the sample that show both."""
    found: dict[Pair, dict[str, str]] = {pair: {} for pair in pairs}
    cases = list(files)
    number = min(SAMPLE, len(cases))
    for case in [cases[index * len(cases) // number] for index in range(number)]:
        try:
            label_map, image = read_label_map(files[case])
        except InputError:
            continue  # it is named when it is its turn
        for pair, side in side_of_left(label_map, pairs, spacing_zyx_mm(image), image.GetDirection()).items():
            found[pair][case] = side
    return found


def _words(pairs: Sequence[Pair]) -> str:
    return ", ".join(f"{left}:{right}" for left, right in pairs)
