import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from base import BaseDataLoader


class Sequences(Dataset):
    def __init__(self):
        g = torch.Generator().manual_seed(2)
        self.items = [torch.rand(int(n), 1, generator=g) for n in torch.randint(2, 6, (80,), generator=g)]

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i], int(self.items[i].mean() > 0.5)


def collate(samples):
    sequences, labels = zip(*samples)
    return pad_sequence(sequences, batch_first=True), torch.tensor([len(s) for s in sequences]), torch.tensor(labels)


class SequenceLoader(BaseDataLoader):
    def __init__(self, batch_size, shuffle, validation_split, num_workers):
        self.dataset = Sequences()
        super(SequenceLoader, self).__init__(self.dataset, batch_size, shuffle, validation_split, num_workers, collate)
