"""What a plan records of its weights: defaults by kind and route, equal labels for a head, and back from the file."""

from __future__ import annotations

import copy
import dataclasses
import json
from typing import Any

import pytest
import torch

from nnunetv2_ext.checkpoints.reading import WEIGHTS, PretrainedCheckpoint
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.planning.dynamic_plan import DynamicPlanOptions, make_dynamic_plan
from nnunetv2_ext.planning.modes import TargetSpacing
from nnunetv2_ext.planning.plan_files import completed
from nnunetv2_ext.planning.pretrain_info import (
    TransferOptions,
    check_same_labels,
    keys_in,
    recorded_keys,
    rehearse_transfer,
)
from nnunetv2_ext.planning.pretrained_plan import PlanOptions, make_plan
from nnunetv2_ext.transfer.request import TransferRequest
from tests.planning.networks import built, loaded
from tests.planning.variants import fork_plan, plain_base_plan, residual_base_plan

REGIONS: dict[str, Any] = {
    "labels": {"background": 0, "whole": [1, 2], "core": [2]},
    "regions_class_order": [1, 2],
}


def own_plan(base: dict[str, Any], dataset: dict[str, Any], checkpoint: PretrainedCheckpoint, **options: Any) -> Any:
    chosen = PlanOptions("MAE", transfer=TransferOptions(**options))
    return json.loads(json.dumps(make_plan(base, dataset, checkpoint, TargetSpacing((1, 1, 1)), chosen, "0" * 64)[0]))


def dynamic_plan(base: dict[str, Any], dataset: dict[str, Any], source: PretrainedCheckpoint, **options: Any) -> Any:
    chosen = DynamicPlanOptions("MAE", transfer=TransferOptions(**options))
    return json.loads(json.dumps(make_dynamic_plan(base, dataset, source, chosen, "0" * 64)[0]))


def trained_on(checkpoint: PretrainedCheckpoint, description: dict[str, Any]) -> PretrainedCheckpoint:
    return dataclasses.replace(checkpoint, dataset_json=description)


def test_of_a_self_supervised_source_the_encoder_comes(
    base_plan: dict[str, Any], dataset_json: dict[str, Any], tiny_resenc: PretrainedCheckpoint
) -> None:
    assert own_plan(base_plan, dataset_json, tiny_resenc)["pretrain_info"]["transfer"] == {
        "load": "encoder", "keep_head": False, "channel_map": None, "min_coverage": 1.0
    }  # fmt: skip


def test_of_a_supervised_source_the_decoder_comes_too(
    base_plan: dict[str, Any], dataset_json: dict[str, Any], plain_checkpoint: PretrainedCheckpoint
) -> None:
    transfer = own_plan(base_plan, dataset_json, plain_checkpoint)["pretrain_info"]["transfer"]
    assert (transfer["load"], transfer["keep_head"]) == ("encoder+decoder", False)


