"""A real CT of a pelvis with a metal screw through the whole chain, from the converter to a picture of predictions.

    python benchmarks/hips_real.py DATA -o OUTPUT [--epochs 4] [-device cpu]

``DATA`` has ``hip_ct/``. There is one such image, so that the networks predict what they were trained on: this shows
that real input passes, not how well a method does. Two networks: gap-weighted 3-D, and gap-weighted multi-planar.
``OUTPUT/table.md`` and ``OUTPUT/hip_ct.png`` are what comes of it.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from console import Console

from nnunet_anomaly.files import save_json
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
    rows, maps = [], {}
    for name, (trainer, configuration) in NETWORKS.items():
        trainer = f"{trainer}_{args.epochs}epochs"
        network = ("-tr", trainer, "-p", PLANS, "-device", args.device)
        study.call("nnUNetv2_train", NUMBER, configuration, "all", *network)
        folder = args.output / configuration
        where = ("-d", NUMBER, "-c", configuration, "-f", "all", *network, "-npp", "1", "-nps", "1")
        study.call("nnUNetv2_predict", *where, "-i", str(raw / "imagesTr"), "-o", str(folder / "raw"))
        study.call("nnunet-anomaly", "postprocess", "-i", str(folder / "raw"), "-o", str(folder / "clean"), "--pairs")
        for kind in ("raw", "clean"):
            truth = ("-ref", str(raw / "labelsTr"), "-pred", str(folder / kind), "--gaps", "--collision-mm", "3")
            study.call("nnunet-anomaly", "evaluate", *truth, "-o", str(folder / f"evaluation_{kind}"))
            said = "none" if kind == "raw" else "symmetric components"
            rows.append({"network": name, "post-processing": said, **means(folder / f"evaluation_{kind}")})
        maps[name] = sitk.ReadImage(str(folder / "clean" / "hip_ct.nii.gz"))
    (args.output / "table.md").write_text(markdown_table(rows, formats={"dsc": ".3f"}) + "\n", encoding="utf-8")
    draw(raw, maps, args.output / "hip_ct.png")


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
