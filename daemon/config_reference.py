"""docs/configuration.md, made from the settings themselves.

python -m daemon.config_reference > docs/configuration.md
"""

from __future__ import annotations

from typing import Any, get_args

from pydantic.fields import FieldInfo

from daemon.config_fields import PREFIX, Settings

_HEAD = """# Configuration

`/etc/vnp/vnp.toml` (or `--config FILE`), then `VNP_*` variables, then flags: what comes later
wins. Unknown settings are refused, with the one that was
probably meant. A client takes the running service's settings, so that users need none.

This page is made from the settings (`python -m daemon.config_reference`).

| setting | variable | default | what |
|---|---|---|---|
"""


def reference() -> str:
    """The page, Markdown."""
    rows = [
        f"| `{name}` | `{PREFIX}{name.upper()}` | {_default(field)} | {_what(field)} |"
        for name, field in Settings.model_fields.items()
    ]
    return _HEAD + "\n".join(rows) + "\n"


def _default(field: FieldInfo) -> str:
    if field.default_factory is not None:
        return "see right"
    value: Any = field.default
    return "none" if value in (None, "") else f"`{str(value).lower()}`"


def _what(field: FieldInfo) -> str:
    words = (field.description or "").replace("\n", " ")
    choices = [str(choice) for choice in get_args(field.annotation) if isinstance(choice, str)]
    return f"{words} One of {', '.join(choices)}." if choices else words


if __name__ == "__main__":
    print(reference(), end="")
