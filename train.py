"""Train what a config describes: python train.py -c config.json"""
import argparse
from pathlib import Path

import torch

import data_loader.data_loaders as module_data
import model.loss as module_loss
import model.metric as module_metric
import model.model as module_arch
from base import checkpoint
from base.weights import load_weights
from parse_config import ConfigParser, CustomArgs
from tools.check_resume import check_resume
from trainer import Trainer
from utils import prepare_device
from utils.errors import ConfigError, exit_on_user_error
from utils.seed import seed_everything


def main(config):
    logger = config.get_logger('train')
    device, device_ids = prepare_device(config.get('n_gpu', 1))
    if len(device_ids) > 1:
        raise ConfigError(f'{len(device_ids)} GPUs are asked for, and this version trains on one: say -d 0, or "n_gpu": 1')
    logger.info(f'Training on {device}')
    seed_everything(config.get('seed', 123))

    data_loader = config.init_obj('data_loader', module_data)
    if 'valid_data_loader' in config:
        valid_data_loader = config.init_obj('valid_data_loader', module_data)
    else:
        valid_data_loader = data_loader.split_validation()

    model = config.init_obj('arch', module_arch).to(device)
    logger.info(model)
    if config.get('init_from') and config.resume is None:
        load_weights(model, checkpoint.load(Path(config['init_from']))['state_dict'], config['init_from'])
    criterion = config.init_loss(module_loss)
    metrics = config.init_metrics(module_metric)

    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = config.init_obj('optimizer', torch.optim, trainable)
    lr_scheduler = None
    if config.get('lr_scheduler'):
        lr_scheduler = config.init_obj('lr_scheduler', torch.optim.lr_scheduler, optimizer)

    Trainer(model, criterion, metrics, optimizer, config, device, data_loader, valid_data_loader, lr_scheduler).train()


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description='Train what a config describes.')
    parser.add_argument('-c', '--config', metavar='FILE', help='the experiment')
    parser.add_argument('-r', '--resume', metavar='CHECKPOINT', help='go on from a checkpoint or a run folder')
    parser.add_argument('-d', '--device', metavar='DEVICE', help='CUDA indices such as 0, or cpu, or mps')
    parser.add_argument('--resume-or-start', action='store_true', help='go on with the unfinished run of this name, if there is one')
    parser.add_argument('--check-resume', action='store_true', help='try whether this experiment resumes exactly, and leave')
    options = [
        CustomArgs(['--lr', '--learning_rate'], type=float, target='optimizer;args;lr'),
        CustomArgs(['--bs', '--batch_size'], type=int, target='data_loader;args;batch_size'),
    ]
    with exit_on_user_error():
        config = ConfigParser.from_args(parser, options)
        if config.arguments.check_resume:
            check_resume(config.config)
        else:
            main(config)
