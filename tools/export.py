"""Export the model of a run: python -m tools.export -r saved/models/NAME/RUN --format onnx

onnx (runs without torch), pt2 (torch.export) or safetensors (the weights, with all that load_run
needs), into a folder of its own, and proven there: validation samples in batches of 1, 2 and n go
through the model and through what was exported, and the metrics are measured with both. The largest
difference, and the rest, is in export.json; where it is above the tolerance, there is no file and
the exit code is 1.
"""

import argparse
import contextlib
import json
import logging
import math
import pickle
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import model.metric as module_metric
from armature.batch import CannotCut, PairOf, cut, leaves, map_leaves, to_device
from armature.checkpoint import files as checkpoint
from armature.checkpoint import packed
from armature.config.build import ROOT
from armature.data.order import first_pass
from armature.errors import ConfigError, DataError, UserError, exit_on_user_error
from armature.run.metric_tracker import MetricTracker
from parse_config import ConfigParser
from tools import packing
from tools.exported_model import KEY, ExportedModel
from tools.new_folder import new_folder, refuse_existing
from tools.use_inputs import describe
from tools.use_outputs import by_task
from tools.use_run import Run, load_run
from train import BUILDS, build_data
from trainer.trainer import evaluate

FORMATS = {'onnx': 'model.onnx', 'pt2': 'model.pt2', 'safetensors': packed.FILE}
N_SAMPLES = 1000  # that the metrics are measured on
TOLERANCE = 1e-4  # of an output; of its size, where that is above 1
CPU = torch.device('cpu')


class ExportError(UserError):
    """What was exported is not what was trained, or cannot be exported."""

    exit_code = 1


class Flat(nn.Module):
    """A model that takes the tensors of a batch one by one and gives a tuple of tensors.

    data: a batch of it, for its structure.
    """

    def __init__(self, model: nn.Module, data: Any):
        super().__init__()
        self.model, self.data = model, data

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        rest = iter(tensors)
        output = self.model(map_leaves(lambda _: next(rest), self.data))
        return tuple(tensors_in(output))


class Exported(nn.Module):
    """What was exported, in the place of the model. call: list of arrays -> list of arrays.

    output: of the model, for its structure.
    """

    def __init__(self, call: Callable[[list], list], output: Any):
        super().__init__()
        self.call, self.output = call, output

    def forward(self, data: Any) -> Any:
        given = [each.numpy() for each in tensors_in(data)]
        try:
            found = iter(self.call(given))
        except Exception as error:
            shapes = ', '.join(str(each.shape) for each in given)
            raise ExportError(
                f'what was exported cannot take {shapes}, which the model can '
                f'({type(error).__name__}): torch {torch.__version__} has fixed a size that '
                'changes from batch to batch. A newer torch may not'
            ) from error
        return map_leaves(lambda _: torch.from_numpy(next(found)), self.output)


def tensors_in(content: Any) -> list[torch.Tensor]:
    found = leaves(content)
    if not all(isinstance(each, torch.Tensor) for each in found):
        raise ExportError('a model is exported that takes and gives tensors, and this one does not')
    return found


def export(config: ConfigParser, kind: str, folder: Path, tolerance: float = TOLERANCE) -> str:
    """Export and prove; what to say of it. Without a UserError, `folder` is there, else not."""
    refuse_existing(folder)
    run = Run(config, CPU)
    batches = validation_batches(config)
    data = batches[0][0]
    if len(tensors_in(data)[0]) == 1:  # torch.export would take a batch of 1 for the only size
        data = map_leaves(lambda tensor: torch.cat([tensor, tensor]), data)
    with torch.no_grad():
        output = run.model(data)
    about = described(run, data, output)
    with new_folder(folder) as unfinished:
        file = unfinished / FORMATS[kind]
        WRITERS[kind](run, data, about, file)
        with CALLS[kind](file, data) as call:
            report = prove(run, Exported(call, output), data, batches, tolerance)
        report = {**about, 'format': kind, 'file': file.name, **report}
        (unfinished / 'export.json').write_text(json.dumps(report, indent=2), encoding='utf-8')
    takes_tensors = '; it takes tensors: no input_format that is plain data says what else'
    if about['input_format'] is not None:
        takes_tensors = ''
    metrics = ', '.join(f'{name} {value:.6g}' for name, value in report['metrics'].items())
    return (
        f'{folder / file.name}: at most {report["largest_difference"]:.2g} from the model; on '
        f'{report["n_samples"]:,} samples {metrics}, as the model has' + takes_tensors
    )


def validation_batches(config: ConfigParser) -> list[tuple[Any, Any]]:
    """(data, target) of the first validation samples; of training data, where there are none."""
    training, validation = build_data(config)
    loader = validation or training
    batches, n_samples = [], 0
    for batch in map(PairOf(config.get('batch')), first_pass(loader)):
        batches.append(batch.content)
        n_samples += batch.n_samples
        if n_samples >= N_SAMPLES:
            break
    return [to_device(each, CPU) for each in batches]


