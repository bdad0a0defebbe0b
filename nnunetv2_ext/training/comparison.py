"""Finished trainings side by side: a table and learning curves of several recipes, plans and trainers."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING

from nnunetv2_ext.checkpoints.nnunet_models import PLANS_FILE
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.files import whole_or_absent
from nnunetv2_ext.nnunet_folders import dataset_name, nnunet_folder, read_json
from nnunetv2_ext.planning.names import inner_plans_name
from nnunetv2_ext.training.comparison_figure import LearningCurves, draw_comparison
from nnunetv2_ext.training.fold_results import SUMMARY_FILE, FoldResult, mean_of, read_fold

if TYPE_CHECKING:
    from rich.table import Table

TABLE_FILE, FIGURE_FILE = "comparison.csv", "comparison.png"
_NAMES_WIDTH, _OTHERS_WIDTH, _CLASS_WIDTH = 20, 55, 11
"""Of the printed table: characters that names, the other columns, and a class need."""
_FOLD = re.compile(r"fold_(\d+|all)")


@dataclass(frozen=True)
class ModelResult:
    """One model folder with its finished folds, in order."""

    trainer: str
    plans: str
    folds: Sequence[FoldResult]

    @property
    def recipe(self) -> str:
        """The recipe's name; several where the folds differ."""
        return ", ".join(dict.fromkeys(fold.recipe for fold in self.folds))

    @property
    def mean_dice(self) -> float:
        """The mean of the folds' mean Dice."""
        return mean_of([fold.mean_dice for fold in self.folds])

    def dice(self, label: str) -> float | None:
        """The mean over the folds of a class's Dice; None for a model that does not know it."""
        values = [fold.dice[label] for fold in self.folds if label in fold.dice]
        return mean_of(values) if values else None


@dataclass(frozen=True)
class Comparison:
    """Models side by side, and what could not be compared.

    Attributes:
        models: those with at least one finished fold that can be read.
        faults: a line for every finished fold that cannot be read.
        unfinished: folds without a validation, by model folder and fold.
        files: the table and the figure that were written.
    """

    models: Sequence[ModelResult]
    faults: Sequence[str]
    unfinished: Sequence[str]
    files: Sequence[Path] = ()

    @property
    def labels(self) -> list[str]:
        """The classes of all models, each once."""
        return list(dict.fromkeys(label for m in self.models for fold in m.folds for label in fold.dice))

    def remarks(self) -> list[str]:
        """What a reader of the table should know besides."""
        found = []
        if len({tuple(fold.fold for fold in model.folds) for model in self.models}) > 1:
            found.append("The models have different folds: their means are over different cases.")
        if self.unfinished:
            found.append(f"Left out, not finished (no {SUMMARY_FILE}): {', '.join(self.unfinished)}")
        return found

    def raise_faults(self) -> None:
        """Raise UserError if a finished fold could not be read."""
        if self.faults:
            raise UserError(f"these folds cannot be read and were left out: {'; '.join(self.faults)}")


def compare_finetuning(
    dataset: str,
    configuration: str,
    plans: Sequence[str] | None = None,
    trainers: Sequence[str] | None = None,
    output: Path | None = None,
) -> Comparison:
    """Collect the finished folds of a dataset's models and write `comparison.csv` and `comparison.png`.

    Args:
        dataset: id or full name.
        configuration: of nnU-Net, for example `3d_fullres`.
        plans: names of plans, long or inner; None for all.
        trainers: names of trainers; None for all.
        output: where to write; None for the dataset's results folder.

    Raises:
        UserError: there is no such dataset, plan, trainer or finished fold. Folds that cannot be read are left to
            `Comparison.raise_faults`.
    """
    folder = nnunet_folder("nnUNet_results") / dataset_name(dataset)
    if not folder.is_dir():
        raise UserError(f"there are no results in {folder}: train first, or check nnUNet_results")
    output = folder if output is None else output
    if output.exists() and not output.is_dir():
        raise UserError(f"{output} (-o) is a file: give a folder")
    found = [
        (trainer, name, path) for trainer, name, path in _model_folders(folder, configuration) if any(_folds(path))
    ]
    chosen = _chosen(found, configuration, folder, plans, trainers)
    models, faults, unfinished = [], [], []
    for trainer, name, path in chosen:
        results = []
        for fold in _folds(path):
            if not (fold / SUMMARY_FILE).is_file():
                unfinished.append(f"{path.name}/{fold.name}")
                continue
            try:
                results.append(read_fold(fold, trainer))
            except UserError as error:
                faults.append(f"{path.name}/{fold.name}: {error}")
        if results:
            models.append(ModelResult(trainer, name, results))
    comparison = Comparison(models, faults, unfinished)
    if not models:
        comparison.raise_faults()
        raise UserError(
            f"no fold is finished (has a {SUMMARY_FILE}) in {', '.join(p.name for _, _, p in chosen)}: "
            "nnUNetv2_train_pretrained with --c continues a training, with --val validates a finished one"
        )
    files = (output / TABLE_FILE, output / FIGURE_FILE)
    write_csv(comparison, files[0])
    draw_comparison(_learning_curves(models), files[1])
    return Comparison(models, faults, unfinished, files)


def _model_folders(folder: Path, configuration: str) -> Iterator[tuple[str, str, Path]]:
    """Trainer, plans and folder of every model; one that is there under two names (a link) is given once."""
    seen = set()
    for path in sorted(folder.glob(f"*__*__{escape(configuration)}"), key=lambda p: (p.is_symlink(), p.name)):
        if path.is_dir() and path.resolve() not in seen:
            seen.add(path.resolve())
            yield *_trainer_and_plans(path), path


