"""Which BIDS file belongs to which image: what the names say, without any file."""

from __future__ import annotations

from typing import Any

import pytest

from nnunetv2_ext.datasets.sources.bids_files import BidsFile
from nnunetv2_ext.datasets.sources.bids_matching import Match, WantedImage, WantedLabel, match_files
from nnunetv2_ext.datasets.sources.bids_query import parse_entities
from tests.datasets.sources.bids_datasets import named

ALIKE = {"space": frozenset({"orig", "T1w"}), "datatype": frozenset({"anat"})}


def images(*names: str) -> list[BidsFile]:
    return named(*(f"sub-01_{name}_T1w" if name else "sub-01_T1w" for name in names))


def channels_of(of_images: list[BidsFile], *names: str, given: tuple[str, ...] = ()) -> list[Match]:
    """What of `acq-space`, ... (of T2w) belongs to each image."""
    conditions = parse_entities(given)
    files = named(*(f"sub-01_{name}_T2w" if name else "sub-01_T2w" for name in names))
    wanted = WantedImage(conditions, ALIKE, "T2w", conditions)
    return match_files(of_images, [file for file in files if file.has(conditions)], wanted, WantedImage(alike=ALIKE))


def labels_of(of_images: list[BidsFile], *names: str, given: tuple[str, ...] = (), **place: Any) -> list[Match]:
    """What of the label maps belongs to each image."""
    conditions = parse_entities(given)
    files = named(*(f"sub-01_{name}_dseg" if name else "sub-01_dseg" for name in names), **place)
    files = [file for file in files if file.has(conditions)]
    return match_files(of_images, files, WantedLabel(conditions, ALIKE), WantedImage(alike=ALIKE))


def found(matches: list[Match]) -> list[str | None]:
    """What is between subject and suffix; None for an image to which nothing belongs."""
    stems = (match.file.stem if match.file is not None else None for match in matches)
    return [None if stem is None else stem.removeprefix("sub-01").removeprefix("_") for stem in stems]


# Another channel


@pytest.mark.parametrize(
    ("image", "others", "taken"),
    [
        ("", ["", "acq-space"], ""),
        ("acq-hi", ["", "acq-hi"], "acq-hi"),
        ("acq-hi_run-1", ["acq-hi", "acq-hi_run-1", "run-1"], "acq-hi_run-1"),
        ("run-1", ["run-01", "run-02"], "run-01"),
    ],
)
def test_the_very_same_entities_go_before_all(image: str, others: list[str], taken: str) -> None:
    (match,) = channels_of(images(image), *others)
    assert found([match]) == [taken]
    assert not match.differing


@pytest.mark.parametrize(
    ("image", "others", "taken", "differing"),
    [
        ("acq-mprage", ["acq-space"], "acq-space", ("acq",)),
        ("acq-mprage_rec-norm", ["acq-space_rec-norm", "acq-space"], "acq-space_rec-norm", ("acq",)),
        ("acq-mprage_run-1", ["acq-space", "acq-tse_run-2"], "acq-space", ("acq", "run")),
        ("acq-hi_rec-norm", ["acq-hi", "acq-lo_rec-norm"], "acq-hi", ("rec",)),
        ("", ["run-2"], "run-2", ("run",)),
        ("run-1", [""], "", ("run",)),
    ],
)
def test_of_others_the_one_that_fits_best_is_taken_and_how_it_differs_is_told(
    image: str, others: list[str], taken: str, differing: tuple[str, ...]
) -> None:
    (match,) = channels_of(images(image), *others)
    assert found([match]) == [taken]
    assert match.differing == differing


@pytest.mark.parametrize("key", ["run", "chunk", "split", "sample"])
def test_another_run_or_part_is_never_taken(key: str) -> None:
    (match,) = channels_of(images(f"{key}-1"), f"{key}-2")
    assert match.file is None
    assert match.absent
    assert match.problem == (
        f"there is no T2w image for it (sub-01_{key}-2_T2w.nii.gz differs in {key}, -suffix T2w:{key}=2 takes it "
        "nevertheless): add it, or choose the subjects and sessions that have one (-sub, -ses)"
    )


def test_another_run_is_taken_if_it_is_asked_for() -> None:
    (match,) = channels_of(images("run-1"), "run-1", "run-2", given=("run=2",))
    assert found([match]) == ["run-2"]
    assert not match.differing


def test_several_that_fit_alike_are_a_problem_that_says_how_to_choose() -> None:
    (match,) = channels_of(images("acq-mprage"), "acq-space", "acq-tse")
    assert match.file is None
    assert not match.absent
    assert match.problem == (
        "2 T2w images fit it, which differ in acq (sub-01_acq-space_T2w.nii.gz, sub-01_acq-tse_T2w.nii.gz): choose, "
        "as in -suffix T2w:acq=space"
    )
    assert found(channels_of(images("acq-mprage"), "acq-space", "acq-tse", given=("acq=tse",))) == ["acq-tse"]


def test_what_was_asked_for_stays_in_the_advice() -> None:
    (match,) = channels_of(images("acq-mprage"), "acq-space_rec-a", "acq-space_rec-b", given=("acq=space",))
    assert match.problem.endswith("choose, as in -suffix T2w:acq=space,rec=a")


def test_one_image_of_another_channel_is_not_given_to_two_runs() -> None:
    runs = channels_of(images("run-1", "run-2"), "")
    assert found(runs) == [None, None]
    assert not any(match.absent for match in runs)
    assert {match.problem for match in runs} == {
        "sub-01_T2w.nii.gz fits 2 T1w images, which differ in run (sub-01_run-1_T1w.nii.gz, sub-01_run-2_T1w.nii.gz): "
        "choose, as in -suffix T1w:run=1"
    }


