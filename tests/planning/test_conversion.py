"""A converted checkpoint is read by this package and by torch alone, holds the source's tensors, and nothing more."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunetv2_ext.checkpoints.reading import PretrainedCheckpoint, read_checkpoint
from nnunetv2_ext.checkpoints.sources import resolve_checkpoint_source
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.planning.conversion import convert_checkpoint
from nnunetv2_ext.planning.given_architecture import GivenArchitecture
from nnunetv2_ext.planning.modes import TargetSpacing
from nnunetv2_ext.planning.pretrained_plan import PlanOptions, make_plan
from tests.conftest import TINY_PRIMUS, TINY_RESENC, StockModel
from tests.planning.networks import built, loaded
from tests.planning.variants import residual_base_plan
from tests.planning.weights_files import adaptation_plan_file, plain_file, raw_plan, spark_file, tensors_of

# what nnssl's own AdaptationPlan has, and its users read
NNSSL_KEYS = {
    "architecture_plans", "pretrain_plan", "pretrain_num_input_channels", "recommended_downstream_patchsize",
    "key_to_encoder", "key_to_stem", "keys_to_in_proj", "key_to_lpe",
}  # fmt: skip


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out" / "converted"


@pytest.fixture
def arch(tmp_path: Path) -> str:
    """The plan file of the tiny ResEnc."""
    return str(adaptation_plan_file(tmp_path / "plan.json"))


def convert(source: Path, out: Path, arch: str | None = None, **more: Any) -> PretrainedCheckpoint:
    return convert_checkpoint(str(source), out, GivenArchitecture(arch, **more))


def written(out: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights and plan as anyone reads them: torch and json alone."""
    content = torch.load(out / "checkpoint_final.pth", weights_only=True)
    plan = json.loads((out / "adaptation_plan.json").read_text())
    assert content["nnssl_adaptation_plan"] == plan
    return content["network_weights"], plan


def with_plan(path: Path, plan: dict[str, Any], folder: Path = TINY_RESENC, **more: Any) -> Path:
    torch.save({"network_weights": tensors_of(folder), "nnssl_adaptation_plan": plan, **more}, path)
    return path


def test_the_folder_is_laid_out_as_a_repository_of_nnssl(arch: str, out: Path, tmp_path: Path) -> None:
    convert(plain_file(tmp_path / "w.pth"), out, arch)
    assert sorted(os.listdir(out)) == ["adaptation_plan.json", "checkpoint_final.pth", "config.json"]
    assert json.loads((out / "config.json").read_text()) == json.loads((TINY_RESENC / "config.json").read_text())
    assert set(written(out)[1]) >= NNSSL_KEYS
    assert resolve_checkpoint_source(str(out)).path == out / "checkpoint_final.pth"


@pytest.mark.parametrize("folder", [TINY_RESENC, TINY_PRIMUS], ids=lambda f: f.name)
def test_the_tensors_are_the_sources_and_the_plan_says_what_was_given(folder: Path, out: Path, tmp_path: Path) -> None:
    plan_file = adaptation_plan_file(tmp_path / "plan.json", folder)
    convert(plain_file(tmp_path / "w.pth", folder), out, str(plan_file))
    weights, plan = written(out)
    truth = tensors_of(folder)
    assert list(weights) == list(truth)
    assert all(torch.equal(weights[name], truth[name]) for name in truth)
    raw = raw_plan(folder)
    for key in NNSSL_KEYS - {"architecture_plans", "pretrain_plan"}:
        assert plan[key] == raw[key], key
    for key in ("arch_class_name", "arch_kwargs"):
        assert plan["architecture_plans"][key] == raw["architecture_plans"][key]
    (configuration,), (expected,) = (p["pretrain_plan"]["configurations"].values() for p in (plan, raw))
    for key in ("spacing", "patch_size", "normalization_schemes", "use_mask_for_norm"):
        assert configuration[key] == expected[key], key


def test_this_package_plans_and_loads_it_like_the_original(
    arch: str, out: Path, tmp_path: Path, base_plan: dict[str, Any], dataset_json: dict[str, Any]
) -> None:
    checkpoint = convert(plain_file(tmp_path / "w.pth", root="module."), out, arch_without_keys(tmp_path))
    plan, report = make_plan(
        base_plan, dataset_json, checkpoint, TargetSpacing((1, 1, 1)), PlanOptions("MAE"), "0" * 64
    )
    assert report.coverage == 1
    network = built(json.loads(json.dumps(plan)))
    loaded(network, plan, checkpoint)
    truth = tensors_of(TINY_RESENC)
    for name in (n for n in network.state_dict() if n.startswith("encoder.")):
        assert torch.equal(network.state_dict()[name], truth[name]), name


