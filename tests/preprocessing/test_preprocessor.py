"""Whole cases, from raw files to what training reads, against the installed `DefaultPreprocessor`."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

from nnunetv2_ext.datasets.mni import make_mni_dataset
from nnunetv2_ext.preprocessing.preprocessor import ExactPreprocessor, preprocessor_for
from tests.preprocessing.raw_case import RawFiles, Setting, write_case

NO_RESAMPLING = {"resampling": "no_resampling_hack", "data_arguments": {}, "seg_arguments": {}}
TORCH = {
    "resampling": "resample_torch_fornnunet",
    "data_arguments": {"is_seg": False, "force_separate_z": False},
    "seg_arguments": {"is_seg": True, "force_separate_z": False},
}
MANY = {"background": 0, **{f"parcel_{i}": i for i in range(1, 701)}}
REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}
SETTINGS = {
    "one channel": Setting(),
    "two channels, normalised within the mask": Setting(channels=2, mask=True),
    "two channels, normalised everywhere": Setting(channels=2),
    "CT": Setting(normalization="CTNormalization", new_spacing=(1.4, 0.9, 1.1)),
    "transposed": Setting(transposition=(2, 0, 1), new_spacing=(1.0, 0.8, 1.3), channels=2, mask=True),
    "downsampled": Setting(new_spacing=(2.0, 2.2, 1.9)),
    "anisotropic": Setting(shape=(9, 34, 30), spacing=(5.0, 1.2, 1.1), new_spacing=(4.0, 1.0, 0.9), mask=True),
    "anisotropic, transposed": Setting(
        shape=(34, 30, 9), spacing=(1.2, 1.1, 5.0), new_spacing=(4.0, 1.0, 0.9), transposition=(2, 0, 1)
    ),
    "of the plan's spacing": Setting(spacing=(1.0, 1.0, 1.0)),
    "not resampled": Setting(channels=2, mask=True, **NO_RESAMPLING),
    "not resampled, transposed": Setting(transposition=(2, 0, 1), **NO_RESAMPLING),
    "regions": Setting(labels=REGIONS, regions_class_order=(1, 2, 3), values=(0, 1, 2, 3)),
    "a region under two names": Setting(
        labels={**REGIONS, "tumour": [1, 2, 3]}, regions_class_order=(1, 2, 3, 4), values=(0, 1, 2, 3)
    ),
    "ignore label": Setting(labels={"background": 0, "a": 1, "b": 2, "ignore": 3}, values=(0, 1, 2, 3)),
    "regions and ignore label": Setting(
        labels={**REGIONS, "ignore": 4}, regions_class_order=(1, 2, 3), values=(0, 1, 2, 3, 4)
    ),
    "700 labels": Setting(labels=MANY, values=tuple(range(701))),
    "700 labels, of which three are there": Setting(labels=MANY, values=(0, 5, 99)),
    "resampled by torch": Setting(labels=MANY, values=(0, 5, 99), **TORCH),
    "without foreground": Setting(values=(0,)),
    "an image of zeros": Setting(empty=True),
}


@dataclass(frozen=True)
class Both:
    """A case preprocessed by both, `case.b2nd`, `case_seg.b2nd` and `case.pkl` in a folder each."""

    setting: Setting
    ours: Path
    stock: Path

    def arrays(self, name: str) -> tuple[Any, Any]:
        return tuple(blosc2.open(urlpath=str(folder / name), mode="r") for folder in (self.ours, self.stock))

    def properties(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return tuple(pickle.loads((folder / "case.pkl").read_bytes()) for folder in (self.ours, self.stock))

    @property
    def resampled(self) -> bool:
        return (
            self.arrays("case.b2nd")[1].shape[1:] != self.properties()[1]["shape_after_cropping_and_before_resampling"]
        )


def preprocess_by_both(setting: Setting, files: RawFiles, folder: Path) -> Both:
    for name, preprocessor in (("ours", ExactPreprocessor), ("stock", DefaultPreprocessor)):
        (folder / name).mkdir()
        preprocessor(verbose=False).run_case_save(
            str(folder / name / "case"), files.images, files.label, *setting.plan(), setting.dataset_json
        )
    return Both(setting, folder / "ours", folder / "stock")


@pytest.fixture(scope="module", params=SETTINGS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    setting = SETTINGS[request.param]
    folder = tmp_path_factory.mktemp("case")
    return preprocess_by_both(setting, write_case(folder, *setting.arrays(), setting.spacing), folder)


def test_the_image_is_within_a_ten_thousandth_of_stock_nnunets(both: Both) -> None:
    ours, stock = both.arrays("case.b2nd")
    assert ours.dtype == stock.dtype == np.float32
    np.testing.assert_allclose(ours[:], stock[:], rtol=0, atol=1e-4)


def test_an_image_that_is_not_resampled_is_stock_nnunets_to_the_last_bit(both: Both) -> None:
    ours, stock = both.arrays("case.b2nd")
    if both.resampled and both.setting.resampling == "resample_data_or_seg_to_shape" and not both.setting.empty:
        assert not np.array_equal(ours[:], stock[:])  # or it would not be known to have been resampled by ours
    else:
        assert np.array_equal(ours[:], stock[:])


def test_labels_are_stock_nnunets_in_every_voxel(both: Both) -> None:
    ours, stock = both.arrays("case_seg.b2nd")
    assert ours.dtype == stock.dtype == np.int16
    assert np.array_equal(ours[:], stock[:])


@pytest.mark.parametrize("name", ["case.b2nd", "case_seg.b2nd"])
def test_chunks_and_blocks_are_stock_nnunets(both: Both, name: str) -> None:
    ours, stock = both.arrays(name)
    assert ours.shape == stock.shape
    assert (ours.chunks, ours.blocks) == (stock.chunks, stock.blocks)


def test_the_properties_are_stock_nnunets_in_order_type_and_value(both: Both) -> None:
    ours, stock = both.properties()
    assert list(ours) == list(stock)
    assert [type(value) for value in ours.values()] == [type(value) for value in stock.values()]
    np.testing.assert_equal(ours, stock)
    assert pickle.dumps(ours["bbox_used_for_cropping"]) == pickle.dumps(stock["bbox_used_for_cropping"])


def test_class_locations_have_stock_nnunets_keys_in_their_order(both: Both) -> None:
    ours, stock = (properties["class_locations"] for properties in both.properties())
    assert list(ours) == list(stock)
    assert [type(key) for key in ours] == [type(key) for key in stock]


def test_stock_nnunet_loads_the_case(both: Both) -> None:
    data, seg, previous, properties = nnUNetDatasetBlosc2(str(both.ours)).load_case("case")
    assert (data.dtype, seg.dtype, previous) == (np.float32, np.int16, None)
    assert data.shape[1:] == seg.shape[1:]
    for key, where in properties["class_locations"].items():
        if len(where):
            assert set(np.unique(seg[:][tuple(where.T)])) <= set(np.atleast_1d(key))


def test_compression_is_stock_nnunets_or_of_its_kind(both: Both) -> None:
    for name in ("case.b2nd", "case_seg.b2nd"):
        ours, stock = (array.schunk.cparams for array in both.arrays(name))
        if both.resampled:
            assert ours.codec == stock.codec, "read as fast as nnU-Net's"
        else:
            assert (ours.codec, ours.filters, ours.clevel) == (stock.codec, stock.filters, stock.clevel)


def mni_subject(folder: Path, crop: tuple[int, int, int] | None, channels: int) -> RawFiles:
    make_mni_dataset(
        folder / "raw", num_subjects=1, num_test_subjects=0, crop=crop, num_channels=channels,
        spacings=((1.0, 1.0, 1.0),),
    )  # fmt: skip
    images = [str(folder / "raw" / "imagesTr" / f"MNI_000_000{c}.nii.gz") for c in range(channels)]
    return RawFiles(images, str(folder / "raw" / "labelsTr" / "MNI_000.nii.gz"))


def test_real_anatomy_is_stock_nnunets(tmp_path: Path) -> None:
    setting = Setting(channels=2, new_spacing=(0.8, 0.9, 1.1))
    both = preprocess_by_both(setting, mni_subject(tmp_path, (60, 70, 50), 2), tmp_path)
    np.testing.assert_allclose(*(a[:] for a in both.arrays("case.b2nd")), rtol=0, atol=1e-4)
    assert np.array_equal(*(a[:] for a in both.arrays("case_seg.b2nd")))
    np.testing.assert_equal(*both.properties())


@pytest.mark.slow
def test_files_of_a_resampled_head_are_hardly_larger_than_as_stock_nnunet_compresses_them(tmp_path: Path) -> None:
    class StockFiles(ExactPreprocessor):
        run_case_save = DefaultPreprocessor.run_case_save

    setting = Setting(new_spacing=(1.25, 1.25, 1.25), patch_size=(128, 128, 128))
    files = mni_subject(tmp_path, None, 1)
    sizes = []
    for preprocessor in (ExactPreprocessor, StockFiles):
        target = tmp_path / preprocessor.__name__
        preprocessor(verbose=False).run_case_save(
            str(target), files.images, files.label, *setting.plan(), setting.dataset_json
        )
        sizes.append(sum(path.stat().st_size for path in tmp_path.glob(f"{target.name}*.b2nd")))
    assert sizes[0] <= 1.05 * sizes[1]


@pytest.mark.parametrize("preprocessor", [ExactPreprocessor, DefaultPreprocessor])
def test_the_arrays_that_are_preprocessed_are_not_changed(preprocessor: type[DefaultPreprocessor]) -> None:
    setting = Setting(channels=2, mask=True)
    images, labels = setting.arrays()
    given = images.copy(), labels[None].copy()
    preprocessor(verbose=False).run_case_npy(
        *given, {"spacing": list(setting.spacing)}, *setting.plan(), setting.dataset_json
    )
    assert np.array_equal(given[0], images)
    assert np.array_equal(given[1][0], labels)


def test_a_case_to_be_predicted_is_preprocessed_by_stock_nnunet(tmp_path: Path) -> None:
    setting = Setting(channels=2, mask=True)
    files = write_case(tmp_path, *setting.arrays(), setting.spacing)
    results = [
        p(verbose=False).run_case(files.images, None, *setting.plan(), setting.dataset_json)
        for p in (ExactPreprocessor, DefaultPreprocessor)
    ]
    np.testing.assert_equal(*results)
    assert "class_locations" not in results[0][2]


def test_nnunets_default_preprocessor_is_replaced_and_told_whether_to_print() -> None:
    configuration = Setting().plan()[1]
    assert type(preprocessor_for(configuration)) is ExactPreprocessor
    assert (preprocessor_for(configuration).verbose, preprocessor_for(configuration, True).verbose) == (False, True)


def test_another_preprocessor_that_a_plan_names_is_left_as_it_is() -> None:
    class Other(DefaultPreprocessor):
        pass

    class Naming(ConfigurationManager):
        preprocessor_class = Other

    assert type(preprocessor_for(Naming(Setting().plan()[1].configuration))) is Other


def test_what_a_subclass_makes_of_the_labels_is_kept(tmp_path: Path) -> None:
    """nnU-Net calls `modify_seg_fn` after resampling, for sparse annotations."""

    class Sparse(ExactPreprocessor):
        def modify_seg_fn(self, seg: np.ndarray, *_: Any) -> np.ndarray:
            return np.where(seg == 2, 0, seg)

    setting = replace(Setting(), spacing=(1.0, 1.0, 1.0))
    files = write_case(tmp_path, *setting.arrays(), setting.spacing)
    _, seg, properties = Sparse(verbose=False).run_case(
        files.images, files.label, *setting.plan(), setting.dataset_json
    )
    assert set(np.unique(seg)) == {-1, 0, 1}
    assert len(properties["class_locations"][2])
