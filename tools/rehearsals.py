"""The rehearsals of train.py: --check-resume, --smoke, --overfit N, --profile N."""

import argparse
from collections.abc import Callable

from armature.errors import positive
from parse_config import ConfigParser
from tools.check_resume import check_resume
from tools.overfit import overfit
from tools.profile_steps import profile
from tools.smoke import smoke


def add_rehearsals(parser: argparse.ArgumentParser) -> None:
    group = parser.add_mutually_exclusive_group()
    for flag, meaning in (
        ('--check-resume', 'try whether this experiment resumes exactly, and leave'),
        ('--smoke', 'rehearse: two batches through everything that the run will do'),
    ):
        group.add_argument(flag, action='store_true', help=meaning)
    for flag, meaning in (
        ('--overfit', 'rehearse: can the model learn N batches by heart?'),
        ('--profile', 'show where the time of N steps goes'),
    ):
        group.add_argument(flag, type=positive, metavar='N', help=meaning)


def rehearse(build: Callable, config: ConfigParser) -> bool:
    """Do what a flag of `add_rehearsals` asks for; False when none was given.

    build(config) makes the trainer.
    """
    given = config.arguments
    if given.check_resume:
        check_resume(config.config)
    elif given.smoke:
        smoke(build, config.config)
    elif given.overfit:
        overfit(build, config.config, given.overfit)
    elif given.profile:
        profile(build, config.config, given.profile)
    else:
        return False
    return True
