import argparse
import collections
import torch
import data_loader.data_loaders as module_data
import model.loss as module_loss
import model.metric as module_metric
import model.model as module_arch
from parse_config import ConfigParser
from trainer import Trainer


def main(config):
    logger = config.get_logger('train')
    torch.manual_seed(config['seed'])
    data_loader = config.initialize('data_loader', module_data)
    valid_data_loader = data_loader.split_validation()
    model = config.initialize('arch', module_arch)
    logger.info(model)
    loss = getattr(module_loss, config['loss'])
    metrics = [getattr(module_metric, met) for met in config['metrics']]
    optimizer = config.initialize('optimizer', torch.optim, filter(lambda p: p.requires_grad, model.parameters()))
    lr_scheduler = config.initialize('lr_scheduler', torch.optim.lr_scheduler, optimizer)
    trainer = Trainer(model, loss, metrics, optimizer, config=config, data_loader=data_loader,
                      valid_data_loader=valid_data_loader, lr_scheduler=lr_scheduler)
    trainer.train()


if __name__ == '__main__':
    args = argparse.ArgumentParser(description='sorted or not')
    args.add_argument('-c', '--config', default=None, type=str)
    args.add_argument('-r', '--resume', default=None, type=str)
    args.add_argument('-d', '--device', default=None, type=str)
    CustomArgs = collections.namedtuple('CustomArgs', 'flags type target')
    options = [
        CustomArgs(['--lr', '--learning_rate'], type=float, target=('optimizer', 'args', 'lr')),
        CustomArgs(['--hidden'], type=int, target=('arch', 'args', 'hidden')),
    ]
    config = ConfigParser(args, options)
    main(config)