def test_a_file_belongs_to_the_image_with_its_entities_even_if_it_fits_another() -> None:
    first, second = channels_of(images("", "acq-hi"), "")
    assert found([first, second]) == ["", None]
    assert "(sub-01_T2w.nii.gz is that of sub-01_T1w.nii.gz)" in second.problem


def test_a_run_that_was_asked_for_is_not_given_to_two_images() -> None:
    assert found(channels_of(images("run-1", "run-2"), "run-1", "run-2", given=("run=2",))) == [None, "run-2"]


def test_another_session_or_subject_is_never_taken() -> None:
    of_image = named("sub-01_ses-a_T1w")
    files = named("sub-01_ses-b_T2w", "sub-01_T2w", "sub-02_ses-a_T2w")
    (match,) = match_files(of_image, files, WantedImage(suffix="T2w"), WantedImage())
    assert match.problem.startswith("there is no T2w image for it: ")


def test_another_channel_may_lie_in_another_folder() -> None:
    alike = {"datatype": frozenset({"anat", "pet"})}
    wanted = WantedImage({}, alike, "pet")
    (match,) = match_files(images(""), named("sub-01_pet", folder="pet"), wanted, WantedImage(alike=alike))
    assert found([match]) == [""]
    assert not match.differing


# The label map


@pytest.mark.parametrize(
    ("image", "label"),
    [("run-1", ""), ("acq-hi", ""), ("acq-hi_run-1", "run-1"), ("run-1", "run-01_desc-manual"), ("", "label-x_seg-y")],
)
def test_a_label_map_may_say_less_of_its_image_and_more_of_itself(image: str, label: str) -> None:
    assert found(labels_of(images(image), label)) == [label]


@pytest.mark.parametrize("key", ["acq", "run", "ce", "rec", "echo", "part"])
def test_a_label_map_with_another_entity_of_an_image_was_drawn_on_another(key: str) -> None:
    for image in ("", f"{key}-1"):
        (match,) = labels_of(images(image), f"{key}-2")
        assert match.absent
        assert f"(sub-01_{key}-2_dseg.nii.gz differs in {key}, -label_entities {key}=2 takes it" in match.problem
        assert match.problem.endswith(
            ": -unlabelled skip leaves such images out, -unlabelled test makes them test cases"
        )
        assert found(labels_of(images(image), f"{key}-2", given=(f"{key}=2",))) == [f"{key}-2"]


def test_the_label_map_that_says_more_of_its_image_goes_before() -> None:
    assert found(labels_of(images("acq-hi_run-1"), "", "acq-hi")) == ["acq-hi"]


def test_label_maps_in_another_space_are_not_taken() -> None:
    spaces = ("space-MNI152NLin6Asym", "space-T2w")
    (match,) = labels_of(images(""), *spaces)
    assert match.absent
    assert "differs in space, -label_entities space=MNI152NLin6Asym takes it" in match.problem
    assert found(labels_of(images(""), *spaces, "")) == [""]
    assert found(labels_of(images(""), *spaces, "", given=("space=T2w",))) == ["space-T2w"]


@pytest.mark.parametrize("space", ["T1w", "orig"])
def test_the_space_of_the_image_is_no_other_space(space: str) -> None:
    assert found(labels_of(images(""), f"space-{space}", "space-MNI")) == [f"space-{space}"]


def test_an_image_in_another_space_has_its_label_map_there() -> None:
    assert found(labels_of(images("", "space-MNI"), "", "space-MNI")) == ["", "space-MNI"]
    assert found(labels_of(images("space-MNI"), "")) == [None]


def test_several_label_maps_are_a_problem_until_one_is_chosen() -> None:
    (match,) = labels_of(images(""), "", "desc-auto", "desc-expert")
    assert match.problem == (
        "3 label maps fit it, which differ in desc (sub-01_dseg.nii.gz, sub-01_desc-auto_dseg.nii.gz, "
        "sub-01_desc-expert_dseg.nii.gz): choose, as in -label_entities desc=none"
    )
    for value, taken in (("none", ""), ("expert", "desc-expert")):
        assert found(labels_of(images(""), "", "desc-auto", "desc-expert", given=(f"desc={value}",))) == [taken]


def test_a_label_map_is_not_given_to_two_runs() -> None:
    matches = labels_of(images("run-1", "run-2"), "desc-manual")
    assert found(matches) == [None, None]
    assert "sub-01_desc-manual_dseg.nii.gz fits 2 T1w images, which differ in run" in matches[0].problem


def test_a_label_map_of_another_kind_of_data_is_not_taken() -> None:
    (match,) = labels_of(images(""), "", folder="dwi")
    assert "(sub-01_dseg.nii.gz differs in datatype, -label_entities datatype=dwi takes it" in match.problem


def test_files_without_a_folder_for_their_kind_of_data_are_of_any() -> None:
    for image, label in (("anat", "manual"), ("sub-01", "anat")):
        of_images, labels = named("sub-01_T1w", folder=image), named("sub-01_dseg", folder=label)
        wanted = WantedLabel(alike={"datatype": frozenset({image})})
        assert found(match_files(of_images, labels, wanted, WantedImage())) == [""]


def test_a_label_map_that_lies_in_two_folders_is_chosen_by_folder() -> None:
    files = named("sub-01_dseg", folder="a") + named("sub-01_dseg", folder="b")
    (match,) = match_files(images(""), files, WantedLabel(alike=ALIKE), WantedImage())
    assert match.problem == (
        "2 label maps fit it, in /data/a, /data/b (sub-01_dseg.nii.gz, sub-01_dseg.nii.gz): "
        "name the folder (-derivatives)"
    )
