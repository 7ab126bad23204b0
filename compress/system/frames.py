"""Tables of results as pandas data frames."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from typing import Any

from compress.errors import UserError


def frame(rows: Iterable[Mapping[str, Any]], index: str | None = None) -> Any:
    """A ``pandas.DataFrame`` of rows, indexed by the column ``index`` if it is named.

    Raises:
        UserError: pandas is not installed.
    """
    try:
        pandas = importlib.import_module("pandas")
    except ImportError as error:
        raise UserError("to_frame needs pandas: pip install pandas") from error
    table = pandas.DataFrame(list(rows))
    return table if index is None or table.empty else table.set_index(index)
