"""Let a trained model write: python -m examples.char_model.write RUN_FOLDER"""

import sys

import torch

from examples.char_model.data import CHARACTERS, encode
from predict import load_run

if __name__ == '__main__':
    model = load_run(sys.argv[1]).model
    text = 'The data '
    for _ in range(300):
        with torch.no_grad():
            scores = model(encode(text).unsqueeze(0))[0, :, -1]  # of the next character
        # Below 1, likely characters become likelier still.
        chances = (scores / 0.7).softmax(dim=0)
        text += CHARACTERS[torch.multinomial(chances, num_samples=1)]
    print(text)
