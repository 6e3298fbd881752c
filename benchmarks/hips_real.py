"""A real CT of a pelvis with a metal screw through the whole chain, from the converter to a picture of predictions.

    python benchmarks/hips_real.py DATA -o OUTPUT [--epochs 4] [--set gap_weights.dice_weight=1] [-device cpu]

``--study`` names the output of ``hips.py``: its last multi-planar network, which knows generated pelves alone, predicts
the CT, then learns from it, as in the paper's loop. ``DATA`` has ``hip_ct/``. There is one such image, so that the
networks predict what they were trained on: this shows that real input passes, not how well a method does. Without
``--study`` two networks learn from it alone: gap-weighted 3-D, and gap-weighted multi-planar.
``OUTPUT/<plans>.md`` and ``.png`` are what comes of it.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from console import Console

from nnunet_anomaly.files import load_json, save_json
from nnunet_anomaly.planes import plane_of
from nnunet_anomaly.report.figures import overlay_figure, save_figure
from nnunet_anomaly.report.page import markdown_table

NUMBER, PLANNER, PLANS = "504", "nnUNetPlannerMultiPlanarTiny", "nnUNetMultiPlanarTinyPlans"
LABELS = {"1": "hip_left", "2": "hip_right", "3": "femur_left", "4": "femur_right", "5": "sacrum"}
NETWORKS = {
    "3-D": ("nnUNetTrainerGapWeighted", "3d_fullres"),
    "multi-planar": ("nnUNetTrainerMultiPlanarGapWeighted", "3d_multiplanar"),
}


def link_release(data: Path, folder: Path) -> Path:
    """The CT and its labels as the converter's NIfTI copies."""
    for kind, name in (("images", "example_ct"), ("labels", "derived_hip_labels")):
        link = folder / kind / "hip_ct.nii.gz"
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to((data / "hip_ct" / f"{name}.nii.gz").resolve())
    return folder


