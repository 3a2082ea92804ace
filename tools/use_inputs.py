"""Raw inputs (image files, rows of a table, sentences, arrays) as batches; without torch.

`input_format(args, state)`, a class method of a data loader or of the dataset that a config names,
returns one of these: predict.py, tools.export and tools.serve ask for it. args are the arguments in
the config, with the defaults of the constructor; state is what the loader's `state_dict` had saved.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from armature.data.pixels import ENDINGS, files_below, read_image
from armature.errors import DataError
from tools.use_cells import (
    LARGEST,
    UNKNOWN,
    Decimal,
    category,
    codes_of,
    decoded,
    is_missing,
    number,
    read_rows,
    standardized,
)


class Padded(NamedTuple):
    """A batch of sequences: what a model gets as its one argument."""

    values: Any  # (batch, longest, ...)
    lengths: Any  # (batch,)


class InputFormat:
    """Base: what an input is, and how a batch is made of several.

    names: of the arrays in a batch, in their order. dynamic: of their dimensions beside that of the
    batch, those whose size is another in each batch. endings: of the files that hold inputs.
    """

    names: ClassVar[tuple[str, ...]] = ('input',)
    dynamic: ClassVar[dict[str, dict[int, str]]] = {}
    endings: ClassVar[tuple[str, ...]] = ()

    def sources(self, file: str | Path) -> list[tuple[str, Any]]:
        """(its name, what `sample` takes, or a DataError) of each input in a file."""
        return [(str(file), file)]

    def sample(self, source: Any) -> Any:
        """An input as arrays. Raises DataError when it cannot be read."""
        raise NotImplementedError

    def batch(self, samples: list) -> Any:
        """What the model takes, with arrays in the place of tensors; their rows are the samples."""
        return np.stack(samples)

    def notes(self, sources: list) -> list[str]:
        """What whoever gives these inputs may not expect."""
        return []

    def files_in(self, path: Path, left_out: Counter | None = None) -> list[str | Path]:
        """The files that `path` stands for: itself, or those below a folder that hold inputs.

        left_out: counts the others by their ending.
        """
        if not path.is_dir():
            return [path]
        found = files_below(path, left_out, self.endings)
        if not found:
            raise DataError(f'{path} holds no files that end in {", ".join(self.endings)}')
        return found


@dataclasses.dataclass
class ImageInput(InputFormat):
    """Images of any size, brought to `size` x `size`: (batch, channels, size, size) float32.

    mode: 'RGB' or 'L' (grey). mean, std: of the pixels on a scale from 0 to 1, one number a
    channel. transform: of each image, as a uint8 tensor. A source is a file, or its bytes.
    """

    size: int
    mode: str
    mean: list[float]
    std: list[float]
    transform: Callable | None = None
    max_pixels: int | None = None  # that a source may have

    names = ('image',)
    endings = ENDINGS

    def sample(self, source: str | Path | bytes) -> np.ndarray:
        if not isinstance(source, (str, Path, bytes)):
            what = type(source).__name__
            raise DataError(f'this is a {what}: give the path of an image file, or its bytes')
        pixels = read_image(source, self.size, self.mode, self.max_pixels)
        if self.transform is None:
            return pixels
        import torch

        return np.asarray(self.transform(torch.from_numpy(pixels)))

    def batch(self, samples: list) -> np.ndarray:
        mean, std = (np.array(each, np.float32).reshape(-1, 1, 1) for each in (self.mean, self.std))
        pixels = np.stack(samples)
        images = pixels.astype(np.float32)
        if pixels.dtype.kind in 'iu':
            images /= 255  # in place, as training does for tensors: the same numbers, to the bit
        images -= mean
        images /= std
        return images


@dataclasses.dataclass
class TableInput(InputFormat):
    """Rows of a table: [(batch, numeric) float32, (batch, categorical) int64].

    A source is a row by the names of its columns; others than these are passed over. mean, std,
    categories: what was learned in training.
    """

    numeric: list[str]
    categorical: list[str]
    mean: list[float]
    std: list[float]
    categories: dict[str, list[str]]
    decimal: Decimal = None
    encoding: str | None = None

    names = ('numbers', 'codes')
    endings = ('.csv', '.tsv')

    def __post_init__(self):
        self._codes = [codes_of(self.categories[name]) for name in self.categorical]

    @property
    def columns(self) -> list[str]:
        return [*self.numeric, *self.categorical]

    def sources(self, file: Path) -> list[tuple[str, Any]]:
        names, rows = read_rows(file, self.columns, self.encoding)
        return [
            (
                f'{file}:{line}',
                dict(zip(names, cells))
                if len(cells) == len(names)
                else DataError(f'{len(cells)} cells instead of {len(names)}'),
            )
            for line, cells in rows
        ]

    def sample(self, source: Mapping[str, Any]) -> tuple[list[float], list[int]]:
        if not isinstance(source, Mapping):
            raise DataError(f'expected a row {{column: value}} with {", ".join(self.columns)}')
        missing = [name for name in self.columns if name not in source]
        if missing:
            given = ', '.join(map(repr, source)) or 'none'
            raise DataError(f'there is no column {missing[0]!r}: there are {given}'[:500])
        return (
            [self._number(name, source[name]) for name in self.numeric],
            [
                codes.get(category(_text(source[name])), UNKNOWN)
                for name, codes in zip(self.categorical, self._codes)
            ],
        )

    def batch(self, samples: list) -> list[np.ndarray]:
        numbers, codes = zip(*samples)
        shape = len(samples), len(self.numeric)
        numbers = np.array(numbers, dtype=float).reshape(shape)
        return [
            standardized(numbers, self.mean, self.std),
            np.array(codes, dtype=np.int64).reshape(len(samples), len(self.categorical)),
        ]

    def notes(self, sources: list) -> list[str]:
        rows = [row for row in sources if isinstance(row, Mapping)]
        found = []
        for name, codes in zip(self.categorical, self._codes):
            cells = [_text(row.get(name)) for row in rows]
            unseen = [
                cell for cell in cells if not is_missing(cell) and category(cell) not in codes
            ]
            if unseen:
                found.append(
                    f'column {name!r}: training does not have the category of {len(unseen)} of '
                    f'{len(rows)} rows (such as {unseen[0]!r}), which count as missing'
                )
        return found

    def _number(self, name: str, value: Any) -> float:
        try:
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            found = float(value) if is_number else number(_text(value), self.decimal)
        except (ValueError, OverflowError) as error:
            raise DataError(f'column {name!r}: {str(value)[:60]!r} {error}') from None
        return found if abs(found) <= LARGEST else np.nan  # as in training: missing


@dataclasses.dataclass
class TextInput(InputFormat):
    """Sentences, a line each: Padded numbers of words, (batch, longest) and (batch,), int64.

    words: in the order of their numbers. unknown: the number of any other word; None refuses it.
    """

    words: list[str]
    padding: int = 0
    unknown: int | None = None
    max_words: int | None = None  # that a source may have

    names = ('words', 'lengths')
    dynamic = {'words': {1: 'length'}}
    endings = ('.txt',)

    def __post_init__(self):
        self._numbers = {word: number for number, word in enumerate(self.words)}

    def sources(self, file: Path) -> list[tuple[str, Any]]:
        try:
            lines = re.split('\r\n|\r|\n', decoded(file, None))
        except OSError as error:
            raise DataError(f'{file} cannot be read: {error.strerror}') from error
        found = [(f'{file}:{place}', line) for place, line in enumerate(lines, 1) if line.strip()]
        if not found:
            raise DataError(f'{file} holds no text')
        return found

    def sample(self, source: str) -> np.ndarray:
        if not isinstance(source, str) or not source.split():
            raise DataError('expected a text of at least one word')
        words = source.split()
        if self.max_words and len(words) > self.max_words:
            raise DataError(f'the text has {len(words):,} words: at most {self.max_words:,}')
        numbers = [self._numbers.get(word, self.unknown) for word in words]
        if None in numbers:
            word = words[numbers.index(None)]
            raise DataError(f'training does not have the word {word[:40]!r}')
        return np.array(numbers)

    def batch(self, samples: list) -> Padded:
        lengths = np.array([len(each) for each in samples])
        values = np.full((len(samples), lengths.max()), self.padding)
        for row, each in zip(values, samples):
            row[: len(each)] = each
        return Padded(values, lengths)


@dataclasses.dataclass
class ArrayInput(InputFormat):
    """Arrays of numbers of one shape, as .npy files of one or several: (batch, *shape)."""

    shape: list[int]
    dtype: str = 'float32'

    endings = ('.npy',)

    def sources(self, file: Path) -> list[tuple[str, Any]]:
        try:
            found = np.load(file, allow_pickle=False)
        except Exception as error:  # malformed files raise nearly everything
            return [(str(file), DataError(f'{file} cannot be read as an array ({error})'))]
        if isinstance(found, np.ndarray) and found.shape[1:] == tuple(self.shape):
            if not len(found):
                return [(str(file), DataError(f'{file} holds no arrays: expected some'))]
            return [(f'{file}:{row}', each) for row, each in enumerate(found)]
        return [(str(file), found)]

    def sample(self, source: Any) -> np.ndarray:
        try:
            given = np.asarray(source)
        except (TypeError, ValueError, RuntimeError) as error:
            raise DataError(f'expected numbers: {error}') from error
        if given.dtype.kind not in 'biuf':
            raise DataError(f'expected numbers, and these are of the kind {given.dtype}')
        with np.errstate(all='ignore'):
            array = given.astype(self.dtype)
        if array.shape != tuple(self.shape):
            raise DataError(f'expected an array {tuple(self.shape)}, and this one is {array.shape}')
        if not np.isfinite(array).all():
            raise DataError('expected finite numbers')
        if array.dtype.kind in 'iu' and (array != given).any():
            raise DataError(f'expected whole numbers, as {array.dtype} holds them')
        return array


FORMATS = (ImageInput, TableInput, TextInput, ArrayInput)


def describe(input_format: InputFormat) -> dict | None:
    """The format as plain data, for `described`; None when it holds code of the project's own."""
    if type(input_format) not in FORMATS or getattr(input_format, 'transform', None):
        return None
    return {'type': type(input_format).__name__, **dataclasses.asdict(input_format)}


