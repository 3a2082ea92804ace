import logging
import logging.config
from pathlib import Path
from utils import read_json


def setup_logging(save_dir, log_config='logger/logger_config.json', default_level=logging.INFO):
    if not Path(log_config).is_file():
        logging.basicConfig(level=default_level)
        return
    config = read_json(log_config)
    for handler in config['handlers'].values():
        if 'filename' in handler:
            handler['filename'] = str(save_dir / handler['filename'])
    logging.config.dictConfig(config)