def means(folder: Path) -> dict[str, float]:
    """Means over structures, and the collisions, of the one case."""
    with open(folder / "cases.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    with open(folder / "gaps.csv", encoding="utf-8") as file:
        gaps = next(csv.DictReader(file))
    found = {name: float(np.nanmean([float(row[name] or "nan") for row in rows])) for name in ("dsc", "hd95_mm")}
    return found | {"gap_dsc_mean": float(gaps["gap_dsc_mean"]), "|E| voxels": float(gaps["collision_voxels"])}


def main() -> None:
    """Run what is not done yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--set", action="append", default=[], dest="settings", help="as for nnunet-anomaly plan")
    parser.add_argument("--study", type=Path, help="output of hips.py: fine-tune its network instead")
    parser.add_argument("-device", default="cpu")
    args = parser.parse_args()
    study = Console(args.output, args.device)
    release = link_release(args.data, args.output / "release")
    names = args.output / "label_names.json"
    save_json(LABELS, names)
    convert = ("ctpel", str(release), "-d", NUMBER, "--name", "HipCT", "--label-names", str(names))
    study.call("nnunet-anomaly", "convert", *convert)
    plan = ("-d", NUMBER, "-pl", PLANNER, "-c", *(configuration for _, configuration in NETWORKS.values()))
    study.call("nnUNetv2_plan_and_preprocess", *plan, "-np", "1", "1")
    raw = next(Path(study.environment["nnUNet_raw"]).glob(f"Dataset{NUMBER}_*"))
    if args.study:
        return fine_tune(study, raw, args)
    plans = "_".join([PLANS, *(text.replace("=", "_") for text in args.settings)])
    if args.settings:
        chosen = [word for text in args.settings for word in ("--set", text)]
        study.call("nnunet-anomaly", "plan", "-d", NUMBER, "-p", PLANS, *chosen, "--save-as", plans)
    rows: list[dict[str, Any]] = []
    maps = {}
    for name, (trainer, configuration) in NETWORKS.items():
        if name not in args.networks:
            continue
        trainer = f"{trainer}_{args.epochs}epochs"
        network = ("-tr", trainer, "-p", plans, "-device", args.device)
        study.call("nnUNetv2_train", NUMBER, configuration, "all", *network)
        folder = args.output / plans / configuration
        where = ("-d", NUMBER, "-c", configuration, "-f", "all", *network, "-npp", "1", "-nps", "1")
        study.call("nnUNetv2_predict", *where, "-i", str(raw / "imagesTr"), "-o", str(folder / "raw"))
        rows += evaluate(study, raw, folder, name)
        maps[name] = sitk.ReadImage(str(folder / "clean" / "hip_ct.nii.gz"))
    write(args.output / plans, raw, rows, maps)


def fine_tune(study: Console, raw: Path, args: argparse.Namespace) -> None:
    """Before and after learning from the CT: the last network of the study of generated pelves, by its own plans."""
    model = next((args.study / "nnUNet_results").glob("Dataset503_*/*_ours__3d_multiplanar"))
    images, target = raw / "imagesTr", args.output / "fine_tuned"
    where = ("-i", str(images), "-o", str(target / "before" / "raw"), "-m", str(model), "-f", "all")
    study.call("nnUNetv2_predict_from_modelfolder", *where, "-device", args.device, "-npp", "1", "-nps", "1")
    folder = Path(study.environment["nnUNet_preprocessed"]) / raw.name
    plans = load_json(next((args.study / "nnUNet_preprocessed").glob("Dataset501_*")) / f"{PLANS}.json")
    # what nnUNetv2_move_plans_between_datasets does, which wants both datasets in one folder
    save_json({**plans, "dataset_name": raw.name, "plans_name": "SharedPlans"}, folder / "SharedPlans.json")
    trainer, configuration = NETWORKS["multi-planar"]
    study.call("nnUNetv2_preprocess", "-d", NUMBER, "-plans_name", "SharedPlans", "-c", configuration, "-np", "1")
    settings = {
        "transfer.checkpoint": (model / "fold_all" / "checkpoint_final.pth").resolve(),
        "fine_tuning.optimizer": "adam",
        "fine_tuning.learning_rate": 3e-4,
    }
    chosen = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    study.call("nnunet-anomaly", "plan", "-d", NUMBER, "-p", "SharedPlans", *chosen, "--save-as", "FineTuned")
    network = ("-tr", f"{trainer}_{args.epochs}epochs", "-p", "FineTuned", "-device", args.device)
    study.call("nnUNetv2_train", NUMBER, configuration, "all", *network)
    where = ("-d", NUMBER, "-c", configuration, "-f", "all", *network, "-npp", "1", "-nps", "1")
    study.call("nnUNetv2_predict", *where, "-i", str(images), "-o", str(target / "after" / "raw"))
    rows: list[dict[str, Any]] = []
    maps = {}
    for name, said in (("before", "generated pelves alone"), ("after", f"then {args.epochs} epochs on this CT")):
        rows += evaluate(study, raw, target / name, said)
        maps[said] = sitk.ReadImage(str(target / name / "clean" / "hip_ct.nii.gz"))
    write(target, raw, rows, maps)


def evaluate(study: Console, raw: Path, folder: Path, name: str) -> list[dict[str, Any]]:
    """Clean what was predicted, compare both with the reference: a row of the table each."""
    study.call("nnunet-anomaly", "postprocess", "-i", str(folder / "raw"), "-o", str(folder / "clean"), "--pairs")
    rows = []
    for kind, said in (("raw", "none"), ("clean", "symmetric components")):
        truth = ("-ref", str(raw / "labelsTr"), "-pred", str(folder / kind), "--gaps", "--collision-mm", "3")
        study.call("nnunet-anomaly", "evaluate", *truth, "-o", str(folder / f"evaluation_{kind}"))
        rows.append({"network": name, "post-processing": said, **means(folder / f"evaluation_{kind}")})
    return rows


def write(path: Path, raw: Path, rows: list[dict[str, Any]], maps: dict[str, Any]) -> None:
    """The table and the picture."""
    formats = {"dsc": ".3f", "hd95_mm": ".1f", "gap_dsc_mean": ".3f", "|E| voxels": ".0f"}
    path.with_name(f"{path.name}.md").write_text(markdown_table(rows, formats=formats) + "\n", encoding="utf-8")
    draw(raw, maps, path.with_name(f"{path.name}.png"))


def draw(raw: Path, maps: dict[str, Any], path: Path) -> None:
    """Coronal slices: image, reference, both networks."""
    image = sitk.ReadImage(str(raw / "imagesTr" / "hip_ct_0000.nii.gz"))
    reference = sitk.ReadImage(str(raw / "labelsTr" / "hip_ct.nii.gz"))
    plane = plane_of(image.GetDirection(), "coronal")
    turned = {name: plane.turn(sitk.GetArrayFromImage(each)) for name, each in maps.items()}
    hounsfield = np.clip(plane.turn(sitk.GetArrayFromImage(image)), -200, 800)
    spacing_mm = plane.turn_spacing(image.GetSpacing()[::-1])
    truth = plane.turn(sitk.GetArrayFromImage(reference))
    save_figure(overlay_figure(hounsfield, spacing_mm, labels_by_method=turned, reference=truth, n_slices=3), path)


if __name__ == "__main__":
    main()