def arch_without_keys(tmp_path: Path) -> str:
    """The plan file of the tiny ResEnc, without any `key_to_...`."""
    said = {k: v for k, v in raw_plan(TINY_RESENC).items() if not k.startswith("key")}
    (tmp_path / "keyless.json").write_text(json.dumps(said))
    return str(tmp_path / "keyless.json")


@pytest.mark.parametrize("root", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_taken_off_names_and_keys(root: str, out: Path, tmp_path: Path) -> None:
    convert(plain_file(tmp_path / "w.pth", root=root), out, arch_without_keys(tmp_path))
    weights, plan = written(out)
    assert list(weights) == list(tensors_of(TINY_RESENC))
    assert (plan["key_to_encoder"], plan["key_to_stem"]) == ("encoder.stages", "encoder.stem")
    assert all(f"{key}.weight" in weights for key in plan["keys_to_in_proj"])


def test_prefixes_of_wrappers_are_taken_off_the_keys_that_the_user_gives(out: Path, tmp_path: Path) -> None:
    keys = {"key_to_encoder": "module.encoder.stages", "keys_to_in_proj": ["module.encoder.stem.convs.0.conv"]}
    convert(plain_file(tmp_path / "w.pth", root="module."), out, arch_without_keys(tmp_path), keys=keys)
    _, plan = written(out)
    assert (plan["key_to_encoder"], plan["keys_to_in_proj"]) == ("encoder.stages", ["encoder.stem.convs.0.conv"])


def test_explicit_keys_find_an_encoder_of_another_name(out: Path, tmp_path: Path) -> None:
    names = {n: t for n, t in tensors_of(TINY_RESENC).items() if n.startswith("encoder.")}
    torch.save({n.replace("encoder.", "student.", 1): t for n, t in names.items()}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"'encoder\.stages', but no tensor"):
        convert(tmp_path / "w.pth", out, arch_without_keys(tmp_path))
    keys = {"key_to_encoder": "student.stages", "key_to_stem": "student.stem",
            "keys_to_in_proj": ["student.stem.convs.0.conv", "student.stem.convs.0.all_modules.0"]}  # fmt: skip
    checkpoint = convert(tmp_path / "w.pth", out, arch_without_keys(tmp_path), keys=keys)
    assert checkpoint.plan.key_to_encoder == "student.stages"
    assert written(out)[1]["key_to_stem"] == "student.stem"


@pytest.mark.parametrize("missing", sorted(NNSSL_KEYS - {"key_to_lpe", "architecture_plans", "pretrain_plan"}))
def test_a_plan_that_lacks_a_key_is_completed(missing: str, out: Path, tmp_path: Path) -> None:
    raw = {**raw_plan(TINY_RESENC), "recommended_downstream_patchsize": [48, 32, 32]}
    incomplete = {k: v for k, v in raw.items() if k != missing}
    source = with_plan(tmp_path / "checkpoint.pth", incomplete, citations=[{"type": "paper", "name": "MAE"}])
    convert(source, out)
    _, plan = written(out)
    expected = {**raw, "recommended_downstream_patchsize": [32, 32, 32]} if missing.startswith("reco") else raw
    for key in NNSSL_KEYS - {"architecture_plans", "pretrain_plan"}:
        assert plan[key] == expected[key], key
    assert plan["pretrain_plan"]["dataset_name"] == "Dataset745_OpenMind"
    assert torch.load(out / "checkpoint_final.pth", weights_only=True)["citations"] == [
        {"type": "paper", "name": "MAE"}
    ]


def test_a_plan_without_a_patch_needs_the_users_word(out: Path, tmp_path: Path) -> None:
    raw = raw_plan(TINY_RESENC)
    del raw["pretrain_plan"]
    source = with_plan(tmp_path / "checkpoint.pth", raw)
    with pytest.raises(UserError, match=r"give -patch_size Z Y X \(voxels\)"):
        convert(source, out)
    checkpoint = convert(source, out, patch_size=(64, 32, 32), spacing=(2, 1, 1))
    assert (checkpoint.plan.pretrain_patch_size, checkpoint.plan.spacing) == ((64, 32, 32), (2.0, 1.0, 1.0))


def test_a_plan_without_an_architecture_needs_the_users_word(arch: str, out: Path, tmp_path: Path) -> None:
    raw = raw_plan(TINY_RESENC)
    del raw["architecture_plans"]
    source = with_plan(tmp_path / "checkpoint.pth", raw)
    with pytest.raises(UserError, match=r"does not say which network it is of: give -arch"):
        convert(source, out)
    assert convert(source, out, arch).plan.architecture_name == "ResidualEncoderUNet"


def test_a_model_of_nnunet_is_converted_with_what_its_plans_say(plain_model: StockModel, out: Path) -> None:
    convert(plain_model.folder, out)
    weights, plan = written(out)
    truth = torch.load(plain_model.checkpoint, weights_only=False)["network_weights"]
    assert all(torch.equal(weights[name], truth[name]) for name in truth)
    own = json.loads((plain_model.folder / "plans.json").read_text())["configurations"]["3d_fullres"]
    (configuration,) = plan["pretrain_plan"]["configurations"].values()
    assert (configuration["spacing"], configuration["patch_size"]) == (own["spacing"], own["patch_size"])
    assert plan["pretrain_num_input_channels"] == 4
    assert plan["architecture_plans"]["arch_class_name"] == "PlainConvUNet"


def test_names_that_share_a_tensor_still_do_and_the_file_is_not_larger_than_its_tensors(
    arch: str, out: Path, tmp_path: Path
) -> None:
    source = plain_file(tmp_path / "w.pth")
    convert(source, out, arch)
    weights, _ = written(out)
    truth = tensors_of(TINY_RESENC)

    def groups(tensors: dict[str, torch.Tensor]) -> set[tuple[str, ...]]:
        by_address: dict[int, list[str]] = {}
        for name, tensor in tensors.items():
            by_address.setdefault(tensor.data_ptr(), []).append(name)
        return {tuple(names) for names in by_address.values()}

    assert groups(weights) == groups(truth)
    unique = {t.data_ptr(): t.numel() * t.element_size() for t in truth.values()}
    assert (out / "checkpoint_final.pth").stat().st_size < sum(unique.values()) + 400 * len(truth)
    assert len(truth) > 2 * len(unique)


def test_a_small_part_of_a_large_storage_is_saved_without_the_rest(arch: str, out: Path, tmp_path: Path) -> None:
    """Some frameworks keep all parameters in one buffer; torch saves the whole of it with each of its views."""
    weights = tensors_of(TINY_RESENC)
    buffer = torch.zeros(5_000_000)
    name = "encoder.stages.0.blocks.0.conv1.norm.weight"
    buffer[: weights[name].numel()] = weights[name]
    views = {n: buffer[: t.numel()].view(t.shape) if t.data_ptr() == weights[name].data_ptr() else t
             for n, t in weights.items()}  # fmt: skip
    torch.save(views, tmp_path / "w.pth")
    assert (tmp_path / "w.pth").stat().st_size > 20_000_000
    convert(tmp_path / "w.pth", out, arch)
    assert (out / "checkpoint_final.pth").stat().st_size < (TINY_RESENC / "checkpoint_final.pth").stat().st_size * 1.2
    assert torch.equal(written(out)[0][name], weights[name])


def test_of_sparkmae_what_the_forward_pass_used_is_kept_beside_the_rest(arch: str, out: Path, tmp_path: Path) -> None:
    source = spark_file(tmp_path / "spark.pth")
    convert(source, out, arch)
    weights, truth = written(out)[0], torch.load(source, weights_only=True)["network_weights"]
    assert all(torch.equal(weights[name], truth[name]) for name in truth)


def test_half_precision_stays_half(arch: str, out: Path, tmp_path: Path) -> None:
    torch.save({n: t.half() for n, t in tensors_of(TINY_RESENC).items()}, tmp_path / "w.pth")
    convert(tmp_path / "w.pth", out, arch)
    assert {t.dtype for t in written(out)[0].values()} == {torch.float16}


class TestRefusals:
    """Each leaves nothing behind."""

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    @pytest.mark.parametrize("part", ["encoder.stages.1", "decoder.seg_layers.2"])
    def test_nan_and_inf_are_named(self, part: str, value: float, arch: str, out: Path, tmp_path: Path) -> None:
        weights = tensors_of(TINY_RESENC)
        name = next(n for n in weights if n.startswith(part))
        weights[name].view(-1)[0] = value
        torch.save(weights, tmp_path / "w.pth")
        with pytest.raises(UserError, match=rf"{part}\S* holds NaN or inf"):
            convert(tmp_path / "w.pth", out, arch)
        assert not out.exists()

    def test_a_checkpoint_that_is_there_is_not_replaced(self, arch: str, out: Path, tmp_path: Path) -> None:
        convert(plain_file(tmp_path / "w.pth"), out, arch)
        before = {p.name: p.read_bytes() for p in out.iterdir()}
        with pytest.raises(UserError, match=r"\(-o\) holds a checkpoint_final\.pth already: give another folder"):
            convert(tmp_path / "w.pth", out, arch)
        assert {p.name: p.read_bytes() for p in out.iterdir()} == before

    def test_a_file_is_no_folder(self, arch: str, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        with pytest.raises(UserError, match=r"\(-o\) is a file: give a folder"):
            convert(plain_file(tmp_path / "w.pth"), tmp_path / "file", arch)

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            ({"arch": "ResEncL"}, r"nothing in common: stem: 4 tensors of another width"),
            ({"arch": "PrimusM"}, "'eva', but no tensor"),
            ({"arch": "PrimusM", "keys": {"key_to_encoder": "encoder.stages", "key_to_stem": "encoder.stem",
                                          "keys_to_in_proj": ["encoder.stem.convs.0.conv"]}}, "nothing in common"),
        ],
    )  # fmt: skip
    def test_another_architecture(self, given: dict[str, Any], words: str, out: Path, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=words):
            convert(plain_file(tmp_path / "w.pth"), out, patch_size=(64, 64, 64), **given)
        assert not out.exists()

    def test_a_network_with_other_widths(self, out: Path, tmp_path: Path, base_plan: dict[str, Any]) -> None:
        (tmp_path / "wide.json").write_text(json.dumps(residual_base_plan(base_plan, (8, 16, 32, 48))))
        with pytest.raises(UserError, match=r"not those of the network ResidualEncoderUNet .*have \d+\.\d%"):
            convert(plain_file(tmp_path / "w.pth"), out, str(tmp_path / "wide.json"))
        assert not out.exists()

    def test_a_patch_that_the_positional_embedding_was_not_trained_for(self, out: Path, tmp_path: Path) -> None:
        plan_file = adaptation_plan_file(tmp_path / "plan.json", TINY_PRIMUS)
        with pytest.raises(UserError, match=r"\(-arch, -patch_size\).*a patch that does not explain"):
            convert(plain_file(tmp_path / "w.pth", TINY_PRIMUS), out, str(plan_file), patch_size=(64, 64, 64))
        assert not out.exists()

    def test_other_channels_than_the_stems(self, arch: str, out: Path, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"-channels 4: the weights have another number"):
            convert(plain_file(tmp_path / "w.pth"), out, arch, channels=4)
        assert not out.exists()

    def test_weights_without_a_word(self, out: Path, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"does not say which network it is of: give -arch"):
            convert(plain_file(tmp_path / "w.pth"), out)


