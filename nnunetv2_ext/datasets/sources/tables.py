"""Tables in CSV or TSV, row by row, with the place of each for messages."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from nnunetv2_ext.errors import UserError


def rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield `train.csv, line 3` and the row by column for every row; values and column names are stripped.

    Args:
        path: of a table with a header; separated by tabs if it ends in `.tsv`, else by commas or, if there is none in
            the header, semicolons.
        columns: that it must have.

    Raises:
        UserError: no file, not a table, a column is missing or there twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a table: {error}") from error
    lines = text.splitlines()
    header = lines[0] if lines else ""
    delimiter = "\t" if path.suffix == ".tsv" else ";" if ";" in header and "," not in header else ","
    reader = csv.DictReader(lines, delimiter=delimiter, skipinitialspace=True)
    try:
        names = [name.strip() for name in reader.fieldnames or ()]
        if missing := [column for column in columns if column not in names]:
            has = ", ".join(names) or "none"
            raise UserError(f"{path} has no column {' and no column '.join(missing)}; it has {has}")
        if twice := [column for column in columns if names.count(column) > 1]:
            raise UserError(f"{path} has {names.count(twice[0])} columns {twice[0]}")
        reader.fieldnames = names
        for row in reader:
            if any((value or "") if isinstance(value, str) else value for value in row.values()):
                yield f"{path.name}, line {reader.line_num}", {k: (row[k] or "").strip() for k in names}
    except csv.Error as error:
        raise UserError(f"{path} cannot be read as a table, line {reader.line_num}: {error}") from error