@pytest.mark.parametrize("load", ["encoder", "encoder+decoder"])
@pytest.mark.parametrize("checkpoint", ["tiny_resenc", "plain_checkpoint"])
def test_the_users_choice_wins_over_the_kind_of_source(
    checkpoint: str, load: str, base_plan: dict[str, Any], dataset_json: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    plan = own_plan(base_plan, dataset_json, request.getfixturevalue(checkpoint), load=load)
    assert plan["pretrain_info"]["transfer"]["load"] == load


def test_all_of_the_own_network_and_half_of_another_must_arrive(
    base_plan: dict[str, Any], dataset_json: dict[str, Any], plain_checkpoint: PretrainedCheckpoint
) -> None:
    own = own_plan(base_plan, dataset_json, plain_checkpoint)
    dynamic = dynamic_plan(plain_base_plan(base_plan), dataset_json, plain_checkpoint)
    chosen = dynamic_plan(plain_base_plan(base_plan), dataset_json, plain_checkpoint, min_coverage=0.25)
    found = [plan["pretrain_info"]["transfer"]["min_coverage"] for plan in (own, dynamic, chosen)]
    assert found == [1.0, 0.5, 0.25]


class TestTheHead:
    """Carried where the labels are equal and the user says so."""

    def test_stays_the_models_own_where_the_labels_are_equal(
        self, base_plan: dict[str, Any], plain_checkpoint: PretrainedCheckpoint
    ) -> None:
        labels = dict(plain_checkpoint.dataset_json)
        plan = own_plan(base_plan, labels, plain_checkpoint, keep_head=True)
        network = built(plan, channels=1, classes=len(labels["labels"]))
        loaded(network, plan, plain_checkpoint)
        for name in (n for n in network.state_dict() if n.startswith("decoder.seg_layers.")):
            assert torch.equal(network.state_dict()[name], plain_checkpoint.network_weights[name]), name

    def test_is_fresh_where_the_user_does_not_say_so(
        self, base_plan: dict[str, Any], plain_checkpoint: PretrainedCheckpoint
    ) -> None:
        labels = dict(plain_checkpoint.dataset_json)
        plan = own_plan(base_plan, labels, plain_checkpoint)
        network = built(plan, channels=1, classes=len(labels["labels"]))
        before = network.decoder.seg_layers[-1].weight.detach().clone()
        loaded(network, plan, plain_checkpoint)
        assert torch.equal(network.decoder.seg_layers[-1].weight, before)

    @pytest.mark.parametrize(
        ("here", "difference"),
        [
            ({"background": 0, "a": 1}, "b: none here, 2 there"),
            ({"background": 0, "a": 1, "b": 3}, "b: 3 here, 2 there"),
            ({"background": 0, "a": 2, "b": 1}, "a: 2 here, 1 there, b: 1 here, 2 there"),
            ({"background": 0, "a": 1, "b": 2, "ignore": 3}, "ignore: 3 here, none there"),
            ({"background": 0, "a": 1, "c": 2}, "c: 2 here, none there, b: none here, 2 there"),
            ({"background": 0, "a": 1, "b": [1, 2]}, r"b: \[1, 2\] here, 2 there"),
        ],
    )
    def test_of_other_labels_is_refused_and_the_difference_named(
        self, here: dict[str, Any], difference: str, plain_checkpoint: PretrainedCheckpoint
    ) -> None:
        model = trained_on(plain_checkpoint, {"labels": {"background": 0, "a": 1, "b": 2}})
        with pytest.raises(UserError, match=rf"-keep_head: .* other labels \({difference}\): leave the flag out"):
            check_same_labels(model, {"labels": here})

    @pytest.mark.parametrize(
        ("changes", "difference"),
        [
            ({"labels": {"background": 0, "whole": [1, 2], "core": [1]}}, r"core: \[1\] here, \[2\] there"),
            ({"regions_class_order": [2, 1]}, r"regions_class_order: \[2, 1\] here, \[1, 2\] there"),
            ({"labels": {"background": 0, "core": [2], "whole": [1, 2]}}, "order of regions: "),
        ],
    )
    def test_of_other_regions_is_refused(
        self, changes: dict[str, Any], difference: str, plain_checkpoint: PretrainedCheckpoint
    ) -> None:
        check_same_labels(trained_on(plain_checkpoint, REGIONS), copy.deepcopy(REGIONS))
        with pytest.raises(UserError, match=rf"-keep_head: .* other labels \({difference}"):
            check_same_labels(trained_on(plain_checkpoint, REGIONS), {**REGIONS, **changes})

    def test_of_equal_labels_in_another_order_is_the_same_head(self, plain_checkpoint: PretrainedCheckpoint) -> None:
        model = trained_on(plain_checkpoint, {"labels": {"background": 0, "a": 1, "b": 2}})
        check_same_labels(model, {"labels": {"b": 2, "background": "0", "a": 1}})

    def test_of_a_source_without_labels_is_refused(
        self, base_plan: dict[str, Any], dataset_json: dict[str, Any], tiny_resenc: PretrainedCheckpoint
    ) -> None:
        with pytest.raises(UserError, match="does not say which labels its head is for; only nnU-Net models do"):
            own_plan(base_plan, dataset_json, tiny_resenc, keep_head=True)

    def test_without_the_decoder_is_refused(
        self, base_plan: dict[str, Any], plain_checkpoint: PretrainedCheckpoint
    ) -> None:
        with pytest.raises(UserError, match=r"-keep_head needs -load encoder\+decoder"):
            own_plan(base_plan, dict(plain_checkpoint.dataset_json), plain_checkpoint, keep_head=True, load="encoder")


def test_what_was_asked_for_comes_back_from_the_plans_file(
    base_plan: dict[str, Any], plain_checkpoint: PretrainedCheckpoint
) -> None:
    labels = dict(plain_checkpoint.dataset_json)
    asked: dict[str, Any] = {"load": "encoder+decoder", "keep_head": True, "channel_map": (2,), "min_coverage": 0.75}
    plan = own_plan(base_plan, labels, plain_checkpoint, **asked)
    found = TransferRequest.from_dict(plan["pretrain_info"]["transfer"])
    assert {key: getattr(found, key) for key in asked} == asked


def test_the_keys_of_the_plan_are_those_of_the_checkpoint(
    base_plan: dict[str, Any], dataset_json: dict[str, Any], tiny_primus: PretrainedCheckpoint
) -> None:
    keys = recorded_keys(own_plan(base_plan, dataset_json, tiny_primus)["pretrain_info"])
    raw = tiny_primus.plan.raw
    assert (keys.key_to_encoder, keys.key_to_stem) == (raw["key_to_encoder"], raw["key_to_stem"])
    assert (list(keys.keys_to_in_proj), keys.key_to_lpe) == (list(raw["keys_to_in_proj"]), raw["key_to_lpe"])


@pytest.mark.parametrize("root", ["", "module.", "module._orig_mod."])
def test_weights_without_a_plan_have_the_networks_keys_below_their_wrappers(
    root: str, base_plan: dict[str, Any], tiny_resenc: PretrainedCheckpoint
) -> None:
    weights = {f"{root}{name}": tensor for name, tensor in tiny_resenc.network_weights.items()}
    bare = dataclasses.replace(tiny_resenc, adaptation_plan=None, kind=WEIGHTS, network_weights=weights)
    keys = keys_in(bare, residual_base_plan(base_plan)["configurations"]["3d_fullres"]["architecture"])
    assert (keys.key_to_encoder, keys.key_to_stem) == (f"{root}encoder.stages", f"{root}encoder.stem")
    assert all(f"{key}.weight" in weights for key in keys.keys_to_in_proj)


def test_weights_without_a_plan_say_their_channels_and_no_patch(
    base_plan: dict[str, Any], dataset_json: dict[str, Any], tiny_resenc: PretrainedCheckpoint
) -> None:
    stem = "encoder.stem.convs.0.conv.weight"
    three = tiny_resenc.network_weights[stem].repeat(1, 3, 1, 1, 1)
    weights = {n: three if t.shape[:2] == (8, 1) and t.ndim == 5 and "stem" in n else t
               for n, t in tiny_resenc.network_weights.items()}  # fmt: skip
    bare = dataclasses.replace(tiny_resenc, adaptation_plan=None, kind=WEIGHTS, network_weights=weights)
    info = dynamic_plan(residual_base_plan(base_plan), dataset_json, bare)["pretrain_info"]
    assert (info["pt_num_in_channels"], info["pt_used_patchsize"]) == (3, None)
    assert info["architecture_name"] is None


def test_a_plan_of_the_fork_asks_for_encoder_and_stem_completely(
    base_plan: dict[str, Any], dataset_json: dict[str, Any], tiny_resenc: PretrainedCheckpoint
) -> None:
    theirs = fork_plan(base_plan, "ResEncL", "ptPlans__x", "y")
    assert "transfer" not in theirs["pretrain_info"]
    assert TransferRequest.from_dict(theirs["pretrain_info"].get("transfer")) == TransferRequest(
        "encoder", False, None, 1
    )
    configuration = theirs["configurations"]["3d_fullres"]
    arguments = copy.deepcopy(tiny_resenc.plan.architecture_kwargs)
    configuration["architecture"] = {"network_class_name": "ResidualEncoderUNet", "arch_kwargs": arguments}
    report = rehearse_transfer(completed(theirs), dataset_json, tiny_resenc.network_weights, tiny_resenc.file.path)
    encoder = [r for r in report.records if r.part in ("stem", "encoder")]
    assert {r.action for r in encoder} == {"copied"}
    assert {r.action for r in report.records if r not in encoder} == {"fresh"}


@pytest.mark.parametrize(
    "edited", [{"load": "all"}, {"min_coverage": "half"}, {"channel_map": [[0]]}, {"channel_map": 3}]
)
def test_a_request_that_was_edited_to_nonsense_is_a_line_for_the_user(edited: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"pretrain_info\.transfer of the plan was edited to what it cannot be"):
        TransferRequest.from_dict(edited)
