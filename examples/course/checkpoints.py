"""What is in a checkpoint: python -m examples.course.checkpoints RUN_FOLDER"""

import sys
from pathlib import Path

import torch

run = Path(sys.argv[1])
for path in sorted(run.iterdir()):
    print(f'{path.name:24} {path.stat().st_size:10,} bytes')

# Plain data: reading it runs no code.
checkpoint = torch.load(run / 'checkpoint-last.pth', weights_only=True)
print(', '.join(checkpoint))
print(f'epoch {checkpoint["epoch"]}, step {checkpoint["step"]}, best {checkpoint["monitor_best"]}')
for name, weight in checkpoint['state_dict'].items():
    print(f'{name:20} {tuple(weight.shape)}')
