"""Puts nnunet_anomaly.pth at the root of wheels and editable installs; everything else is in pyproject.toml."""

from pathlib import Path

from setuptools import Command, setup
from setuptools.command.build import build

PTH_NAME = "nnunet_anomaly.pth"
# Python runs this line at every start. Where the package has gone, nothing happens; any other fault is printed by
# `site`, and the interpreter starts all the same. The name sorts behind `__editable__.*.pth`, which makes the package
# importable in an editable install and so has to run first.
PTH_LINE = (
    "import sys; exec("
    "'try: from nnunet_anomaly.plugin import register\\n"
    "except ModuleNotFoundError: pass\\n"
    "else: register()')\n"
)


class BuildPth(Command):
    """Build sub-command (setuptools' ``SubCommand`` protocol) that writes the ``.pth`` file."""

    build_lib: str

    def initialize_options(self) -> None:
        self.build_lib = None  # type: ignore[assignment]  # setuptools' way to say that it is to be filled in
        self.editable_mode = False

    def finalize_options(self) -> None:
        self.set_undefined_options("build", ("build_lib", "build_lib"))

    def run(self) -> None:
        # An editable wheel takes nothing from build_lib, but everything that lies in the folder given as install_lib.
        install = self.get_finalized_command("install")
        root = str(install.install_lib) if self.editable_mode else self.build_lib
        Path(root).mkdir(parents=True, exist_ok=True)
        Path(root, PTH_NAME).write_text(PTH_LINE, encoding="utf-8")

    def get_outputs(self) -> list[str]:
        return [] if self.editable_mode else [str(Path(self.build_lib, PTH_NAME))]

    def get_output_mapping(self) -> dict[str, str]:
        return {}

    def get_source_files(self) -> list[str]:
        return []


class Build(build):
    """setuptools' build, and our ``.pth`` file."""

    sub_commands = [*build.sub_commands, ("build_pth", None)]  # noqa: RUF012 - setuptools' own declaration


setup(cmdclass={"build": Build, "build_pth": BuildPth})
