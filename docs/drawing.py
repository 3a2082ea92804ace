"""Draws docs/pictures/rooms.svg: the rooms, who imports whom, and the way of a batch.

Rooms and arrows come from the imports in the code; the way comes from the table in
docs/architecture.md.
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WIDTH, BOX, LINE, MARGIN, ROW = 920, 280, 17, 20, 40  # pixels; ROW: between two rows
PROJECT = ('train.py', 'trainer', 'model', 'data_loader', 'parse_config.py', 'base', 'logger')


def rooms() -> dict[str, list[str]]:
    """{room: its files}; files that stand in no room of the frame are in 'armature'."""
    found = {}
    for name in PROJECT:
        found[name] = [] if name.endswith('.py') else names_in(ROOT / name)
    frame = ROOT / 'armature'
    for folder in sorted(path.parent for path in frame.glob('*/__init__.py')):
        found[f'armature/{folder.name}'] = names_in(folder)
    found['armature'] = names_in(frame)
    return found


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob('*.py') if path.name != '__init__.py')


def room_of(module: str, known: dict) -> str | None:
    """The room in which a module stands, by its name with dots."""
    parts = module.split('.')
    for room in ('/'.join(parts[:2]), parts[0], f'{parts[0]}.py'):
        if room in known:
            return room
    return None


def arrows(known: dict[str, list[str]]) -> dict[str, set[str]]:
    """{room: the rooms that files of it import}"""
    found = {}
    for room, files in known.items():
        paths = [ROOT / room] if room.endswith('.py') else [ROOT / room / name for name in files]
        modules = [module for path in paths for module in imported(path)]
        found[room] = {room_of(module, known) for module in modules} - {room, None}
    return found


def imported(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [f'{node.module}.{alias.name}' for alias in node.names]
    return found


def levels(edges: dict[str, set[str]]) -> dict[str, int]:
    """How many arrows may follow one another from a room on; circles count once."""

    def depth(room: str, seen: tuple) -> int:
        below = [each for each in edges[room] if each not in seen]
        return 1 + max((depth(each, (*seen, each)) for each in below), default=-1)

    return {room: depth(room, (room,)) for room in edges}


def stations() -> dict[str, int]:
    """{file: its number on the way of a batch}, from the table in docs/architecture.md."""
    page = (ROOT / 'docs' / 'architecture.md').read_text(encoding='utf-8')
    rows = re.findall(r'^\| (\d+) \| `([\w/]+\.py)`', page, flags=re.MULTILINE)
    return {file: int(number) for number, file in rows}


def svg() -> str:
    known = rooms()
    edges, way = arrows(known), stations()
    level = levels(edges)
    boxes, y = {}, MARGIN
    for each in range(max(level.values()), -1, -1):
        row = [room for room in known if level[room] == each]
        left = (WIDTH - len(row) * (BOX + MARGIN) + MARGIN) / 2
        height = 28 + LINE * max(-(-len(known[room]) // 2) for room in row)
        for place, room in enumerate(row):
            boxes[room] = left + place * (BOX + MARGIN), y, height
        y += height + ROW
    lines = [line(boxes[room], boxes[below]) for room in known for below in direct(room, edges)]
    shapes = [box(room, boxes[room], known[room], way) for room in known]
    return '\n'.join(
        [HEAD.format(width=WIDTH, height=y - ROW + MARGIN), *lines, *shapes, '</svg>\n']
    )


def direct(room: str, edges: dict[str, set[str]]) -> list[str]:
    """The rooms below that no other arrow leads to by a longer way."""

    def reached(start: str, seen: set) -> set:
        for each in edges[start] - seen:
            seen.add(each)
            reached(each, seen)
        return seen

    below = edges[room]
    return sorted(
        each for each in below if not any(each in reached(o, {o}) for o in below - {each})
    )


HEAD = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"
font-family="sans-serif">
<title>The rooms, who imports whom, and the way of a batch</title>
<rect width="{width}" height="{height}" fill="white"/>
<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8"
orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="#888"/></marker></defs>"""


def line(above: tuple, below: tuple) -> str:
    """An arrow from the bottom of a box to the top of one below it."""
    (x1, y1, height), (x2, y2, _) = above, below
    return (
        f'<line x1="{x1 + BOX / 2:.0f}" y1="{y1 + height}" x2="{x2 + BOX / 2:.0f}" y2="{y2}" '
        'stroke="#888" marker-end="url(#tip)"/>'
    )


def box(room: str, place: tuple, files: list[str], way: dict[str, int]) -> str:
    """A room with its files in two columns; those on the way of a batch with their number."""
    x, y, height = place
    colour = '#e8f1fb' if room.startswith('armature') else '#fdf3e1'
    title = room if room.endswith('.py') else f'{room}/'
    parts = [
        f'<rect x="{x:.0f}" y="{y}" width="{BOX}" height="{height}" rx="6" fill="{colour}" '
        'stroke="#555"/>',
        f'<text x="{x + 10:.0f}" y="{y + 19}" font-size="14" font-weight="bold">{title}</text>',
    ]
    n_rows = -(-len(files) // 2)
    for number, name in enumerate(files):
        station = way.get(f'{room}/{name}')
        text = name if station is None else f'{station}  {name}'
        style = 'fill="#555"' if station is None else 'fill="#b03010" font-weight="bold"'
        column, row = divmod(number, n_rows)
        at = f'x="{x + 10 + column * BOX / 2:.0f}" y="{y + 37 + LINE * row}"'
        parts.append(f'<text {at} font-size="12" {style}>{text}</text>')
    return '\n'.join(parts)
