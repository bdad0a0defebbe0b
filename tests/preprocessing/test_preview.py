"""The preview shows each case through the same point before and after, as large as it is in millimetres."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest
import SimpleITK as sitk
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from nnunetv2_ext.cli import preprocess_like_nnssl
from nnunetv2_ext.preprocessing.preview import write_preview
from tests.conftest import DATASET, TINY_RESENC
from tests.preprocessing.conftest import CASES, Dataset

SPACING = (2.0, 0.8, 1.25)
MARGIN = (slice(3, 40), slice(10, 47), slice(0, 30))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved."""
    figures: list[Figure] = []
    save = Figure.savefig

    def noted(self: Figure, *arguments: Any, **options: Any) -> None:
        figures.append(self)
        save(self, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", noted)
    return figures


def rows(figure: Figure) -> list[list[Axes]]:
    """Six panels per case: three before, three after."""
    return [figure.axes[i : i + 6] for i in range(0, len(figure.axes), 6)]


def preview(place: Dataset) -> Path:
    place.run()
    return write_preview(DATASET, place.plan)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_slices_go_through_the_middle_of_what_is_not_cropped_in_the_proportions_of_the_spacing(
    order: tuple[int, int, int], dataset: Dataset, drawn: list[Figure]
) -> None:
    for path in (dataset.image(CASES[0]), dataset.label(CASES[0])):
        voxels = np.zeros((48, 48, 48), dtype=np.int16)
        voxels[MARGIN] = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))[MARGIN]
        if path.parent.name == "imagesTr":
            voxels[MARGIN] += 1000  # no zeros within
        image = sitk.GetImageFromArray(voxels)
        image.SetSpacing(SPACING[::-1])
        sitk.WriteImage(image, str(path))
    plan = {**dataset.plan, "transpose_forward": list(order), "transpose_backward": np.argsort(order).tolist()}
    place = Dataset(dataset.root, plan)
    preview(place)

    images, labels = (
        sitk.GetArrayFromImage(sitk.ReadImage(str(path))).transpose(order)
        for path in (place.image(CASES[0]), place.label(CASES[0]))
    )
    nonzero = np.nonzero(images)
    middle = [(i.min() + i.max() + 1) // 2 for i in nonzero]
    spacing = [SPACING[axis] for axis in order]
    made, made_labels = (blosc2.open(str(place.folder / f"{CASES[0]}{e}.b2nd"), mode="r")[0] for e in ("", "_seg"))
    panels = rows(drawn[0])[0]
    for axis in range(3):
        height, width = (s for a, s in enumerate(spacing) if a != axis)
        before, after = panels[axis], panels[3 + axis]
        assert np.array_equal(before.images[0].get_array(), images.take(middle[axis], axis))
        assert np.array_equal(after.images[0].get_array(), made.take(made.shape[axis] // 2, axis))
        assert before.get_aspect() == pytest.approx(height / width)
        assert after.get_aspect() == pytest.approx(1), "the plan's spacing is 1 mm in all directions"
        for panel, whole, index in ((before, labels, middle[axis]), (after, made_labels, made.shape[axis] // 2)):
            shown = panel.images[1].get_array()
            assert np.array_equal(~np.ma.getmaskarray(shown), whole.take(index, axis) > 0)
    said = [panel.get_xlabel() for panel in panels]
    assert f"48 x 48 x 48 voxels of {' x '.join(f'{s:g}' for s in spacing)} mm" in said
    assert f"{' x '.join(map(str, made.shape))} voxels of 1 x 1 x 1 mm" in said


def test_a_row_for_each_case_named_and_a_picture_of_their_size(dataset: Dataset, drawn: list[Figure]) -> None:
    path = preview(dataset)
    assert path == dataset.preprocessed / "preview.png"
    assert [row[0].get_title(loc="left") for row in rows(drawn[0])] == [f"{case}, before" for case in CASES]
    assert [row[3].get_title(loc="left") for row in rows(drawn[0])] == [f"{case}, after" for case in CASES]
    with Image.open(path) as picture:
        picture.load()
        assert picture.format == "PNG"
        assert picture.size == tuple((drawn[0].get_size_inches() * drawn[0].dpi).round())
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 100, "grey and colours"


def test_of_many_cases_four_are_drawn_the_first_and_the_last_among_them(dataset: Dataset, drawn: list[Figure]) -> None:
    for number in range(3, 9):
        shutil.copy(dataset.image(CASES[0]), dataset.image(f"MNI_00{number}"))
        shutil.copy(dataset.label(CASES[0]), dataset.label(f"MNI_00{number}"))
    preview(dataset)
    names = [row[0].get_title(loc="left").partition(",")[0] for row in rows(drawn[0])]
    assert len(set(names)) == 4
    assert (names[0], names[-1]) == ("MNI_000", "MNI_008")


def test_a_preview_of_no_cases_is_a_picture_all_the_same(dataset: Dataset, drawn: list[Figure]) -> None:
    dataset.folder.mkdir(parents=True)
    with Image.open(write_preview(DATASET, dataset.plan)) as picture:
        picture.load()
    assert drawn[0].axes == []


def test_the_command_names_the_picture_and_leaves_out_what_cannot_be_read(
    planned: Dataset, drawn: list[Figure], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["-d", "999", "-n", "MAE", "-pc", str(TINY_RESENC), "-am", "like_pretrained", "-np", "1", "--no_pbar"]
    preprocess_like_nnssl.main([*command, "--preview"])
    assert f"Preview: {planned.preprocessed / 'preview.png'}" in capsys.readouterr().out
    planned.image(CASES[1]).write_bytes(b"<html>log in</html>")
    with pytest.raises(SystemExit):
        preprocess_like_nnssl.main([*command, "--preview"])
    names = [[row[0].get_title(loc="left").partition(",")[0] for row in rows(figure)] for figure in drawn]
    assert names == [list(CASES), [CASES[0], CASES[2]]]
    assert not [p for p in planned.preprocessed.iterdir() if p.suffix == ".tmp"]
