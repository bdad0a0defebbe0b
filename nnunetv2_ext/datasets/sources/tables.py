"""Tables in CSV or TSV, row by row, with the place of each for messages."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from nnunetv2_ext.errors import UserError


def rows(
    path: Path, columns: Sequence[str], flags: Mapping[str, str] | None = None
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield `train.csv, line 3` and the row by column for every row; values and column names are stripped.

    Args:
        path: of a table with a header; separated by what is in it: commas, else semicolons, else tabs; in a
            `.tsv` tabs go before.
        columns: that it must have.
        flags: for messages, what chooses a column: `{"part": "-split"}`.

    Raises:
        UserError: no file, not a table, a column is missing or there twice, a row has more cells than the header.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder: give the table in it") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} cannot be read as a table: {error}; save it as CSV in UTF-8") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read as a table: {error}") from error
    delimiter = _delimiter(text.partition("\n")[0], "\t,;" if path.suffix.lower() == ".tsv" else ",;\t")
    reader = csv.DictReader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True)
    try:
        names = [name.strip() for name in reader.fieldnames or ()]
        _check_header(path, names, columns, flags or {})
        reader.fieldnames = names
        for row in reader:
            place = f"{path.name}, line {reader.line_num}"
            # what stands behind the last column: an empty cell is a separator at the line's end, which is no fault
            if any(row.pop(None, ())):
                raise UserError(f"{place} has more cells than the header: put quotes around those with {delimiter!r}")
            if any(row.values()):
                yield place, {k: (row[k] or "").strip() for k in names}
    except csv.Error as error:
        raise UserError(f"{path} cannot be read as a table, line {reader.line_num}: {error}") from error


def _delimiter(header: str, separators: str) -> str:
    return next((separator for separator in separators if separator in header), separators[0])


def _check_header(path: Path, names: Sequence[str], columns: Sequence[str], flags: Mapping[str, str]) -> None:
    def called(column: str) -> str:
        return f"column {column} ({flags[column]})" if column in flags else f"column {column}"

    if missing := [called(column) for column in columns if column not in names]:
        has = ", ".join(filter(None, names)) or "none"  # the index of pandas has no name
        raise UserError(f"{path} has no {' and no '.join(dict.fromkeys(missing))}; it has {has}")
    if twice := [column for column in columns if names.count(column) > 1]:
        raise UserError(f"{path} has {names.count(twice[0])} columns {twice[0]}: rename one")