def test_read_back_it_is_what_was_returned(arch: str, out: Path, tmp_path: Path) -> None:
    returned = convert(plain_file(tmp_path / "w.pth"), out, arch)
    again = read_checkpoint(resolve_checkpoint_source(str(out)))
    assert again.plan == returned.plan
    assert again.file == returned.file or again.file.path == returned.file.path


def test_weights_whose_kernels_would_have_to_be_adapted_are_not_those_of_the_network(out: Path, tmp_path: Path) -> None:
    plan = raw_plan(TINY_RESENC)
    plan["architecture_plans"]["arch_kwargs"]["kernel_sizes"][0] = [1, 3, 3]
    (tmp_path / "flat.json").write_text(json.dumps(plan))
    with pytest.raises(UserError, match=r"not those of the network .*kernel 3x3x3 to 1x3x3"):
        convert(plain_file(tmp_path / "w.pth"), out, str(tmp_path / "flat.json"))
    assert not out.exists()


def test_a_normalisation_of_another_number_of_channels_is_left_out(out: Path, tmp_path: Path) -> None:
    plan = raw_plan(TINY_RESENC)
    (configuration,) = plan["pretrain_plan"]["configurations"].values()
    configuration |= {"normalization_schemes": ["ZScoreNormalization"] * 2, "use_mask_for_norm": [False, False]}
    (tmp_path / "two.json").write_text(json.dumps(plan))
    converted = convert(plain_file(tmp_path / "w.pth"), out, str(tmp_path / "two.json"))
    assert converted.plan.pretrain_num_input_channels == 1
    assert converted.plan.normalization_schemes is None
