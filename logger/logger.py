"""Sets up logging from logger_config.json: short lines on the console, all in info.log."""

import json
import logging
import logging.config
from pathlib import Path

from armature.config.build import ROOT

DEFAULT_CONFIG = ROOT / 'logger/logger_config.json'


def setup_logging(
    save_dir: str | Path, log_config: str | Path = DEFAULT_CONFIG, default_level: int = logging.INFO
) -> None:
    """Configure logging; files named in the configuration are put into `save_dir`.

    Without the configuration file, or where it cannot be used, plain console logging is set up:
    logging never stops a run.
    """
    logging.raiseExceptions = False  # nor does a line that cannot be written fill the screen
    try:
        config = json.loads(Path(log_config).read_text(encoding='utf-8'))
        for handler in config['handlers'].values():
            if 'filename' in handler:
                handler['filename'] = str(Path(save_dir) / handler['filename'])
        logging.config.dictConfig(config)
    except (OSError, ValueError, KeyError) as error:
        logging.basicConfig(level=default_level, format='%(message)s')
        logging.getLogger('logger').warning(
            f'{log_config} cannot be used ({error}): logging to the console only'
        )
