"""Classes that a setting names: one of this project by a short name, anybody's as `package.module:ClassName`.

1. A module is searched for as Python does, and in the current folder: `environment.name=mine:Booking` finds `mine.py` there,
   and `envs.mine:Booking` the file `envs/mine.py`.
2. Whatever goes wrong with somebody else's class (its import, its missing methods, its constructor) is one ConfigurationError
   that names the setting, the file and the line.
3. An option has to be of the type that the constructor's annotation says: `table: bool` takes true, not 1 or "yes". What is not
   annotated, or annotated with something that only a type checker resolves, is left to the constructor.
"""

import importlib
import inspect
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, get_type_hints

from pydantic import PydanticUserError, TypeAdapter, ValidationError

from mtrl_ray.errors import ConfigurationError, MtrlError

T = TypeVar("T")


def named_class(setting: str, name: object, known: Mapping[str, str], base: type[T]) -> type[T]:
    """The subclass of `base` that a setting names: a key of `known`, or `package.module:ClassName`.

    Raises ConfigurationError.
    """
    module_name, colon, class_name = known.get(str(name), str(name)).partition(":")
    if not (colon and module_name and class_name):
        raise ConfigurationError(
            f"{setting} is {name!r}; known {setting.partition('.')[0]}s: {', '.join(sorted(known))} "
            "(or package.module:ClassName, from the current folder or PYTHONPATH)"
        )
    _search_current_folder(module_name)
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise ConfigurationError(
            f"{setting} is {name!r}, which cannot be imported: {_import_error(error, module_name)}"
        ) from error
    found = getattr(module, class_name, None)
    if not (inspect.isclass(found) and issubclass(found, base)):
        having = [
            key for key, value in vars(module).items() if inspect.isclass(value) and value.__module__ == module_name
        ]
        what = "is not a subclass" if hasattr(module, class_name) else "does not exist; it has to be a subclass"
        raise ConfigurationError(
            f"{setting} is {name!r}: {class_name} {what} of {base.__module__}.{base.__qualname__} in {module.__file__}, "
            f"which defines {', '.join(having) or 'no class'}"
        )
    return found


def build(setting: str, found: type[T], *given: Any, **options: Any) -> T:
    """An instance of a class that a setting names. Raises ConfigurationError for missing methods, unknown options, options of a
    wrong type and whatever its constructor raises."""
    missing = sorted(getattr(found, "__abstractmethods__", ()))
    if missing:
        raise ConfigurationError(f"{setting}: {_place_of(found)} has to define {', '.join(missing)}")
    signature = inspect.signature(found)
    try:
        signature.bind(*given, **options)
    except TypeError as error:
        known = ", ".join(list(signature.parameters)[len(given) :]) or "none"
        raise ConfigurationError(f"{setting}: {error}; its options are: {known}") from error
    _check_types(setting, found, options, signature)
    try:
        return found(*given, **options)
    except MtrlError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigurationError(f"{setting}: {found.__name__}() raised {raised(error, found.__module__)}") from error


def _check_types(setting: str, found: type, options: Mapping[str, Any], signature: inspect.Signature) -> None:
    """Rule 3."""
    try:
        hints = get_type_hints(found.__init__ if inspect.isclass(found) else found)
    except Exception:
        return
    for key, value in options.items():
        parameter = signature.parameters.get(key)
        if key not in hints or parameter is None or value is parameter.default:
            continue
        fault = _fault(hints[key], value)
        if fault is not None:
            raise ConfigurationError(f"{setting}: {key} is {_shown(value)}: {fault[0].lower()}{fault[1:]}")


def _fault(hint: Any, value: Any) -> str | None:
    """What is wrong with a value of this type; None if nothing is, or nobody can say. A list in a recipe is a tuple, too."""
    try:
        adapter = TypeAdapter(hint)
    except PydanticUserError:
        return None
    try:
        adapter.validate_python(value, strict=True)
    except ValidationError as error:
        try:
            adapter.validate_json(json.dumps(value), strict=True)
        except (ValidationError, TypeError, ValueError):
            return str(error.errors()[0]["msg"])
    return None


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}…"


def raised(error: BaseException, module: str, skip: str = __file__) -> str:
    """An exception as the end of a sentence: its kind, its message, and the line of the code that it comes from.

    The line is the innermost of the package that `module` belongs to, if it passed there, else the innermost of all; lines of
    the file `skip` do not count.
    """
    said = " ".join(str(error).split())[:300]
    kind = f"{type(error).__name__}: {said}" if said else type(error).__name__
    place = _line(error.__traceback__, module.partition(".")[0], skip)
    return f"{kind} ({place})" if place else kind


def _line(trace: TracebackType | None, package: str, skip: str) -> str:
    steps = []
    while trace is not None:
        if trace.tb_frame.f_code.co_filename != skip:
            steps.append((trace.tb_frame, trace.tb_lineno))
        trace = trace.tb_next
    own = [step for step in steps if str(step[0].f_globals.get("__name__")).partition(".")[0] == package]
    if not steps:
        return ""
    frame, line = (own or steps)[-1]
    return f"{frame.f_code.co_filename}:{line}, in {frame.f_code.co_name}"


def _place_of(found: type) -> str:
    try:
        return f"{found.__name__} ({inspect.getsourcefile(found)}:{inspect.getsourcelines(found)[1]})"
    except (OSError, TypeError):
        return found.__name__


def _search_current_folder(module: str) -> None:
    """Bring the current folder to the front of the path if the module's package lies there."""
    top, here = module.partition(".")[0], Path.cwd()
    known = str(here) in sys.path or "" in sys.path
    if not known and top not in sys.modules and ((here / top).is_dir() or (here / f"{top}.py").is_file()):
        sys.path.insert(0, str(here))
        importlib.invalidate_caches()


def _import_error(error: BaseException, module: str) -> str:
    top = module.partition(".")[0]
    if isinstance(error, SyntaxError):
        return f"{error.msg} ({error.filename}:{error.lineno})"
    said = raised(error, module) if not isinstance(error, ImportError) else " ".join(str(error).split())
    if not isinstance(error, ModuleNotFoundError) or not module.startswith(str(error.name)):
        return said
    package = sys.modules.get(top)
    origin = list(getattr(package, "__path__", [])) if package is not None else []
    seen = f", and {top!r} is the package in {origin[0]}" if origin and error.name != top else ""
    return f"{said}; the current folder ({os.getcwd()}) and PYTHONPATH were searched{seen}"