def described(run: Run, data: Any, output: Any) -> dict[str, Any]:
    """What whoever uses the file has to know, as plain data."""
    try:
        input_format = run.input_format
    except ConfigError:  # it takes tensors, then
        input_format = None
    n_inputs = len(tensors_in(data))
    names = getattr(input_format, 'names', ())
    if len(names) != n_inputs:
        names = ['input'] if n_inputs == 1 else [f'input_{place}' for place in range(n_inputs)]
    return {
        'version': 1,
        'name': run.config['name'],
        'checkpoint': str(run.config.resume),
        'made': datetime.now(UTC).isoformat(timespec='seconds'),
        'torch': torch.__version__,
        'inputs': list(names),
        'outputs': list(by_task(output)),
        'meanings': run.meanings(output),
        'classes': run.class_names,
        'input_format': None if input_format is None else describe(input_format),
        'dynamic': getattr(input_format, 'dynamic', {}),
    }


# Writing


def dynamic_shapes(data: Any, about: dict) -> tuple[tuple[dict, ...]]:
    """For torch.export: the first dimension of each tensor is the batch."""
    sizes = {'batch': torch.export.Dim('batch')}
    for more in about['dynamic'].values():
        sizes |= {name: torch.export.Dim(name) for name in more.values()}
    of_each = []
    for name, tensor in zip(about['inputs'], tensors_in(data)):
        more = about['dynamic'].get(name, {})
        dims = {0: 'batch', **{int(dim): size for dim, size in more.items()}}
        of_each.append({dim: sizes[size] for dim, size in dims.items() if dim < tensor.dim()})
    return (tuple(of_each),)


def write_pt2(run: Run, data: Any, about: dict, file: Path) -> None:
    with naming_the_layer(run.model, 'pt2'):
        program = torch.export.export(
            Flat(run.model, data),
            tuple(tensors_in(data)),
            dynamic_shapes=dynamic_shapes(data, about),
        )
    torch.export.save(program, file, extra_files={'armature.json': json.dumps(about)})


def write_onnx(run: Run, data: Any, about: dict, file: Path) -> None:
    needs('onnxscript')
    with naming_the_layer(run.model, 'onnx'):
        program = torch.onnx.export(
            Flat(run.model, data),
            tuple(tensors_in(data)),
            dynamic_shapes=dynamic_shapes(data, about),
            input_names=about['inputs'],
            output_names=[
                f'{name}_output' if name in about['inputs'] else name or 'output'
                for name in about['outputs']
            ],
            dynamo=True,
            verbose=False,
        )
    program.model.metadata_props[KEY] = json.dumps(about)
    program.save(file, external_data=False)  # one file


def write_safetensors(run: Run, data: Any, about: dict, file: Path) -> None:
    needs('safetensors')
    packing.write(checkpoint.load(run.config.resume), file)


WRITERS = {'onnx': write_onnx, 'pt2': write_pt2, 'safetensors': write_safetensors}


def needs(package: str) -> None:
    try:
        __import__(package)
    except ImportError as error:
        raise ConfigError(
            f'{error.name} is not installed: pip install -r requirements-export.txt'
        ) from error


@contextlib.contextmanager
def naming_the_layer(model: nn.Module, kind: str) -> Iterator[None]:
    """Inside, a failure is an ExportError that names the layer in which it happened."""
    inside, failed_in = [], []

    def enter(name: str) -> Callable:
        def hook(module: nn.Module, inputs: Any) -> None:
            if not name:  # from the top, perhaps once more after a failure
                failed_in.extend(inside[-1:])
                inside.clear()
            inside.append(f'{name or "the model"} ({type(module).__name__})')

        return hook

    def leave(*_: Any) -> None:
        inside.pop()

    handles = []
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        handles.append(module.register_forward_pre_hook(enter(name)))
        handles.append(module.register_forward_hook(leave))
    try:
        with warnings.catch_warnings(), quiet():
            warnings.simplefilter('ignore')  # of torch's own code, at every export
            yield
    except UserError:
        raise
    except Exception as error:
        failed_in.extend(inside[-1:])
        layer = failed_in[0] if failed_in else f'{type(model).__name__} as a whole'
        cause = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = next((line for line in str(cause).splitlines() if line.strip(' -')), '')
        raise ExportError(
            f'{layer} cannot be exported as {kind}: {reason.strip(" -")[:400]} '
            f'({type(cause).__name__})'
        ) from error
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside, the exporter's own log lines are not shown."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


# Proving it


@contextlib.contextmanager
def call_onnx(file: Path, data: Any) -> Iterator[Callable]:
    yield ExportedModel(file).run


