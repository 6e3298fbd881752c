"""Table 2 of Bengs et al.: networks that learnt healthy T1 heads find tumours on T1 and on T1 with contrast medium.

    python benchmarks/brains_tumours.py DATA -o OUTPUT [the other arguments of brains.py]

``OUTPUT`` is that of ``brains.py`` after it has run with the same arguments: its networks are used as they are. Tumours
are grown in newly deformed heads of the label maps that the networks know, as BraTS releases them. Thresholds are
searched on validation cases of the same sequence. Writes ``OUTPUT/table_tumours.md``: mean and SD over seeds.
"""

from __future__ import annotations

from pathlib import Path

from brains import Brains, arguments, figures_of
from console import over_seeds

from nnunet_anomaly.files import load_json, save_json
from nnunet_anomaly.report.page import markdown_table

SEQUENCES = {"t1": ("305", "T1"), "t1ce": ("306", "T1ce")}
TUMOURS, VALIDATION = 36, 12
SHOWN = ("2D VAE none", "2D VAE cube-n", "3D VAE none", "3D VAE cube-n")


class Tumours(Brains):
    """Tumours in two sequences, by networks that are there."""

    def make_tumours(self) -> None:
        """Phantom and its two conversions."""
        folder = self.output / "tumours"
        heads = ("--labels", str(self.output / "heads" / "seen"), "--tumours", str(TUMOURS), "--seed", "4")
        grid = ["--full-grid"] if self.args.full_grid else []
        self.call("nnunet-anomaly", "phantom", "brain", *heads, *grid, "-o", str(folder), "-np", "2")
        (release,) = (path for path in folder.iterdir() if path.is_dir() and path.name not in ("truth", "IXI-T1"))
        roles = ("--validation", str(VALIDATION), "--test", str(TUMOURS - VALIDATION))
        for sequence, (dataset, name) in SEQUENCES.items():
            what = ("--sequences", sequence, "--target", "lesion", "-d", dataset, "--name", f"Tumours{name}")
            self.convert("brats", str(release), *what, *roles)

    def raw(self, dataset: str) -> Path:
        """Raw folder of a dataset."""
        return next(Path(self.environment["nnUNet_raw"]).glob(f"Dataset{dataset}_*"))

    def evaluate_sequence(self, sequence: str, seed: int) -> dict[str, dict[str, float]]:
        """Figures of the networks shown and of the plain intensity, by method."""
        raw, folder = self.raw(SEQUENCES[sequence][0]), self.output / "evaluation" / f"tumours_{sequence}_seed{seed}"
        command = ["-ref", str(raw / "lesionsTs"), "-m", str(raw / "labelsTs"), "--validation-ref"]
        command += [str(raw / "lesionsVal"), "--validation-mask", str(raw / "labelsTr")]
        for name, trainer, configuration in self.networks():
            if name in SHOWN:
                maps = {}
                for role in ("Tr", "Ts"):
                    maps[role] = str(
                        self.output / "maps_tumours" / sequence / role / f"seed{seed}_{name.replace(' ', '_')}"
                    )
                    self.call(*self.error_maps(trainer, configuration, seed, raw / f"images{role}", maps[role]))
                command += ["-pred", maps["Ts"], "--validation-pred", maps["Tr"]]
        command += ["--names", *(name.replace(" ", "_") for name in SHOWN), "--channel", "1", *self.median()]
        command += [
            "--baseline",
            str(raw / "imagesTs"),
            "--validation-baseline",
            str(raw / "imagesTr"),
            "--baseline-dark",
        ]
        self.call("nnunet-anomaly", "evaluate-anomaly", *command, "-np", "2", "-o", str(folder))
        results = load_json(folder / "summary.json")["results"]
        return {method: figures_of(folder, result, method) for method, result in results.items()}


def main() -> None:
    """Run what is not done yet."""
    study = Tumours(arguments(__doc__).parse_args())
    study.make_tumours()
    found = {sequence: [study.evaluate_sequence(sequence, seed) for seed in study.args.seeds] for sequence in SEQUENCES}
    rows = [
        {"method": method.replace("_", " "), "sequence": name, **over_seeds([run[method] for run in found[sequence]])}
        for method in next(iter(found.values()))[0]
        for sequence, (_, name) in SEQUENCES.items()
    ]
    save_json(found, study.output / "results_tumours.json")
    (study.output / "table_tumours.md").write_text(markdown_table(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
