"""Runs an exported model in a Python of its own, for tools/export.py: run_pt2.py model.pt2

Lists of arrays come through stdin, pickled, and the lists of its outputs go to stdout: nothing of
the project is imported.
"""

import pickle
import sys
import warnings

import torch

if __name__ == '__main__':
    answers, sys.stdout = sys.stdout.buffer, sys.stderr
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of torch's own code: torch 2.10 reads into a buffer
        model = torch.export.load(sys.argv[1]).module()
    while True:
        try:
            arrays = pickle.load(sys.stdin.buffer)
        except EOFError:
            break
        with torch.no_grad():
            outputs = model(*map(torch.from_numpy, arrays))
        pickle.dump([output.numpy() for output in outputs], answers)
        answers.flush()