@contextlib.contextmanager
def call_pt2(file: Path, data: Any) -> Iterator[Callable]:
    """In a fresh process, elsewhere, that knows nothing of the project."""
    command = [sys.executable, '-I', str(ROOT / 'tools/run_pt2.py'), str(file.resolve())]
    pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE}
    with (
        tempfile.TemporaryDirectory() as elsewhere,
        subprocess.Popen(command, cwd=elsewhere, **pipes) as process,
    ):

        def call(arrays: list[np.ndarray]) -> list[np.ndarray]:
            try:
                pickle.dump(arrays, process.stdin)
                process.stdin.flush()
                return pickle.load(process.stdout)
            except (EOFError, BrokenPipeError) as error:
                raise ExportError(f'{file.name} does not run in a fresh process') from error

        yield call


@contextlib.contextmanager
def call_safetensors(file: Path, data: Any) -> Iterator[Callable]:
    model = Flat(load_run(file).model, data)

    def call(arrays: list[np.ndarray]) -> list[np.ndarray]:
        with torch.no_grad():
            return [output.numpy() for output in model(*map(torch.from_numpy, arrays))]

    yield call


CALLS = {'onnx': call_onnx, 'pt2': call_pt2, 'safetensors': call_safetensors}


def prove(
    run: Run, exported: nn.Module, data: Any, batches: list[tuple[Any, Any]], tolerance: float
) -> dict[str, Any]:
    """How the exported model compares; an ExportError where it is another one."""
    n = len(tensors_in(data)[0])
    sizes, largest, n_compared = sorted({1, min(2, n), n}), 0.0, 0
    for size in sizes:
        try:
            some = cut(data, n, slice(size))
        except CannotCut as error:
            raise ExportError(f'a batch holds {error}, which is not one row a sample') from error
        with torch.no_grad():
            outputs = [model(some) for model in (run.model, exported)]
        for name, one, other in zip(by_task(outputs[0]), *map(tensors_in, outputs)):
            if one.shape != other.shape:
                raise ExportError(
                    f'output {name}, of {size} samples: {tuple(other.shape)} instead of '
                    f'{tuple(one.shape)}'
                )
            one, other = one.double(), other.double()
            is_equal = (one == other) | one.isnan() & other.isnan()  # infinite ones, too
            apart = (one - other).abs() / one.abs().clamp(min=1)
            apart = apart.masked_fill(is_equal, 0).nan_to_num(math.inf)
            largest = max(largest, apart.max().item())
        if largest > tolerance:
            raise ExportError(
                f'in a batch of {size} the exported model is {largest:.2g} from the original, and '
                f'{tolerance:g} is allowed (--tolerance)'
            )
        rows = [predictions(run, output, size) for output in outputs]
        n_compared += len(rows[0])
        n_others = sum(one != other for one, other in zip(*rows))
        if n_others:
            raise ExportError(f'{n_others} of {size} samples are predicted otherwise')
    metrics = [measured(run, model, batches) for model in (run.model, exported)]
    for name, value in metrics[0].items():
        again = metrics[1][name]
        if not abs(value - again) <= tolerance * max(1, abs(value)) and value == value:
            raise ExportError(f'{name} is {again:.6g} instead of {value:.6g}')
    return {
        'tolerance': tolerance,
        'largest_difference': largest,
        'batch_sizes': sizes,
        'n_equal_predictions': n_compared,
        'n_samples': sum(len(tensors_in(data)[0]) for data, _ in batches),
        'metrics': metrics[0],
        'metrics_exported': metrics[1],
    }


def predictions(run: Run, output: Any, n_samples: int) -> list[dict]:
    """What is said of each sample, less the numbers, which differ a little; () of other outputs."""
    try:
        rows = run.answers(output, n_samples)
    except DataError:  # an image, a sequence: their numbers were compared
        return []
    return [{name: each for name, each in row.items() if type(each) is str} for row in rows]


def measured(run: Run, model: nn.Module, batches: list[tuple[Any, Any]]) -> dict[str, float]:
    tracker = MetricTracker(
        'loss', metrics=run.config.init_metrics(module_metric), loss=run.criterion
    )
    return evaluate(model, batches, run.criterion, tracker)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '-r', '--resume', metavar='CHECKPOINT', required=True, help='a checkpoint, or a run folder'
    )
    parser.add_argument('--format', choices=list(FORMATS), default='onnx')
    parser.add_argument(
        '-o', '--output', metavar='FOLDER', help='a new one; export-FORMAT in the run'
    )
    parser.add_argument('--tolerance', type=float, default=TOLERANCE, metavar='X')
    parser.set_defaults(best_first=True)
    with exit_on_user_error():
        config = ConfigParser.from_args(parser, builds=BUILDS)
        given = config.arguments
        if not 0 <= given.tolerance < math.inf:
            raise ConfigError(f'--tolerance is {given.tolerance}: expected a number from 0 on')
        folder = config.resume.parent / f'export-{given.format}'
        if given.output is not None:
            folder = Path(config.started_in, Path(given.output).expanduser())
        print(export(config, given.format, folder, given.tolerance))


if __name__ == '__main__':
    main()
