"""nnUNetv2_import_dataset: data as people keep them become a raw nnU-Net dataset."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nnunetv2_ext.cli._command import Parser, one_signal_is_enough, run

if TYPE_CHECKING:
    from nnunetv2_ext.datasets.collection import Collection

DESCRIPTION = """\
Make a raw nnU-Net dataset, nnUNet_raw/DatasetID_NAME, out of data as other tools keep them, and the split where the
source defines one. Files that nnU-Net reads are copied as they are (or linked), others are converted once, without
loss. The same command again goes on where it stopped, and takes over what has changed in the source.

  nnUNetv2_import_dataset zarr-csv DATA_ROOT -d 123 -name Cells      train.csv with crops of Zarr arrays, and masks
  nnUNetv2_import_dataset patterns DATASET.yaml -d 124 -name Hippo   folders and globs, as for HSF
  nnUNetv2_import_dataset csv TABLE.csv -d 125 -name Liver           a table of paths and parts
  nnUNetv2_import_dataset bids BIDS_ROOT -d 126 -name Brains         a BIDS dataset with label maps in derivatives"""
INTERRUPTED = "what is imported is kept: the same command goes on"


def parser() -> Parser:
    """The command's arguments: those of all kinds, and each kind's own."""
    p = Parser(
        prog="nnUNetv2_import_dataset",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = p.add_subparsers(dest="kind", metavar="KIND", required=True, parser_class=Parser)

    zarr_csv = _kind(kinds, "zarr-csv", "DATA_ROOT", "folder with train.csv (val.csv, test.csv) and the masks")
    zarr_csv.add_argument(
        "--no_ref", action="store_true", help="import the signal channel alone, or arrays without channels"
    )
    _add_classes(zarr_csv)
    _add_channels(zarr_csv, "reference signal")

    _kind(kinds, "patterns", "DATASET.yaml", "YAML file with main_path and datasets")

    csv = _kind(kinds, "csv", "TABLE", "CSV or TSV file with a header")
    csv.add_argument("-root", type=Path, help="folder that relative paths are meant from (default: the table's)")
    csv.add_argument(
        "-images", nargs="+", default=["image"], metavar="COLUMN",
        help="columns of images, one a channel (image); or paths with columns in braces, such as ct/{uuid}.nii.gz",
    )  # fmt: skip
    csv.add_argument("-label", default="label", metavar="COLUMN", help="column of label maps, or such a path (label)")
    csv.add_argument("-split", metavar="COLUMN", help="column of train, val or test (default: all are for training)")
    csv.add_argument("-case", metavar="COLUMN", help="column of case names (default: the first image's file name)")
    csv.add_argument("-subject", metavar="COLUMN", help="column of subjects, whose cases stay together in the split")
    _add_classes(csv)
    _add_channels(csv, "the image columns")

    bids = _kind(kinds, "bids", "BIDS_ROOT", "folder with dataset_description.json")
    bids.add_argument(
        "-suffix", nargs="+", default=["T1w"],
        help="suffixes of the images, one a channel (T1w); with entities where there are several: T2w:acq=space",
    )  # fmt: skip
    bids.add_argument("-label_suffix", choices=("dseg", "mask"), default="dseg", help="of the label maps (dseg)")
    bids.add_argument("-derivatives", metavar="PIPELINE", help="folder in derivatives/ that has the label maps")
    bids.add_argument("-sub", nargs="+", default=[], metavar="ID", help="subjects, as 01 or sub-01 (default: all)")
    bids.add_argument("-ses", nargs="+", default=[], metavar="ID", help="sessions, as pre or ses-pre (default: all)")
    bids.add_argument(
        "-entities", nargs="+", default=[], metavar="KEY=VALUE", help="of the images of all channels, as acq=highres"
    )
    bids.add_argument(
        "-label_entities", nargs="+", default=[], metavar="KEY=VALUE", help="of the label maps, such as desc=manual"
    )
    bids.add_argument(
        "-unlabelled", choices=("error", "skip", "test"), default="error",
        help="what is done with images without a label map: refuse, leave out, or make test cases (error)",
    )  # fmt: skip
    _add_classes(bids)
    _add_channels(bids, "the suffixes")
    return p


def _kind(kinds: argparse._SubParsersAction, name: str, source: str, meaning: str) -> argparse.ArgumentParser:
    p = kinds.add_parser(name, help=meaning)
    p.add_argument("source", metavar=source, type=Path, help=meaning)
    p.add_argument("-d", required=True, type=int, metavar="ID", help="id of the new dataset, 1 to 999")
    p.add_argument("-name", required=True, help="its name: letters, digits, underscores and dashes")
    p.add_argument(
        "-spacing", nargs=3, type=float, metavar=("Z", "Y", "X"),
        help="for images that do not say theirs: in mm, with Zarr in the unit of the OME metadata of the others",
    )  # fmt: skip
    how = p.add_mutually_exclusive_group()
    how.add_argument("--copy", action="store_true", help="copy files that nnU-Net reads as they are (default)")
    how.add_argument("--symlink", action="store_true", help="link to them instead")
    p.add_argument(
        "--resample_labels", action="store_true", help="put label maps on another grid onto the image's (nearest)"
    )
    p.add_argument("--dry_run", action="store_true", help="print all cases and what is wrong with each; write nothing")
    p.add_argument("-np", type=int, default=None, metavar="N", help="processes (default: the cores, at most 8)")
    p.add_argument("--verbose", action="store_true", help="show the traceback of an error")
    return p


def _add_classes(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "-labels", nargs="+", default=[], metavar="VALUE=NAME",
        help="names of the label maps' values, such as 1=liver 2=tumour 7=background (default: label_1, ...)",
    )  # fmt: skip


def _add_channels(p: argparse.ArgumentParser, default: str) -> None:
    p.add_argument("-channels", nargs="+", metavar="NAME", help=f"channel names (default: {default})")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the script."""
    with one_signal_is_enough():
        run(parser(), _run, argv, interrupted=INTERRUPTED)


