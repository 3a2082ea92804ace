"""Defaults stand in one place: the key table, filled in once."""

from armature.config.keys import DISTRIBUTED, TRAINER, settings_of
from parse_config import ConfigParser


def test_settings_hold_what_the_config_says_and_the_tables_defaults():
    section = {'epochs': 3, 'early_stop': None, 'tensorboardX': True, 'my_own': [1]}
    config = ConfigParser({'name': 'x', 'trainer': section})
    settings = config.settings
    assert (settings.epochs, settings.my_own, settings.tensorboard) == (3, [1], True)
    assert (settings.early_stop, settings.save_period, settings.on_nan) == (None, 1, 'stop')
    assert all(hasattr(settings, name) for name, key in TRAINER.items() if key.default is not ...)
    assert config['trainer'] is section and len(section) == 4  # the config stays as it was read


def test_a_section_that_is_missing_or_null_has_all_defaults():
    for config in ({}, {'distributed': None}):
        assert settings_of(config.get('distributed'), DISTRIBUTED).timeout_s == 600


def test_get_gives_the_tables_default_unless_another_is_asked_for():
    config = ConfigParser({'name': 'x', 'trainer': {}})
    assert config.get('seed') == 123 and config.get('seed', None) is None
    config.get('metrics').append('mine')
    assert config.get('metrics') == [] and config.get('my_own') is None
    assert {config: 1}[config] == 1