def _trainer_and_plans(path: Path) -> tuple[str, str]:
    """From the folder's name; its plans say which of the `__` in it is between the two names."""
    both = path.name.rpartition("__")[0]
    try:
        name = str(read_json(path / PLANS_FILE).get("plans_name"))
    except UserError:  # plans are needed for nothing else here
        name = ""
    if name and both.endswith(f"__{name}"):
        return both.removesuffix(f"__{name}"), name
    trainer, _, name = both.partition("__")
    return trainer, name


def _folds(path: Path) -> list[Path]:
    """`fold_0`, `fold_1`, ..., `fold_all`; not the earlier runs that are kept beside them."""
    folds = [p for p in path.iterdir() if p.is_dir() and _FOLD.fullmatch(p.name)]
    return sorted(folds, key=lambda p: (p.name == "fold_all", len(p.name), p.name))


def _chosen(
    found: Sequence[tuple[str, str, Path]],
    configuration: str,
    folder: Path,
    plans: Sequence[str] | None,
    trainers: Sequence[str] | None,
) -> list[tuple[str, str, Path]]:
    """The models asked for, in the order of the plans given."""
    if not found:
        there = sorted({p.name.rpartition("__")[2] for p in folder.glob("*__*__*") if p.is_dir()})
        hint = f"; there are models of {', '.join(there)}" if there else ""
        raise UserError(f"no model of {configuration} (-c) in {folder}{hint}")
    chosen = list(found)
    if plans:
        names = [inner_plans_name(Path(p).name.removesuffix(".json")) for p in plans]
        for given, name in zip(plans, names, strict=True):
            if all(inner_plans_name(model[1]) != name for model in found):
                there = sorted({model[1] for model in found})
                raise UserError(f"no model of {given} (-p) in {folder}; there are {', '.join(there)}")
        chosen = [m for name in dict.fromkeys(names) for m in found if inner_plans_name(m[1]) == name]
    for trainer in trainers or ():
        if all(model[0] != trainer for model in chosen):
            there = sorted({model[0] for model in chosen})
            raise UserError(f"no model of {trainer} (-tr) among those in {folder}; there are {', '.join(there)}")
    return [model for model in chosen if not trainers or model[0] in trainers]


def _learning_curves(models: Sequence[ModelResult]) -> list[LearningCurves]:
    """The legend names what the models differ in."""
    names = [(model.trainer, model.plans, model.recipe) for model in models]
    differing = [i for i in range(3) if len({name[i] for name in names}) > 1] or [0, 1]
    curves = []
    for model, name in zip(models, names, strict=True):
        parts = dict.fromkeys(name[i] for i in differing)
        num_folds = f"{len(model.folds)} fold{'s' if len(model.folds) > 1 else ''}"
        label = f"{', '.join(parts)}: Dice {model.mean_dice:.4f} ({num_folds})"
        curves.append(
            LearningCurves(label, [fold.ema_dice for fold in model.folds], [fold.val_losses for fold in model.folds])
        )
    return curves


def write_csv(comparison: Comparison, path: Path) -> None:
    """A row for every model and fold. A class that a model does not know is empty, one that is in no case `nan`."""
    labels = comparison.labels
    head = ["trainer", "plans", "recipe", "fold", "mean_dice", *(f"dice_{label}" for label in labels)]
    with whole_or_absent(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*head, "epochs", "hours", "trainable_parameters"])
        for model in comparison.models:
            for fold in model.folds:
                dice = [fold.mean_dice, *(fold.dice.get(label) for label in labels)]
                names = [model.trainer, model.plans, fold.recipe, fold.fold]
                writer.writerow([*names, *dice, fold.epochs, fold.hours, fold.trainable_parameters])


def comparison_table(comparison: Comparison, width: int) -> Table:
    """A row for every model: the means over its folds.

    Args:
        comparison: what was compared.
        width: of the screen, characters; the classes are left to the file where there is no room for all of them.
    """
    from rich.table import Table
    from rich.text import Text  # labels may hold brackets, which rich would take for markup

    num_shown = (width - _NAMES_WIDTH - _OTHERS_WIDTH) // _CLASS_WIDTH
    labels = comparison.labels if len(comparison.labels) <= num_shown else []
    caption = None if labels else f"Dice of {len(comparison.labels)} classes: see {TABLE_FILE}"
    table = Table(caption=caption, caption_justify="left", show_lines=True)
    rows = [_cells(model, labels) for model in comparison.models]
    table.add_column("trainer, plans, recipe", overflow="fold", min_width=_NAMES_WIDTH)
    for index, title in enumerate(("folds", "Dice", *labels, "epochs", "hours", "trainable"), start=1):
        width = max(len(row[index]) for row in rows)
        table.add_column(Text(title), justify="right", overflow="fold", min_width=max(width, min(len(title), 6)))
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _cells(model: ModelResult, labels: Sequence[str]) -> list[str]:
    return [
        "\n".join(dict.fromkeys((model.trainer, model.plans, model.recipe))),
        " ".join(fold.fold for fold in model.folds),
        *(_dice(value) for value in (model.mean_dice, *map(model.dice, labels))),
        _range([fold.epochs for fold in model.folds]),
        _hours(mean_of([fold.hours for fold in model.folds])),
        _range([fold.trainable_parameters for fold in model.folds]),
    ]


def _dice(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _hours(hours: float) -> str:
    return f"{hours:.1f}" if hours >= 1 else f"{hours:.2g}"


def _range(values: Sequence[int]) -> str:
    return f"{min(values):,}" if min(values) == max(values) else f"{min(values):,} to {max(values):,}"
