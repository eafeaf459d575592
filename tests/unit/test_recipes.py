"""Recipes of published sizes: what a dry run says of them without any data."""

import json

import pytest
from commands import run

from scalewright.recipes import RECIPES


@pytest.mark.parametrize(
    ("name", "params"),
    [("mmdit_20m", 20_665_920), ("mmdit_200m", 193_482_304), ("mmdit_1b", 1_299_153_216)],
)
def test_recipes_are_of_the_size_they_say(name: str, params: int) -> None:
    from scalewright.model.shape import parameters

    assert parameters(RECIPES[name]().model) == params


def test_kandinsky_is_counted_on_any_machine(tmp_path) -> None:  # type: ignore[no-untyped-def]
    code, out, err = run(tmp_path, "pretrain", "--recipe", "kandinsky4_5b", "--dry-run", "--json")
    assert code == 0, err
    assert "counting with data.assumed_clips" in err
    found = json.loads(out)
    assert found["params"] == 5_570_276_928
    assert found["flops_per_step"] > 1e18
    first, second = found["stages"]
    assert (first["steps"], second["begin"], second["steps"]) == (70_000, 70_000, 30_000)
    # Each of the four groups of an HD clip is about as long as a whole clip of 480p.
    per_token = [s["flops_per_step"] / s["visual_tokens_per_step"] for s in (first, second)]
    assert 0.9 < per_token[1] / per_token[0] < 1.1
    assert found["run_flops"] == pytest.approx(
        70_000 * first["flops_per_step"] + 30_000 * second["flops_per_step"]
    )
    worlds = [split["workers"] for split in found["batch_split"]]
    assert worlds == [2**n for n in range(3, 13)]
    for split in found["batch_split"]:
        assert split["workers"] * split["packs_per_worker"] == 4096
        assert 20 < split["memory_gib"] < 80
    settings = found["config"]["parallel"]["environment"]
    assert {"NCCL_IB_HCA=mlx5", "NCCL_NET_GDR_LEVEL=SYS"} <= set(settings)
    assert found["config"]["stages"][1]["attention"] == "local_global"
