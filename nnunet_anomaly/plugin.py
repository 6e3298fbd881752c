"""The one seam to nnU-Net: its search for classes by name also finds our planners, normalisation schemes and trainers.

``nnunet_anomaly.pth`` in site-packages calls :func:`register` whenever an interpreter starts, nnU-Net's spawned workers
included. That only puts a finder on ``sys.meta_path``; when nnU-Net loads its search function, the function is wrapped
before any other module can import it. Where nnU-Net finds nothing, the wrapper looks in our rooms.

As this runs in interpreters that never meet nnU-Net, nothing but ``os`` and ``sys`` (loaded anyway) is imported at the
top: even ``__future__`` and ``typing`` would cost more than all the rest.
"""

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

SWITCH = "NNUNET_ANOMALY_PLUGIN"
"""Environment variable; ``0`` switches the plug-in off."""
SEARCH_MODULE = "nnunetv2.utilities.find_class_by_name"
SEARCH_FUNCTION = "recursive_find_python_class"
KNOWN_VERSIONS = "2.8.1"
# Which of our rooms answers for which package of nnunetv2.
ROOMS = {"experiment_planning": "planners", "preprocessing": "planners", "training": "trainers"}


def register() -> None:
    """Wait for nnU-Net to be imported; do nothing if ``NNUNET_ANOMALY_PLUGIN=0`` or if called before."""
    if os.environ.get(SWITCH) != "0" and not any(isinstance(finder, NnunetFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, NnunetFinder())


class NnunetFinder:
    """Meta path finder that finds nothing itself, but has something done after two of nnU-Net's modules have loaded."""

    def find_spec(self, name: str, path: "Any" = None, target: "Any" = None) -> "ModuleSpec | None":
        """Spec from the other finders, with a loader that calls us afterwards; None for all other modules."""
        after_load = {"nnunetv2": check_layout, SEARCH_MODULE: wrap_search}.get(name)
        if after_load is None:
            return None
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            find_spec = getattr(finder, "find_spec", None)
            spec = find_spec(name, path, target) if find_spec else None
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _LoaderWithSequel(spec.loader, after_load)  # type: ignore[assignment]
                return spec
        return None


class _LoaderWithSequel:
    """A module's own loader in all respects, except that ``after_load(module)`` follows its ``exec_module``."""

    def __init__(self, loader: "Any", after_load: "Callable[[ModuleType], None]") -> None:
        self._loader = loader
        self._after_load = after_load

    def __getattr__(self, name: str) -> "Any":
        return getattr(self._loader, name)

    def exec_module(self, module: "ModuleType") -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._after_load(module)


def check_layout(nnunetv2: "ModuleType") -> None:
    """Warn if this nnU-Net no longer has the module that holds its search."""
    relative = os.path.join(*SEARCH_MODULE.split(".")[1:]) + ".py"
    if not any(os.path.isfile(os.path.join(folder, relative)) for folder in nnunetv2.__path__):
        _warn_changed(f"it has no module {SEARCH_MODULE}")


def wrap_search(module: "ModuleType") -> None:
    """Make nnU-Net's ``recursive_find_python_class`` ask :func:`find_class` before it gives up; warn if it changed."""
    import functools
    import inspect

    search = getattr(module, SEARCH_FUNCTION, None)
    if not callable(search):
        return _warn_changed(f"{SEARCH_MODULE} has no function {SEARCH_FUNCTION}")
    signature = inspect.signature(search)
    missing = [name for name in ("class_name", "current_module") if name not in signature.parameters]
    if missing:
        return _warn_changed(f"{SEARCH_FUNCTION} has no parameter {' and no '.join(missing)}")

    @functools.wraps(search)
    def search_also_in_our_rooms(*args: "Any", **kwargs: "Any") -> "Any":
        try:
            found, failure = search(*args, **kwargs), None
        except Exception as error:
            # It imports each of nnU-Net's trainers on its way, and some need what this machine may not have: the Primus
            # trainers need timm, whose torchvision fails to import if torch is of another build. Ours need none of it.
            found, failure = None, error
        if found is None:
            arguments = signature.bind(*args, **kwargs).arguments
            found = find_class(arguments["class_name"], arguments.get("current_module"))
        if failure is not None:
            if found is None:
                raise failure
            _warn(
                f"nnU-Net's own search failed ({type(failure).__name__}: {failure}); {found.__name__} is not affected."
            )
        return found

    setattr(module, SEARCH_FUNCTION, search_also_in_our_rooms)


def find_class(class_name: str, nnunet_package: "str | None") -> "type | None":
    """Find a class of ours that fits where nnU-Net looks for one.

    Args:
        class_name: Name of the class, epoch variants of trainers (``nnUNetTrainerInpainting_5epochs``) included.
        nnunet_package: Dotted name of the package that nnU-Net searches, such as
            ``nnunetv2.preprocessing.normalization``; None for a folder outside nnU-Net.

    Returns:
        The class, if a module of the room for that package defines it and it derives from a class of that package (so
        a trainer is no answer where a normalisation scheme is asked for); else None. An error while one of our modules
        is imported is raised, not taken for "not found".
    """
    import importlib
    import pkgutil

    top, _, rest = (nnunet_package or "").partition(".")
    room_name = ROOMS.get(rest.partition(".")[0])
    if top != "nnunetv2" or room_name is None:
        return None
    room = importlib.import_module(f"nnunet_anomaly.{room_name}")
    for module_info in pkgutil.iter_modules(room.__path__, f"{room.__name__}."):
        candidate = getattr(importlib.import_module(module_info.name), class_name, None)
        if (
            isinstance(candidate, type)
            and candidate.__module__ == module_info.name
            and any(f"{base.__module__}.".startswith(f"{nnunet_package}.") for base in candidate.__mro__)
        ):
            return candidate
    return None


def _warn_changed(what: str) -> None:
    _warn(
        f"nnunet-anomaly cannot make itself known to this nnU-Net: {what}. It is known to work with nnunetv2 "
        f"{KNOWN_VERSIONS}. Its planners and normalisation schemes will not be found; its trainers will, after "
        f"`export nnUNet_extTrainer=$(nnunet-anomaly trainers-path)`. {SWITCH}=0 silences this warning."
    )


def _warn(message: str) -> None:
    import warnings

    warnings.warn(message, RuntimeWarning, stacklevel=3)
