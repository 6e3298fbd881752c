"""The reference pages that are made from the code: settings from their declarations, commands from their parsers.

``python -m nnunet_anomaly.report.reference docs/reference`` writes them; a test compares them with what lies there.
Nothing is taken from ``argparse``'s own help text, whose layout differs from one Python version to the next.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import Field
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from nnunet_anomaly.files import written_whole
from nnunet_anomaly.report.page import markdown_table
from nnunet_anomaly.settings import AnomalySettings, all_fields, describe

SETTINGS_HEAD = """\
# Settings

All settings of the methods lie in the plans, under `"anomaly"`, and nowhere else. `nnUNetPlannerAnomaly` writes them.
A checkpoint carries the plans that it was trained with, and so the settings.

- Show them: `nnunet-anomaly plan -d 101`
- Change one, under a plans name of its own: `nnunet-anomaly plan -d 101 --set focal.beta=50 --save-as NAME`
- Start from the other preset: `nnunet-anomaly plan -d 101 --preset paper --save-as NAME`

A value is JSON (`0.5`, `[1, 3]`) or a word (`paper`). An unknown key, a value of the wrong type and a value out of
range are errors; for an unknown key the nearest one is named.

`robust` is the default preset; `paper` has the paper's values, where it gives one. Some settings are not what the table
says, because the planner derives them from the data: `roi.labels` from dataset.json, `corruption.radius_mm` from the
size of the images and of their voxels, `symmetry.pairs` and `symmetry.side_axis` from names of labels and from label
maps. `--preset` keeps what came from label maps.

`error_map.clip_sd` is applied when images are preprocessed, and plans made by `--save-as` share their preprocessed
images with the plans they were made from. Another `intensity.ct` is another folder of preprocessed images. All other
settings take effect in training or later.
"""

COMMANDS_HEAD = """\
# Commands

`nnunet-anomaly VERB` with the verbs below. Flags are named as in nnU-Net. `nnunet-anomaly VERB --help` says the same.

Exit codes: 0 all done; 1 some cases failed, each is named; 2 nothing could be done, the message says why and what to
do, or the command line was wrong; 130 interrupted. A command that was interrupted or killed is run again as it was: it
keeps the cases that are finished.

