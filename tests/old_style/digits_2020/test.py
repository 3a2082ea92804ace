import argparse

import torch

import data_loader.data_loaders as module_data
import model.loss as module_loss
import model.metric as module_metric
import model.model as module_arch
from parse_config import ConfigParser


def main(config):
    logger = config.get_logger('test')
    loader = getattr(module_data, config['data_loader']['type'])(
        config['data_loader']['args']['n_images'], batch_size=50, shuffle=False, validation_split=0.0, training=False, num_workers=0)
    net = config.init_obj('arch', module_arch)
    loss_fn = getattr(module_loss, config['loss'])
    metric_fns = [getattr(module_metric, name) for name in config['metrics']]

    logger.info('Reading {} ...'.format(config.resume))
    state = torch.load(config.resume)['state_dict']
    if config['n_gpu'] > 1:
        net = torch.nn.DataParallel(net)
    net.load_state_dict(state)
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    net = net.to(device)
    net.eval()

    total_loss, totals = 0.0, torch.zeros(len(metric_fns))
    with torch.no_grad():
        for data, target in loader:
            data, target = data.to(device), target.to(device)
            output = net(data)
            total_loss += loss_fn(output, target).item() * len(data)
            for i, fn in enumerate(metric_fns):
                totals[i] += fn(output, target) * len(data)
    n = len(loader.sampler)
    log = {'loss': total_loss / n}
    log.update({fn.__name__: totals[i].item() / n for i, fn in enumerate(metric_fns)})
    logger.info(log)


if __name__ == '__main__':
    args = argparse.ArgumentParser(description='small digits')
    args.add_argument('-c', '--config', default=None, type=str)
    args.add_argument('-r', '--resume', default=None, type=str)
    args.add_argument('-d', '--device', default=None, type=str)
    main(ConfigParser.from_args(args))
