"""Which files are images, and how their pixels become 8 bits, in training and in use; no torch."""

import io
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from armature.errors import DataError

ENDINGS = ('.png', '.jpg', '.jpeg', '.bmp', '.gif', '.webp', '.tif', '.tiff', '.ppm', '.pgm')
# Begin what Jupyter, macOS, Synology, Linux and Windows leave in folders and on disks.
LITTER = ('.', '__MACOSX', '@eaDir', 'lost+found', '$RECYCLE.BIN', 'System Volume Information')

NEARLY_HALF = 0.5001  # floats from 0 to 1 that were computed exceed both a little


def read_image(
    source: str | Path | bytes, size: int, mode: str, max_pixels: int | None = None
) -> np.ndarray:
    """(channels, size, size) uint8 of a file, or of its bytes.

    mode: 'RGB' or 'L' (grey). max_pixels: the file may have. Raises DataError, whatever is wrong
    with the file.
    """
    from PIL import Image

    is_bytes = isinstance(source, bytes)
    name = 'the image' if is_bytes else source
    try:
        with Image.open(io.BytesIO(source) if is_bytes else source) as file:
            if max_pixels and file.width * file.height > max_pixels:
                raise DataError(
                    f'{name} has {file.width} x {file.height} pixels: at most {max_pixels:,}'
                )
            image = to_8_bits(file, mode).resize((size, size), Image.Resampling.BILINEAR)
    except DataError:
        raise
    except Exception as error:  # malformed files raise nearly everything
        is_empty = (
            not source if is_bytes else os.path.isfile(source) and not os.path.getsize(source)
        )
        reason = 'it is empty' if is_empty else ' '.join(str(error).split())
        raise DataError(f'{name} cannot be read as an image ({reason})') from error
    pixels = np.array(image).reshape(size, size, -1)  # (height, width, channels)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def to_8_bits(file: Any, mode: str) -> Any:
    """A PIL image, upright and of 8 bits in `mode`; ValueError where nobody knows the scale."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(file)
    # PIL's own conversion of these would clip at 255 instead of scaling.
    if image.mode.startswith('I;16') or image.mode == 'I' and file.format in ('PNG', 'PPM'):
        image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    elif image.mode == 'F' and np.abs((pixels := np.asarray(image)) - 0.5).max() <= NEARLY_HALF:
        image = Image.fromarray((pixels * 255).round().astype(np.uint8))
    elif image.mode in ('I', 'F'):
        lowest, highest = image.getextrema()
        raise ValueError(
            f'its pixels go from {lowest:g} to {highest:g}, and nothing says what black and white '
            'are: save it with 8 or 16 bits, or as floats from 0 to 1'
        )
    if image.mode in ('CMYK', 'LAB', 'YCbCr'):
        image = image.convert('RGB')
    if image.has_transparency_data:
        image = image.convert('RGBA')
        image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
    return image.convert(mode)


def files_below(
    folder: Path, left_out: Counter | None = None, endings: tuple = ENDINGS
) -> list[str]:
    """The files in `folder` and its folders, linked ones too (each once: links may go round).

    endings: of images, or others. left_out: counts the other files by their ending.
    """
    found, seen = [], set()

    def refuse(error: OSError) -> None:
        raise DataError(f'{error.filename} cannot be read: {error.strerror}')

    walk = os.walk(folder, onerror=refuse, followlinks=True) if folder.is_dir() else []
    for place, folders, files in walk:
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(LITTER)]
        for name in files:
            ending = 'hidden' if name.startswith(LITTER) else os.path.splitext(name)[1].lower()
            if ending in endings:
                found.append(os.path.join(place, name))
            elif left_out is not None:
                left_out[ending or 'without an ending'] += 1
    return sorted(found, key=lambda path: path.split(os.sep))
