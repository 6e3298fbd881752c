"""``nnunet-anomaly convert``: formats are listed without being imported, and the chosen one brings its arguments."""

from __future__ import annotations

import subprocess
import sys

import pytest

from nnunet_anomaly.cli.convert import FORMATS
from nnunet_anomaly.cli.main import main


def test_help_lists_all_formats(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["convert", "--help"])
    assert caught.value.code == 0
    said = capsys.readouterr().out
    assert all(name in said for name in FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_has_help_with_an_example(name, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["convert", name, "--help"])
    assert caught.value.code == 0
    said = capsys.readouterr().out
    assert f"Example:\n  nnunet-anomaly convert {name} " in said
    assert "--test-list" in said


@pytest.mark.parametrize("arguments", [["convert"], ["convert", "nothing"], ["convert", "oai-zib", "x"]])
def test_missing_or_unknown_arguments(arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


@pytest.mark.parametrize("arguments", [["--help"], ["oai-zib", "--help"]])
def test_help_imports_nothing_heavy(arguments):
    script = (
        "import sys\n"
        "from nnunet_anomaly.cli.main import main\n"
        f"try:\n    main(['convert', *{arguments!r}])\n"
        "except SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'nnunetv2', 'SimpleITK', 'scipy') if name in sys.modules])\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, encoding="utf-8", check=True)
    assert run.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("options", "message"),
    [(["-d", "0"], "from 1 to 999"), (["-d", "5", "--name", "a/b"], "letters, digits")],
)
def test_bad_dataset_number_or_name(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    for part in ("imagesTr", "labelsTr"):
        (tmp_path / "release" / part).mkdir(parents=True)
    (tmp_path / "release" / "imagesTr" / "a_0000.nii.gz").touch()
    (tmp_path / "release" / "labelsTr" / "a.nii.gz").touch()
    assert main(["convert", "oaizib-cm", str(tmp_path / "release"), *options]) == 2
    assert message in capsys.readouterr().err
