import os
import json
import argparse
import torch
import data_loader.data_loaders as module_data
import model.loss as module_loss
import model.metric as module_metric
import model.model as module_arch
from trainer import Trainer
from logger import Logger
from utils.util import chunks


def get_instance(module, name, config, *args):
    return getattr(module, config[name]['type'])(*args, **config[name]['args'])


def main(config, resume):
    torch.manual_seed(3)
    train_logger = Logger()
    data_loader = get_instance(module_data, 'data_loader', config)
    valid_data_loader = data_loader.split_validation()
    model = get_instance(module_arch, 'arch', config)
    model.summary()
    loss = getattr(module_loss, config['loss'])
    metrics = [getattr(module_metric, met) for met in config['metrics']]
    optimizer = get_instance(torch.optim, 'optimizer', config, filter(lambda p: p.requires_grad, model.parameters()))
    trainer = Trainer(model, loss, metrics, optimizer, resume=resume, config=config, data_loader=data_loader,
                      valid_data_loader=valid_data_loader, train_logger=train_logger)
    trainer.train()
    print(train_logger, list(chunks('abc', 2)))


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description='a line')
    parser.add_argument('-c', '--config', default=None, type=str)
    parser.add_argument('-r', '--resume', default=None, type=str)
    parser.add_argument('-d', '--device', default=None, type=str)
    args = parser.parse_args()
    if args.config:
        config = json.load(open(args.config))
    elif args.resume:
        config = torch.load(args.resume)['config']
    if args.device:
        os.environ['CUDA_VISIBLE_DEVICES'] = args.device
    main(config, args.resume)