What each command reads and writes: [files](files.md).
"""

MADE = "<!-- Made by: python -m nnunet_anomaly.report.reference docs/reference -->\n"


KIND_NAMES: dict[Any, str] = {int: "N", float: "X", Path: "PATH"}


class Command(NamedTuple):
    """One command line: a verb, or a verb and what it is about (``convert oai-zib``)."""

    name: str
    summary: str
    example: str
    parser: argparse.ArgumentParser


def settings_reference() -> str:
    """Markdown page with every setting: key, type, value in both presets, allowed range, meaning."""
    parts = [SETTINGS_HEAD, MADE]
    for group, entries in groupby(all_fields(), key=lambda item: item[0].rpartition(".")[0]):
        title, text = (f"`{group}`", type_of(group).__doc__) if group else ("General", "For all methods.")
        rows = [_setting_row(key, entry) for key, entry in entries]
        parts.append(f"## {title}\n\n{' '.join(str(text).split())}\n\n{markdown_table(rows)}")
    return "\n".join(parts)


def type_of(key: str) -> Any:
    """Declared type of a setting or a group of them by its dotted key."""
    hint: Any = AnomalySettings
    for name in key.split("."):
        hint = get_type_hints(hint)[name]
    return hint


def _setting_row(key: str, entry: Field) -> dict[str, str]:
    kind = describe(type_of(key))
    return {
        "key": f"`{key}`",
        "type": kind.replace("'", "`"),
        "robust": _value(entry.metadata["robust"]),
        "paper": _value(entry.metadata["paper"]),
        "range": _range(entry.metadata["minimum"], entry.metadata["maximum"]),
        "meaning": entry.metadata["text"],
    }


def _value(value: Any) -> str:
    """As it is written after ``--set key=``."""
    return f"`{value if isinstance(value, str) and value else json.dumps(value)}`"


def _range(minimum: float | None, maximum: float | None) -> str:
    if minimum is None and maximum is None:
        return ""
    return f"at least {minimum:g}" if maximum is None else f"{minimum:g} to {maximum:g}"


def commands_reference() -> str:
    """Markdown page with every command, its example and its options."""
    return "\n".join([COMMANDS_HEAD, MADE, *(_section(command) for command in commands())])


def commands() -> Iterator[Command]:
    """Every command, in the order in which ``nnunet-anomaly --help`` lists the verbs."""
    from nnunet_anomaly.cli.convert import FORMATS
    from nnunet_anomaly.cli.main import VERBS

    for verb, (module_name, summary) in VERBS.items():
        if verb == "convert":
            for name, (format_name, what) in FORMATS.items():
                module = importlib.import_module(f"nnunet_anomaly.dataset_conversion.{format_name}")
                yield _command(f"{verb} {name}", f"{summary}: {what}", module)
            continue
        module = importlib.import_module(f"nnunet_anomaly.cli.{module_name}")
        whole = _command(verb, summary, module)
        inner = next((a for a in whole.parser._actions if isinstance(a, argparse._SubParsersAction)), None)
        if inner is None:
            yield whole
            continue
        for name, parser in inner.choices.items():
            example = (parser.epilog or "").removeprefix("Example:\n  ") or module.EXAMPLE
            yield Command(f"{verb} {name}", parser.description or summary, example, parser)


def _command(name: str, summary: str, module: Any) -> Command:
    parser = argparse.ArgumentParser(prog=f"nnunet-anomaly {name}")
    module.add_arguments(parser)
    return Command(name, summary, module.EXAMPLE, parser)


def _section(command: Command) -> str:
    example = "\n".join(line.removeprefix("  ") for line in command.example.splitlines())
    summary = command.summary[:1].upper() + command.summary[1:].removesuffix(".")
    lines = [f"## nnunet-anomaly {command.name}", "", f"{summary}.", "", f"```bash\n{example}\n```", ""]
    actions = [action for action in command.parser._actions if not isinstance(action, argparse._HelpAction)]
    if not actions:
        return "\n".join([*lines, "No options.", ""])
    lines.append(markdown_table([_option_row(action, command.parser.prog) for action in actions]))
    for group in command.parser._mutually_exclusive_groups:
        names = ", ".join(_first_name(action) for action in group._group_actions)
        lines += [f"{'Exactly' if group.required else 'At most'} one of {names}.", ""]
    return "\n".join(lines)


def _option_row(action: argparse.Action, program: str) -> dict[str, str]:
    flags = ", ".join(f"`{flag}`" for flag in action.option_strings) or f"`{_operand(action)}`"
    return {
        "option": flags,
        "value": f"`{_operand(action)}`" if action.option_strings and action.nargs != 0 else "",
        "needed": "yes" if action.required else "",
        "meaning": _meaning(action, program),
    }


def _first_name(action: argparse.Action) -> str:
    return f"`{action.option_strings[0] if action.option_strings else _operand(action)}`"


def _operand(action: argparse.Action) -> str:
    """What stands after the flag, or in its place: ``FILE``, ``N ...``, ``left, right``."""
    if action.choices is not None:
        name = ", ".join(map(str, action.choices))
    elif isinstance(action.metavar, tuple):
        return " ".join(action.metavar)
    else:
        name = action.metavar or KIND_NAMES.get(action.type, action.dest.upper())
    return f"{name} ..." if action.nargs in ("+", "*") else name


def _meaning(action: argparse.Action, program: str) -> str:
    values: Mapping[str, Any] = {**vars(action), "prog": program}
    text = (action.help or "") % values
    if isinstance(action, argparse._AppendAction) and "again" not in text and "several" not in text:
        text += "; may be given several times"
    given = action.default not in (None, False, argparse.SUPPRESS) and action.default != []
    if given and "default" not in text.lower():
        text += f" (default: {action.default})"
    return text.replace("<", "\\<")


def write_references(folder: Path) -> list[Path]:
    """Write ``settings.md`` and ``commands.md`` into a folder and return their paths."""
    pages = {"settings.md": settings_reference(), "commands.md": commands_reference()}
    for name, text in pages.items():
        with written_whole(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return [folder / name for name in pages]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the pages into the folder that is named."""
    parser = argparse.ArgumentParser(prog="python -m nnunet_anomaly.report.reference", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="for example docs/reference")
    for path in write_references(parser.parse_args(arguments).folder):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
