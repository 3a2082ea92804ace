import armature.moved  # noqa: F401 (names of the first version)
from armature.run.metric_tracker import MetricTracker
from utils.util import ensure_dir, inf_loop, prepare_device, read_json, write_json

__all__ = ['MetricTracker', 'ensure_dir', 'inf_loop', 'prepare_device', 'read_json', 'write_json']