def described(description: dict) -> InputFormat:
    kinds = {kind.__name__: kind for kind in FORMATS}
    arguments = dict(description)
    return kinds[arguments.pop('type')](**arguments)


def readable(
    input_format: InputFormat, sources: Iterable[Any]
) -> tuple[list[Any], list[DataError | None]]:
    """(samples of the sources that can be read, for each source the reason why not, or None)."""
    samples, reasons = [], []
    for source in sources:
        try:
            if isinstance(source, DataError):
                raise source
            samples.append(input_format.sample(source))
            reasons.append(None)
        except DataError as error:
            reasons.append(error)
    return samples, reasons


def rows_for(
    input_format: InputFormat, sources: Iterable[Any], answer: Callable[[list], list[dict]]
) -> list[dict[str, Any]]:
    """A row for each source: what `answer` says of the samples, or the error."""
    if isinstance(sources, (str, bytes, Path, Mapping)):
        raise DataError('expected a list of inputs, and this is one: put it in [ ]')
    samples, reasons = readable(input_format, sources)
    rows = iter(answer(samples) if samples else ())
    return [next(rows) if reason is None else {'error': str(reason)} for reason in reasons]


def leaves(content: Any) -> list[np.ndarray]:
    """The arrays in what `batch` returns, in the order of `names`."""
    if isinstance(content, Mapping):
        content = list(content.values())
    if not isinstance(content, (list, tuple)):
        return [content]
    return [leaf for each in content for leaf in leaves(each)]


def _text(value: Any) -> str:
    return '' if value is None else str(value).strip()
