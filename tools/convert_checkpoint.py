"""Rewrite a checkpoint of the old template, or a bare state dict, as ours.

Python -m tools.convert_checkpoint OLD NEW
"""

import argparse
import os
from pathlib import Path

from armature.checkpoint import files as checkpoint
from armature.errors import CheckpointError, exit_on_user_error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('old', type=Path, help='a checkpoint of any age; no code in it is run')
    parser.add_argument('new', type=Path, help='the file to write')
    args = parser.parse_args()
    with exit_on_user_error():
        if os.path.lexists(args.new):
            raise CheckpointError(f'{args.new} is there already')
        if not args.new.parent.is_dir():
            raise CheckpointError(f'{args.new.parent} is no folder: make it first')
        state = checkpoint.load(args.old)
        checkpoint.save(state, args.new)
        print(f'{args.new}: {", ".join(state)}; {len(state["state_dict"])} tensors')


if __name__ == '__main__':
    main()