def _run(args: argparse.Namespace) -> None:
    from nnunetv2_ext.datasets.workers import num_processes, start_early
    from nnunetv2_ext.errors import UserError

    if not 1 <= args.d <= 999:
        raise UserError(f"-d is {args.d}, and must be 1 to 999")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", args.name) or "__" in args.name:
        raise UserError(f"-name is {args.name!r}, and may hold letters, digits, - and single underscores")
    if args.spacing and not all(0 < s < math.inf for s in args.spacing):
        raise UserError(f"-spacing is {' '.join(f'{s:g}' for s in args.spacing)}, and must be above 0")
    processes = num_processes(args.np)
    start_early(args.kind, processes)
    from nnunetv2_ext.datasets.importing import ImportOptions, check_folders, import_dataset
    from nnunetv2_ext.datasets.writing import Transfer

    check_folders()
    options = ImportOptions(
        dataset_id=args.d,
        name=args.name,
        transfer=Transfer.SYMLINK if args.symlink else Transfer.COPY,
        resample_labels=args.resample_labels,
        num_processes=processes,
        dry_run=args.dry_run,
        spacing=args.spacing and tuple(args.spacing),
    )
    import_dataset(args.kind, str(args.source.absolute()), _collection(args), options)


def _collection(args: argparse.Namespace) -> Collection:
    spacing = args.spacing and tuple(args.spacing)
    if args.kind == "patterns":
        from nnunetv2_ext.datasets.sources.patterns import read_patterns

        return read_patterns(args.source, spacing)
    from nnunetv2_ext.datasets.labelling import parse_classes

    if args.kind == "zarr-csv":
        from nnunetv2_ext.datasets.sources.zarr_csv import read_zarr_csv

        return read_zarr_csv(
            args.source,
            reference=not args.no_ref,
            classes=parse_classes(args.labels),
            channel_names=args.channels,
            spacing=spacing,
        )
    if args.kind == "csv":
        from nnunetv2_ext.datasets.sources.csv_table import Columns, read_csv_table

        return read_csv_table(
            args.source,
            Columns(tuple(args.images), args.label, args.split, args.case, args.subject),
            root=args.root,
            classes=parse_classes(args.labels),
            channel_names=args.channels,
            spacing=spacing,
        )
    from nnunetv2_ext.datasets.sources.bids import read_bids
    from nnunetv2_ext.datasets.sources.bids_query import BidsQuery, Unlabelled, parse_channel, parse_entities

    query = BidsQuery(
        tuple(parse_channel(text) for text in args.suffix),
        args.label_suffix,
        args.derivatives,
        tuple(args.sub),
        tuple(args.ses),
        parse_entities(args.entities),
        parse_entities(args.label_entities),
        Unlabelled(args.unlabelled),
    )
    return read_bids(args.source, query, parse_classes(args.labels), args.channels)
