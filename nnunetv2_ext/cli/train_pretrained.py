"""nnUNetv2_train_pretrained: fine-tune on a planned dataset."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nnunetv2_ext.cli._command import Parser, run
from nnunetv2_ext.launching.parent_watch import watch
from nnunetv2_ext.launching.stopping import EXIT_STOPPED, leave_note, listen

if TYPE_CHECKING:
    from nnunetv2_ext.training.recipe_choice import RecipeOptions

DESCRIPTION = """\
Fine-tune a pre-trained network on a dataset that nnUNetv2_preprocess_like_nnssl or nnUNetv2_plan_like_dynamic has
planned. The arguments are those of nnUNetv2_train; dataset, configuration and fold go by name or by position. Predict
afterwards with nnUNetv2_predict."""
TRAINER = "PretrainedTrainer"


def parser() -> Parser:
    """The command's arguments."""
    p = Parser(
        prog="nnUNetv2_train_pretrained",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("dataset_pos", nargs="?", metavar="DATASET", help="dataset id or name (or -d)")
    p.add_argument("configuration_pos", nargs="?", metavar="CONFIGURATION", help="3d_fullres (or -c)")
    p.add_argument("fold_pos", nargs="?", metavar="FOLD", help="fold number or all (or -f)")
    p.add_argument("-d", dest="dataset", metavar="DATASET", help="dataset id or name")
    p.add_argument("-c", dest="configuration", metavar="CONFIGURATION", help="3d_fullres")
    p.add_argument("-f", dest="folds", nargs="+", metavar="FOLD", help="folds, trained one after another, or all")
    p.add_argument(
        "-p",
        dest="plans",
        metavar="PLANS",
        help="the plan, by either of its names (ptPlans__NAME____Spacing__... or ptPlans_NAME_Spacing_...)",
    )
    p.add_argument(
        "-tr",
        dest="trainer",
        default=TRAINER,
        metavar="TRAINER",
        help=f"names the results folder: {TRAINER} (default), DynamicPretrainedTrainer, or a trainer of the nnssl fork "
        "(PretrainedTrainer_150ep, ...), which means its recipe",
    )
    p.add_argument(
        "-r",
        dest="recipe",
        metavar="RECIPE",
        help="how to train: a recipe's name (--list_recipes) or a YAML file (default: the architecture's)",
    )
    p.add_argument(
        "-rn",
        dest="run_name",
        metavar="NAME",
        help="added to the plans name of the results (default: the recipe's name where it is not the default one)",
    )
    p.add_argument(
        "--set",
        dest="overrides",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="change the recipe: num_epochs=, num_iterations_per_epoch=, num_val_iterations_per_epoch=, "
        "warmup_epochs=, initial_lr=, weight_decay=, deep_supervision=, ...",
    )
    p.add_argument("--list_recipes", action="store_true", help="list the recipes and stop; needs nothing else")
    p.add_argument("--print_recipe", action="store_true", help="print the whole recipe as YAML and stop")
    p.add_argument(
        "--from_scratch",
        action="store_true",
        help="the same training without the weights, as plans name ..._from_scratch",
    )
    p.add_argument(
        "-overwrite_ckpt_path",
        dest="checkpoint",
        metavar="SOURCE",
        help="where the pre-trained checkpoint is now, if not where the plan says",
    )
    p.add_argument(
        "-num_gpus",
        type=int,
        default=1,
        metavar="N",
        help="processes to train one fold on, one for each GPU of this machine (default: 1; several nodes: torchrun)",
    )
    p.add_argument(
        "-parallel_folds",
        type=int,
        metavar="K",
        help="train K folds at a time, each with a log of its own (default: one after another)",
    )
    p.add_argument("-gpus", metavar="IDS", help="GPUs to use, as 0,1 (default: all); folds side by side are spread")
    p.add_argument(
        "-ddp_timeout",
        type=float,
        default=1800.0,
        metavar="SECONDS",
        help="how long the processes of one training wait for each other (default: 1800)",
    )
    p.add_argument("-device", default="cuda", choices=("cuda", "cpu", "mps"), help="default: cuda")
    p.add_argument("--npz", action="store_true", help="save the validation's probabilities (for ensembles)")
    p.add_argument("--c", dest="continue_training", action="store_true", help="continue from the last checkpoint")
    p.add_argument("--val", dest="only_validate", action="store_true", help="only validate a finished training")
    p.add_argument("--val_best", dest="validate_best", action="store_true", help="validate with checkpoint_best")
    p.add_argument("--disable_checkpointing", action="store_true", help="write no checkpoints")
    p.add_argument(
        "-logger",
        dest="loggers",
        nargs="+",
        default=[],
        metavar="LOGGER",
        help="tensorboard and/or wandb, beside nnU-Net's own log",
    )
    p.add_argument("--verbose", action="store_true", help="tracebacks of errors")
    return p  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the script."""
    p = parser()
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        run(
            p,
            lambda args: _run(p, args, arguments),
            argv,
            interrupted="the same command with --c continues from the last checkpoint",
        )
    except SystemExit as end:
        if end.code == EXIT_STOPPED:
            leave_note()
        raise


def _run(p: Parser, args: argparse.Namespace, arguments: Sequence[str]) -> None:
    if args.list_recipes:
        from nnunetv2_ext.recipes.listing import list_recipes

        print(list_recipes())
        return
    if args.print_recipe:
        from nnunetv2_ext.training.recipe_choice import recipe_as_text

        dataset = args.dataset_pos if args.dataset is None else args.dataset
        print(recipe_as_text(_recipe_options(args), dataset, args.plans), end="")
        return
    dataset = _one_of(p, "dataset (-d)", args.dataset_pos, args.dataset)
    configuration = _one_of(p, "configuration (-c)", args.configuration_pos, args.configuration)
    folds = _one_of(p, "fold (-f)", args.fold_pos and [args.fold_pos], args.folds)
    if args.plans is None:
        p.error("the following arguments are required: -p")
    if args.device == "cpu":
        # before torch is imported: threads that spin while they wait starve everything else on the same cores
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    listen()
    watch()
    from nnunetv2_ext.training.options import TrainingOptions, chosen_gpus
    from nnunetv2_ext.training.run import train

    options = TrainingOptions(
        device=args.device,
        num_gpus=args.num_gpus,
        continue_training=args.continue_training,
        only_validate=args.only_validate,
        validate_best=args.validate_best,
        save_probabilities=args.npz,
        disable_checkpointing=args.disable_checkpointing,
        recipe=_recipe_options(args),
        checkpoint=args.checkpoint,
        loggers=tuple(args.loggers),
        parallel_folds=args.parallel_folds,
        gpus=chosen_gpus(args.gpus, args.device),
        timeout=args.ddp_timeout,
    )
    if code := train(dataset, configuration, folds, args.plans, options, arguments):
        raise SystemExit(code)


def _recipe_options(args: argparse.Namespace) -> RecipeOptions:
    from nnunetv2_ext.training.recipe_choice import RecipeOptions

    return RecipeOptions(
        recipe=args.recipe,
        run_name=args.run_name,
        overrides=tuple(args.overrides),
        from_scratch=args.from_scratch,
        trainer=args.trainer,
    )


def _one_of(p: Parser, what: str, by_position: object, by_name: object) -> Any:
    """The one that is given; an error for none, or for two that differ."""
    if by_position is None and by_name is None:
        p.error(f"the {what} is missing")
    if by_position is not None and by_name is not None and by_position != by_name:
        p.error(f"the {what} is given twice")
    return by_name if by_position is None else by_position


if __name__ == "__main__":  # torchrun -m
    main()
