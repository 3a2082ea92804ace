"""BaseModel: a torch module that prints its size."""

from abc import ABC, abstractmethod
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy


class BaseModel(nn.Module, ABC):
    """Base of the project's models; a subclass has to write `forward`."""

    @abstractmethod
    def forward(self, *inputs: Any) -> Any:
        """The model's output for one batch of inputs."""

    def shard_blocks(self) -> list[nn.Module]:
        """The parts to have in memory one at a time (distributed.strategy "fsdp",
        trainer.activation_checkpointing).
        """
        return list(self.children())

    def __str__(self) -> str:
        n_trainable = sum(
            parameter.numel()
            for parameter in self.parameters()
            if parameter.requires_grad and not is_lazy(parameter)
        )
        return f'{super().__str__()}\nTrainable parameters: {n_trainable:,}'
