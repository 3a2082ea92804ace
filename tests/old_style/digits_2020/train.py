import argparse
import collections

import torch

import data_loader.data_loaders as module_data
import model.loss as module_loss
import model.metric as module_metric
import model.model as module_arch
from parse_config import ConfigParser
from trainer import Trainer
from utils import prepare_device, fix_seeds

fix_seeds(7)


def main(config):
    logger = config.get_logger('train')
    train_data = config.init_obj('data_loader', module_data)
    valid_data = train_data.split_validation()

    net = config.init_obj('arch', module_arch)
    logger.info(net)

    device, device_ids = prepare_device(config['n_gpu'])
    net = net.to(device)
    if len(device_ids) > 1:
        net = torch.nn.DataParallel(net, device_ids=device_ids)

    criterion = getattr(module_loss, config['loss'])
    metrics = config.initialize_list('metrics', module_metric)
    params = filter(lambda p: p.requires_grad, net.parameters())
    optimizer = config.init_obj('optimizer', torch.optim, params)
    lr_scheduler = config.init_obj('lr_scheduler', torch.optim.lr_scheduler, optimizer)

    trainer = Trainer(net, criterion, metrics, optimizer, config=config, device=device, data_loader=train_data,
                      valid_data_loader=valid_data, lr_scheduler=lr_scheduler)
    trainer.train()


if __name__ == '__main__':
    args = argparse.ArgumentParser(description='small digits')
    args.add_argument('-c', '--config', default=None, type=str)
    args.add_argument('-r', '--resume', default=None, type=str)
    args.add_argument('-d', '--device', default=None, type=str)

    CustomArgs = collections.namedtuple('CustomArgs', 'flags type target')
    options = [
        CustomArgs(['--lr', '--learning_rate'], type=float, target='optimizer;args;lr'),
        CustomArgs(['--width'], type=int, target='arch;args;width'),
    ]
    main(ConfigParser.from_args(args, options))
