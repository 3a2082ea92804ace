"""A small made-up language: opinions such as "the soup is not very good"; 1 is praise, 0 blame."""

import random
from typing import Any

import torch
from torch.utils.data import Dataset

from base import BaseDataLoader
from data_loader.collate import PadCollate
from tools.use_inputs import TextInput

WORDS = [
    '<padding>',
    'the',
    'soup',
    'film',
    'room',
    'talk',
    'is',
    'was',
    'not',
    'never',
    'very',
    'really',
    'good',
    'fine',
    'bad',
    'dull',
    'and',
    'but',
]
GOOD, BAD = ('good', 'fine'), ('bad', 'dull')


class Opinions(Dataset):
    """n_sentences of ((length,) word numbers, 0 or 1), no two the same.

    A sentence may have a second half after 'but', which decides.

    first: how many sentences of the language come before these.
    """

    def __init__(self, n_sentences: int, first: int = 0):
        self.random = random.Random(0)
        sentences = {}
        while len(sentences) < first + n_sentences:
            words, is_praise = self._sentence()
            sentences[words] = is_praise
        chosen = list(sentences.items())[first:]
        self.sentences = [
            torch.tensor([WORDS.index(word) for word in words]) for words, _ in chosen
        ]
        self.classes = ['blame', 'praise']
        self.targets = [int(is_praise) for _, is_praise in chosen]

    def _half(self) -> tuple[list[str], bool]:
        draw = self.random
        negations = draw.choice([[], [], ['not'], ['never']])
        word = draw.choice(GOOD + BAD)
        start = ['the', draw.choice(['soup', 'film', 'room', 'talk']), draw.choice(['is', 'was'])]
        return start + negations + ['very'] * draw.randrange(3) + [word], (word in GOOD) != bool(
            negations
        )

    def _sentence(self) -> tuple[tuple[str, ...], bool]:
        words, is_praise = self._half()
        if self.random.random() < 0.5:
            more, is_praise = self._half()
            words = [*words, 'but', *more]
        return tuple(words), is_praise

    def __len__(self) -> int:
        return len(self.sentences)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.sentences[index], self.targets[index]


class OpinionsDataLoader(BaseDataLoader):
    """Test sentences are other ones than those for training."""

    def __init__(
        self, batch_size: int, *, n_sentences: int = 2000, training: bool = True, **options: Any
    ):
        super().__init__(
            Opinions(n_sentences, first=0 if training else n_sentences),
            batch_size,
            collate_fn=PadCollate(padding=0),
            evaluation=not training,
            **options,
        )

    @classmethod
    def input_format(cls, args: dict, state: dict) -> TextInput:
        return TextInput(WORDS, padding=0)
