import importlib
from datetime import datetime


class WriterTensorboardX():
    def __init__(self, log_dir, logger, enable):
        self.writer = None
        if enable:
            module = importlib.import_module('tensorboardX')
            self.writer = module.SummaryWriter(str(log_dir))
        self.step, self.mode = 0, ''
        self.tb_writer_ftns = {'add_scalar', 'add_scalars', 'add_image', 'add_text', 'add_histogram'}
        self.tag_mode_exceptions = {'add_histogram'}
        self.timer = datetime.now()

    def set_step(self, step, mode='train'):
        self.mode, self.step = mode, step
        duration = datetime.now() - self.timer
        self.add_scalar('steps_per_sec', 1 / max(duration.total_seconds(), 1e-9))
        self.timer = datetime.now()

    def __getattr__(self, name):
        if name not in self.tb_writer_ftns:
            raise AttributeError(name)
        add_data = getattr(self.writer, name, None)

        def wrapper(tag, data, *args, **kwargs):
            if add_data is not None:
                if name not in self.tag_mode_exceptions:
                    tag = '{}/{}'.format(tag, self.mode)
                add_data(tag, data, self.step, *args, **kwargs)
        return wrapper
