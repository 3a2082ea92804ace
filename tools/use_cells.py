"""How the cells of a CSV table become numbers and categories, in training and in use; no torch."""

import csv
import io
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np

from armature.config.spelling import composed
from armature.errors import DataError

MISSING = re.compile(r'|NA|N/A|[-+]?(?i:nan)|null|\?')
MARKS = {b'\xef\xbb\xbf': 'utf-8-sig', b'\xff\xfe': 'utf-16', b'\xfe\xff': 'utf-16'}
UNKNOWN = 0  # the code of a category that is missing or was not seen in training
SEPARATORS = ',;\t|'
LARGEST = np.finfo(np.float32).max
FLAT = 1e-7  # a column that deviates less than this share of its mean is one number in float32
WHOLE = re.compile(r'(?:\+|-(?=0))?(0|-?[1-9]\d*)(?:\.0*)?')
WHAT_TO_DO = {  # with what is no number, by its form
    r'\d{1,4}[-/.]\d\d?[-/.]\d{1,4}\b.*': 'write dates as numbers, such as the day of the year',
    r'(?i)true|false|yes|no': 'name the column in "categorical"',
    r"[-+]?[\d., '’]+": 'say in "decimal" whether "." or "," stands before the decimals',
    r'.*': 'leave a cell empty where a number is missing',
}

Decimal = Literal['.', ','] | None


def is_flat(mean: Any, std: Any) -> Any:
    """Whether a column says nothing: divided by its deviation, other rows would explode."""
    return std <= FLAT * np.abs(mean)


def standardized(numbers: np.ndarray, mean: list[float], std: list[float]) -> np.ndarray:
    """(rows, columns) less the mean, by the deviation, in float32.

    0, which is the mean, for missing ones (nan) and in columns that did not vary.
    """
    mean, std = np.array(mean), np.array(std)
    scaled = (numbers - mean) / np.where(is_flat(mean, std), np.inf, std)
    return np.nan_to_num(scaled).astype(np.float32)


def is_missing(cell: str) -> bool:
    return MISSING.fullmatch(cell) is not None


def number(cell: str, decimal: Decimal) -> float:
    """The number that a cell says, nan for a missing one.

    Raises ValueError, which says what to do, for anything that could mean another one.
    """
    if is_missing(cell):
        return np.nan
    text = cell
    if decimal is not None:
        other = ',' if decimal == '.' else '.'
        text = re.sub(rf"(?<=\d)(?<!\b0)[{other} '’](?=\d{{3}}(?!\d))", '', text)
        text = text.replace(other, '_').replace(decimal, '.')
    try:
        if '_' in text:  # Python reads 1_5 as 15
            raise ValueError
        return float(text)
    except ValueError:
        kind = next(kind for kind in WHAT_TO_DO if re.fullmatch(kind, cell, re.DOTALL))
        raise ValueError(f'is not a number: {WHAT_TO_DO[kind]}') from None


def category(cell: str) -> str:
    """The one name of a whole number, however it is written (1, 1.0, +1; 0, -0), and of a text."""
    whole = WHOLE.fullmatch(cell)
    return whole[1] if whole else composed(cell)


def codes_of(categories: list[str]) -> dict[str, int]:
    """The code of each category: from 1, and UNKNOWN for any other."""
    return {category(each): code for code, each in enumerate(categories, start=1)}


def read_rows(
    path: str | Path, needed: list[str], encoding: str | None
) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """(names of the columns, (line, cells) of each row) of a CSV file with the columns `needed`.

    A row has as many cells as it has: whether that is right, the caller decides.
    """
    # A text or a picture may have more than 131,072 letters; others who read CSV keep their limit.
    limit = csv.field_size_limit(2**31 - 1)
    try:
        text = decoded(path, encoding)

        def parsed(text: str, separator: str, strict: bool = False) -> Any:
            content = io.StringIO(text, newline='')
            return csv.reader(content, delimiter=separator, skipinitialspace=True, strict=strict)

        called = {composed(name): name for name in needed}
        heads = {}
        for each in SEPARATORS:
            names = [name.strip() for name in next(parsed(text[:100_000], each), [])]
            heads[each] = [called.get(composed(name), name) for name in names]
        # The one that gives most of the columns; which they are is known.
        separator = max(heads, key=lambda each: len(set(needed).intersection(heads[each])))
        names = heads[separator]
        if not any(names):
            raise DataError(f'{path} is empty: expected a first line with the names of the columns')
        missing = [name for name in needed if name not in names]
        if missing:
            raise DataError(
                f'{path} has no column {missing[0]!r}: there are {", ".join(map(repr, names))}'
            )
        if twice := [name for name in needed if names.count(name) > 1]:
            raise DataError(f'{path}: several columns have the same name, {twice[0]!r}')
        reader = parsed(text, separator, strict=True)  # a quote without end would swallow rows
        try:
            next(reader)
            rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if row]
        except csv.Error as error:
            raise DataError(
                f'{path}, line {reader.line_num}: {error}. A cell that begins with a quote ends '
                'with one, and holds each of its own twice'
            ) from error
    except (OSError, csv.Error, LookupError) as error:
        raise DataError(f'{Path(path).resolve()} cannot be read as a CSV table: {error}') from error
    finally:
        csv.field_size_limit(limit)
    if not rows:
        raise DataError(f'{Path(path).resolve()} has no rows')
    return names, rows


def decoded(path: str | Path, encoding: str | None) -> str:
    """The text of a file: in the Unicode that its first bytes show, or else in `encoding`."""
    content = Path(path).read_bytes()
    shown = next((MARKS[mark] for mark in MARKS if content.startswith(mark)), None)
    if encoding is None:
        halves = content[:1] == b'\0', content[1:2] == b'\0'
        encoding = {(True, False): 'utf-16-be', (False, True): 'utf-16-le'}.get(halves, 'utf-8')
    encoding = shown or encoding
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b'\n') + 1
        raise DataError(
            f'{path}, line {line} is not {encoding}: save it as UTF-8; or name the "encoding" of a '
            'table (data_loader.args), such as "cp1252" (western European), "cp949" (Korean), '
            '"shift_jis" (Japanese) or "gb18030" (Chinese)'
        ) from error
