"""Measure the best checkpoint of a run on the test data: python test.py -r saved/models/NAME/RUN"""

import argparse
import itertools

import armature.packages  # noqa: F401 (says what to type where a package is missing)

# isort: split
import data_loader.data_loaders as module_data
import model.loss as module_loss
import model.metric as module_metric
import model.model as module_arch
from armature.batch import Parts, call_by_name, contents_of, to_device
from armature.checkpoint import files as checkpoint
from armature.checkpoint.weights import load_tested
from armature.data.identity import identity_of
from armature.data.order import batches_of
from armature.errors import ConfigError, exit_on_user_error
from armature.processes import dist
from armature.processes.launch import processes
from armature.run.console import results, shown_path
from armature.run.folder import write_test
from armature.run.plots import Pictures, save_pictures
from armature.seed import seed_everything
from parse_config import ConfigParser
from trainer.trainer import evaluate
from utils import MetricTracker, prepare_device

BUILDS = {  # the sections of a config that this script makes objects of
    'arch': module_arch,
    'data_loader': module_data,
    'test_data_loader': module_data,
    'loss': module_loss,
    'metrics': module_metric,
}


def main(config, n_batches=None):
    logger = config.get_logger('test')
    device, _ = prepare_device(config.get('n_gpu', 1))
    seed_everything(config.get('seed', 123))

    if 'test_data_loader' not in config:  # the training's loader, on its test data
        settings = config['data_loader']
        if settings['type'] in ('BaseDataLoader', 'StreamDataLoader'):
            raise ConfigError(
                'the config does not say what to test on: write a "test_data_loader", which is '
                'like "data_loader"'
            )
        config['test_data_loader'] = settings | {
            'args': settings.get('args', {})
            | {'shuffle': False, 'validation_split': 0.0, 'training': False}
        }
    data_loader = config.init_obj('test_data_loader', module_data)

    model = config.init_obj('arch', module_arch).to(device)
    criterion = config.init_loss(module_loss)
    saved = checkpoint.load(config.resume)
    file = shown_path(config.resume)
    logger.info(f'Testing {file} (of epoch {saved.get("epoch")}) on {device}')
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
    )
    pictures = Pictures(config['trainer'].get('pictures') or [], data_loader)

    call_by_name(model, config.get('batch'))
    batches = map(Parts(config.get('batch')), itertools.islice(batches_of(data_loader), n_batches))
    contents = contents_of(dist.in_step(batches, data_loader), metrics, pictures)
    batches = (to_device(content, device) for content in contents)
    values = evaluate(model, batches, criterion, metrics, pictures=pictures)
    by_class, (n_samples,) = metrics.by_class(values), dist.sums([metrics.n_samples])
    for line in results(values, by_class):
        logger.info(line)
    drawn = pictures.draw()
    if dist.is_main():
        written = write_test(
            config.resume,
            saved.get('epoch'),
            data=identity_of(data_loader),
            n_samples=int(n_samples),
            classes=metrics.class_names,
            values=values,
            per_class=by_class,
        )
        for file in [written, *save_pictures(drawn, config.resume.parent)]:
            logger.info(f'{shown_path(file)} is written')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description='Measure a checkpoint on the test data.')
    parser.add_argument(
        '-r',
        '--resume',
        metavar='CHECKPOINT',
        required=True,
        help='a run folder, of which the best checkpoint is taken, or a checkpoint',
    )
    parser.add_argument(
        '-c', '--config', metavar='FILE', help='another config than the one in the checkpoint'
    )
    parser.add_argument(
        '-d', '--device', metavar='DEVICE', help='GPUs such as 0 or 0,1; cpu, mps, xpu:0'
    )
    parser.set_defaults(best_first=True)
    with exit_on_user_error():
        config = ConfigParser.from_args(parser, builds=BUILDS)
        with processes(config):
            main(config)
