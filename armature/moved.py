"""Modules of the first version under the names that they had, for code that was written for it."""

import importlib
import sys
from importlib.machinery import ModuleSpec

MOVED = {
    'base.average': 'armature.step.average',
    'base.checkpoint': 'armature.checkpoint.files',
    'base.groups': 'armature.step.parameters',
    'base.samplers': 'armature.data.order',
    'base.schedule': 'armature.step.schedule',
    'base.stream': 'armature.data.stream',
    'base.transfer': 'armature.step.parameters',
    'base.weights': 'armature.checkpoint.weights',
    'data_loader.image_folder': 'armature.data.image_folder',
    'utils.batch': 'armature.batch',
    'utils.dist': 'armature.processes.dist',
    'utils.errors': 'armature.errors',
    'utils.seed': 'armature.seed',
}


class Moved:
    """Finds and loads a module under its former name, as an entry of sys.meta_path."""

    def find_spec(self, fullname, path, target=None):
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def create_module(self, spec):
        return importlib.import_module(MOVED[spec.name])

    def exec_module(self, module):
        """It has run under its own name."""


sys.meta_path.append(Moved())  # after Python's own: a project's file of that name comes first
