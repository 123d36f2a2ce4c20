"""A TOML file, then VNP_* variables, then flags make a configuration; what is unknown or wrong is
refused in one line."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from daemon.config import Config, first_problem
from daemon.config_fields import PREFIX
from ops.errors import ConfigError

#: Variables with the prefix that are not settings.
OTHER_VARIABLES = {
    "VNP_CONFIG",
    "VNP_SLOT",
    "VNP_READY_FD",
    "VNP_PULSE_FD",
    "VNP_PREDECESSOR_SIGNAL",
    "VNP_WORKER_SETTINGS",
    "VNP_LOG_FILE_ONLY",
}
SYSTEM_FILE = Path("/etc/vnp/vnp.toml")


def load(
    flags: Mapping[str, Any], path: Path | None = None, defaults: Iterable[str] = ()
) -> Config:
    """The configuration from defaults, file, environment and flags, the later the stronger.

    path: the file of --config; else VNP_CONFIG, else /etc/vnp/vnp.toml where that exists. defaults:
    other ones than ours, each as NAME=VALUE. Flags that are None count as not given. Raises
    ConfigError, one line.
    """
    _refuse_unknown_variables()
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        # In this order: keyword arguments are stronger than the environment in pydantic-settings,
        # so of the file's values only those without a variable may be passed.
        values = {**_read_defaults(defaults), **_read_file(path)}
        from_file = {k: v for k, v in values.items() if not os.environ.get(PREFIX + k.upper())}
        return Config(**{**from_file, **given})
    except ValidationError as error:
        raise ConfigError(first_problem(error)) from error


def _read_defaults(defaults: Iterable[str]) -> dict[str, str]:
    values: dict[str, str] = {}
    for default in defaults:
        name, equals, value = default.partition("=")
        if not equals:
            raise ConfigError(f"--default {default}: write NAME=VALUE")
        values[name] = value
    _refuse_unknown("--default", values)
    return values


def _read_file(path: Path | None) -> dict[str, Any]:
    named = path or (Path(os.environ["VNP_CONFIG"]) if os.environ.get("VNP_CONFIG") else None)
    source = named or SYSTEM_FILE
    try:
        values = tomllib.loads(source.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if named is None:
            return {}
        raise ConfigError(f"configuration file {source} does not exist") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"configuration file {source} cannot be read: {error}") from error
    _refuse_unknown(str(source), values)
    return values


def _refuse_unknown(source: str, values: Iterable[str]) -> None:
    for key in values:
        if key not in Config.model_fields:
            raise ConfigError(f"{source}: unknown setting {key!r}; {_meant(key) or 'remove it'}")


def _refuse_unknown_variables() -> None:
    for name in os.environ:
        key = name.removeprefix(PREFIX).lower()
        known = key in Config.model_fields or name in OTHER_VARIABLES
        if name.startswith(PREFIX) and not known:
            hint = _meant(key, lambda setting: PREFIX + setting.upper())
            raise ConfigError(f"unknown variable {name}; {hint or 'unset it'}")


def _meant(key: str, spelt: Callable[[str], str] = str) -> str:
    close = difflib.get_close_matches(key, Config.model_fields, 1)
    return f"did you mean {spelt(close[0])}?" if close else ""
