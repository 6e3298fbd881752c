"""The demo's report: the tables and pictures that say whether being anomaly-aware helped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_anomaly.files import load_json, read_image
from nnunet_anomaly.report.page import Page

STRUCTURES = ("femoral_bone", "femoral_cartilage", "tibial_bone", "tibial_cartilage")


def write_report(folder: Path, methods: Mapping[str, str], stages: Mapping[str, Any]) -> Path:
    """Write ``report.md`` and its pictures into the demo's folder and return its path."""
    page = Page("nnunet-anomaly demo: generated knees with severe lesions", folder)
    page.text(
        "Every network is tiny and hardly trained: this shows that the chain works and what it writes, not how well a "
        "method does. Figures are mean and SD over the held-out knees, all of which come from the generator's "
        "*severe* level while the training knees are *mild*."
    )
    page.section("Segmentation")
    page.text("Cleaned: components below 20 % of their label's largest dropped, for all methods alike.")
    page.table(segmentation_rows(folder, methods))
    page.section("Against plain nnU-Net")
    page.text("Mean difference over cases with its 95 % interval and the p-value of a paired t-test, not adjusted.")
    page.table(comparison_rows(folder, methods), formats={"difference": ".3f", "from": ".3f", "to": ".3f", "p": ".2g"})
    page.section("Finding lesions inside bone")
    page.text("The error map, and the raw intensity as the baseline that it has to beat.")
    rows = detection_rows(folder)
    page.table(rows, formats={name: ".3f" for name in list(rows[0])[1:]})
    page.text("Volumes of the anomaly masks: `anomalies/volumes.csv`; their threshold: `anomalies/threshold.json`.")
    page.section("Pictures")
    for path, caption in pictures(folder, methods):
        page.picture(path, caption)
    page.section("What ran, and how long")
    page.table([{"stage": name, "seconds": stage["seconds"]} for name, stage in stages.items()])
    page.commands([command for stage in stages.values() for command in stage["commands"]])
    return page.write()


def segmentation_rows(folder: Path, methods: Mapping[str, str]) -> list[dict[str, Any]]:
    """A row for each method before and after cleaning: Dice and Hausdorff distance of every structure."""
    results = load_json(folder / "evaluation" / "summary.json")["results"]
    rows = []
    for suffix, cleaned in (("", "no"), ("_cleaned", "yes")):
        for name, title in methods.items():
            row: dict[str, Any] = {"method": title, "cleaned": cleaned}
            for structure in STRUCTURES:
                metrics = results[name + suffix][structure]
                row[f"{structure} DSC"] = mean_sd(metrics["dsc"], 3)
                row[f"{structure} HD mm"] = mean_sd(metrics["hd_mm"], 1)
            rows.append(row)
    return rows


def comparison_rows(folder: Path, methods: Mapping[str, str]) -> list[dict[str, Any]]:
    """The difference of each other method to the first, for bones and cartilages, Dice and Hausdorff distance."""
    comparison = load_json(folder / "evaluation" / "comparison.json")
    rows = []
    for row in comparison["comparisons"]:
        if row["second"] in methods and row["structure"] in STRUCTURES and row["metric"] in ("dsc", "hd_mm"):
            rows.append(
                {
                    "method": methods[row["second"]],
                    "structure": row["structure"],
                    "measure": {"dsc": "DSC", "hd_mm": "HD mm"}[row["metric"]],
                    "difference": row["mean_difference"],
                    "from": row["ci95_low"],
                    "to": row["ci95_high"],
                    "p": row["p_t"],
                    "cases": row["n"],
                }
            )
    return rows


def detection_rows(folder: Path) -> list[dict[str, Any]]:
    """Average precision and best Dice of the error map and of raw intensity, pooled over all cases."""
    results = load_json(folder / "evaluation_anomaly" / "summary.json")["results"]
    return [
        {
            "map": name,
            "average precision, pooled": result["pooled"]["average_precision_pooled"],
            "best Dice, pooled": result["pooled"]["best_dice_pooled"],
        }
        for name, result in results.items()
    ]


def mean_sd(summary: Mapping[str, Any], digits: int) -> str:
    """``mean ± SD``, or a dash when no case counts."""
    return f"{summary['mean']:.{digits}f} ± {summary['sd']:.{digits}f}" if summary["n"] else "-"


def pictures(folder: Path, methods: Mapping[str, str], number: int = 3) -> list[tuple[Path, str]]:
    """Overlays of the cases with the largest lesions."""
    import SimpleITK as sitk

    from nnunet_anomaly.files import find_dataset_folder
    from nnunet_anomaly.planes import plane_of
    from nnunet_anomaly.report.figures import overlay_figure, save_figure

    truth = load_json(folder / "release_test" / "truth" / "lesions.json")["cases"]
    largest = sorted(truth, key=lambda case: -truth[case]["lesion_mm3"])[:number]
    references = find_dataset_folder(folder / "nnUNet_raw", "102") / "labelsTr"
    written = []
    for case in largest:
        image = read_image(folder / "test_with_error_maps" / f"{case}_0000.nii.gz")
        plane = plane_of(image.GetDirection())

        def turned(path: Path, plane: Any = plane) -> Any:
            return plane.turn(sitk.GetArrayFromImage(read_image(path)))

        figure = overlay_figure(
            plane.turn(sitk.GetArrayFromImage(image)),
            plane.turn_spacing(image.GetSpacing()[::-1]),
            labels_by_method={
                title: turned(folder / "cleaned" / name / f"{case}.nii.gz") for name, title in methods.items()
            },
            reference=turned(references / f"{case}.nii.gz"),
            lesion_mask=turned(folder / "release_test" / "truth" / "lesions" / f"{case}.nii.gz") > 0,
            error=turned(folder / "test_with_error_maps" / f"{case}_0001.nii.gz"),
            anomaly=turned(folder / "anomalies" / f"{case}.nii.gz") > 0,
            label_names=dict(enumerate(STRUCTURES, 1)),
            title=f"Knee {case}",
        )
        path = folder / "pictures" / f"{case}.png"
        save_figure(figure, path)
        written.append((path, f"Knee {case}, {truth[case]['lesion_mm3'] / 1000:.1f} ml of lesion, after cleaning."))
    return written
