"""Train what a config describes: python train.py -c config.json"""

import argparse

import armature.packages  # noqa: F401 (says what to type where a package is missing)

# isort: split
import torch

import data_loader.data_loaders as module_data
import model.loss as module_loss
import model.metric as module_metric
import model.model as module_arch
import trainer.trainer as module_trainer
from armature.config.command import add_flags
from armature.data.split import refuse_split
from armature.errors import exit_on_user_error
from armature.processes.devices import prepare_device
from armature.processes.launch import processes
from armature.seed import seed_everything
from armature.step.parameters import init_weights, parameter_groups
from parse_config import ConfigParser, CustomArgs
from tools.rehearsals import add_rehearsals, rehearse

# The sections of a config that `build` makes objects of: they are checked before anything runs.
BUILDS = {
    'arch': module_arch,
    'data_loader': module_data,
    'valid_data_loader': module_data,
    'loss': module_loss,
    'metrics': module_metric,
    'optimizer': torch.optim,
    'lr_scheduler': torch.optim.lr_scheduler,
    'trainer': module_trainer,
}


def build_data(config):
    """The loaders of the training and the validation data; the latter is None without any."""
    data_loader = config.init_obj('data_loader', module_data)
    if 'valid_data_loader' not in config:
        has_split = hasattr(data_loader, 'split_validation')
        return data_loader, data_loader.split_validation() if has_split else None
    valid_data_loader = config.init_obj('valid_data_loader', module_data)
    refuse_split(data_loader, 'data_loader')
    refuse_split(valid_data_loader, 'valid_data_loader')
    if hasattr(data_loader, 'state_dict'):
        # what it learned from the training data, such as the means of a table
        valid_data_loader.load_state_dict(data_loader.state_dict())
    if hasattr(valid_data_loader, 'use_class_names'):
        valid_data_loader.use_class_names(data_loader.class_names)
    return data_loader, valid_data_loader


def build(config):
    """The trainer of an experiment, ready to train."""
    logger = config.get_logger('train')
    device, _ = prepare_device(config.get('n_gpu'))
    seed_everything(config.get('seed'))
    data_loader, valid_data_loader = build_data(config)

    model = config.init_obj('arch', module_arch)
    if config.get('init_from') and config.resume is None:
        init_weights(model, config['init_from'], logger)
    model = config.wrap(model, device)
    criterion = config.init_loss(module_loss)
    if isinstance(criterion, torch.nn.Module):
        criterion = criterion.to(device)
    metrics = config.init_metrics(module_metric)

    optimizer = config.init_obj(
        'optimizer', torch.optim, parameter_groups(config, model, criterion)
    )
    lr_scheduler = config.init_scheduler(optimizer, data_loader)

    trainer_class = config.trainer_class(module_trainer)
    return trainer_class(
        model,
        criterion,
        metrics,
        optimizer,
        config,
        device,
        data_loader,
        valid_data_loader,
        lr_scheduler,
    )


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description='Train what a config describes.')
    add_flags(parser)
    parser.add_argument(
        '--resume-or-start',
        action='store_true',
        help='go on with the unfinished run of this name, if there is one',
    )
    parser.add_argument(
        '--run-id', metavar='NAME', help="name of the run's folder, instead of the time of day"
    )
    add_rehearsals(parser)
    options = [
        CustomArgs(['--lr', '--learning_rate'], type=float, target='optimizer;args;lr'),
        CustomArgs(['--bs', '--batch_size'], type=int, target='data_loader;args;batch_size'),
    ]
    with exit_on_user_error():
        config = ConfigParser.from_args(parser, options, builds=BUILDS)
        with processes(config):
            if not rehearse(build, config):
                build(config).train()
