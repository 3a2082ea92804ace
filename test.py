"""Measure the best checkpoint of a run on the test data: python test.py -r saved/models/NAME/RUN"""

import argparse
import inspect
import itertools

import armature.packages  # noqa: F401 (says what to type where a package is missing)

# isort: split
import data_loader.data_loaders as module_data
import model.loss as module_loss
import model.metric as module_metric
import model.model as module_arch
from armature.batch import PairOf, call_by_name
from armature.checkpoint import files as checkpoint
from armature.checkpoint.weights import load_tested
from armature.config.build import find, kind_of
from armature.config.command import add_flags
from armature.config.values import parameters
from armature.data.identity import identity_of
from armature.data.order import one_pass
from armature.data.split import refuse_split
from armature.errors import ConfigError, exit_on_user_error
from armature.processes import dist
from armature.processes.devices import prepare_device
from armature.processes.launch import processes
from armature.run.console import results, shown_path
from armature.run.metric_tracker import MetricTracker
from armature.run.plots import save_pictures
from armature.run.record import write_test
from armature.seed import seed_everything
from base import BaseDataLoader
from parse_config import ConfigParser
from trainer.trainer import evaluate

BUILDS = {  # the sections of a config that this script makes objects of
    'arch': module_arch,
    'data_loader': module_data,
    'test_data_loader': module_data,
    'loss': module_loss,
    'metrics': module_metric,
}
TESTING = {'shuffle': False, 'validation_split': 0.0, 'training': False}


def test_data(config):
    """The loader of "test_data_loader"; without one the training's, of its test data."""
    if 'test_data_loader' not in config:
        settings = config['data_loader']
        loader_class = find(settings['type'], kind_of('data_loader', module_data))
        args = settings.get('args') or {}
        taken, takes_others = parameters(loader_class)
        if takes_others:  # and hands them on: to ours, or is given what it was for training
            is_ours = inspect.isclass(loader_class) and issubclass(loader_class, BaseDataLoader)
            taken = TESTING if is_ours else {*taken, *args, 'training'}
        testing = {name: value for name, value in TESTING.items() if name in taken}
        if 'training' not in testing:
            raise ConfigError(
                'the config does not say what to test on: write a "test_data_loader", which is '
                f'like "data_loader", or let {settings["type"]} take training=False'
            )
        config['test_data_loader'] = settings | {'args': args | testing}
    loader = config.init_obj('test_data_loader', module_data)
    refuse_split(loader, 'test_data_loader')
    return loader


def main(config, n_batches=None):
    logger = config.get_logger('test')
    device, _ = prepare_device(config.get('n_gpu'))
    seed_everything(config.get('seed'))

    data_loader = test_data(config)
    model = config.init_obj('arch', module_arch).to(device)
    criterion = config.init_loss(module_loss)
    saved = checkpoint.load(config.resume)
    epoch = saved.get('epoch')
    logger.info(f'Testing {shown_path(config.resume)} (of epoch {epoch}) on {device}')
    load_tested(model, criterion, saved, config.resume)
    if hasattr(data_loader, 'load_state_dict') and 'data_loader' in saved.get('parts', {}):
        data_loader.load_state_dict(saved['parts']['data_loader'])
    if hasattr(data_loader, 'use_class_names'):
        data_loader.use_class_names(saved.get('data', {}).get('class_names'))
    metrics = MetricTracker(
        'loss',
        metrics=config.init_metrics(module_metric),
        loss=criterion,
        data=data_loader,
        pictures=config.settings.pictures,
    )

    call_by_name(model, config.get('batch'))
    batches = one_pass(data_loader, PairOf(config.get('batch')), device, metrics)
    batches = itertools.islice(batches, n_batches)
    values = evaluate(model, batches, criterion, metrics)
    by_class = metrics.by_class(values)
    for line in results(values, by_class):
        logger.info(line)
    n_samples, drawn = sum(dist.gather(metrics.n_samples)), metrics.pictures.draw()
    if dist.is_main():
        written = write_test(
            config.resume,
            epoch,
            data=identity_of(data_loader),
            n_samples=n_samples,
            classes=metrics.class_names,
            values=values,
            per_class=by_class,
        )
        for file in [written, *save_pictures(drawn, config.resume.parent)]:
            logger.info(f'{shown_path(file)} is written')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description='Measure a checkpoint on the test data.')
    add_flags(parser, best_first=True)
    with exit_on_user_error():
        config = ConfigParser.from_args(parser, builds=BUILDS)
        with processes(config):
            main(config)
