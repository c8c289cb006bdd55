"""Libraries that an extra installs: imported when needed, and how to install them."""

import importlib.metadata
from typing import Any

from shoal.errors import SettingError

#: Libraries that an extra of ours installs.
_EXTRAS = {"pymodbus": "modbus", "asyncua": "opcua", "pyarrow": "parquet", "PIL": "images"}


def needs(module: str) -> Any:
    """Import an optional library; SettingError says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise SettingError(f"{module} is not installed", hint_of(error, module)) from error


def hint_of(error: ImportError, module: str = "") -> str:
    extra = _EXTRAS.get((error.name or module).partition(".")[0])
    return f"pip install 'shoal[agent-{extra}]'" if extra else "install what it needs"
