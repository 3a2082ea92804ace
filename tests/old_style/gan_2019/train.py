import argparse
import collections
import torch
import data_loader.data_loaders as module_data
import model.model as module_arch
from parse_config import ConfigParser
from trainer.trainer import GanTrainer


def main(config):
    loader = config.init_obj('data_loader', module_data)
    generator = config.init_obj('arch', module_arch)
    discriminator = config.init_obj('discriminator', module_arch)
    optim_g = config.init_obj('optimizer', torch.optim, generator.parameters())
    optim_d = config.init_obj('optimizer_d', torch.optim, discriminator.parameters())
    GanTrainer(generator, discriminator, optim_g, optim_d, config, loader, len_epoch=config['trainer']['steps']).train()


if __name__ == '__main__':
    args = argparse.ArgumentParser()
    args.add_argument('-c', '--config', default=None, type=str)
    args.add_argument('-r', '--resume', default=None, type=str)
    args.add_argument('-d', '--device', default=None, type=str)
    Option = collections.namedtuple('Option', 'flags type target')
    torch.manual_seed(1)
    main(ConfigParser.from_args(args, [Option(['--latent'], type=int, target='arch;args;latent')]))
