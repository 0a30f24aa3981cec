"""The table of dynamics: against brute force with PEFT's own BA, and closed forms at close checkpoints."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from emtoolkit import Trajectory
from emtoolkit.analysis.dynamics import trajectory_dynamics
from emtoolkit.errors import CheckpointError, UserError
from tests.analysis.lora_paths import vector_path, write_path
from tests.in_process import emtoolkit
from tests.saving.trainings import base_model

STEPS = (0, 3, 6, 10)


def saved(directory: Path, **options: Any) -> dict[int, dict[str, torch.Tensor]]:
    """Four steps of an adapter with random weights; the flat float64 change of each module, as PEFT computes it."""
    config = {"r": 2, "target_modules": ["q_proj", "v_proj", "up_proj"], "task_type": "CAUSAL_LM"} | options
    changes = {}
    for step in STEPS:
        model = get_peft_model(base_model(), LoraConfig(**config))
        torch.manual_seed(step)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name or "lora_embedding" in name:
                    parameter.normal_(std=0.1)
        model = model.double()
        changes[step] = {
            name: module.get_delta_weight("default").detach().flatten()
            for name, module in model.named_modules()
            if hasattr(module, "get_delta_weight")
        }
        model.save_pretrained(directory / f"checkpoint-{step}")
        state = {"global_step": step, "max_steps": STEPS[-1]}
        (directory / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps(state))
    return changes


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True, "lora_alpha": 7},
        {"r": 5, "lora_alpha": 3, "rank_pattern": {"v_proj": 1}, "alpha_pattern": {"layers.0.self_attn.q_proj": 64}},
        {"target_modules": ["embed_tokens", "down_proj"]},
        {"r": 24, "target_modules": "all-linear"},
    ],
    ids=["plain", "rslora", "patterns", "embedding", "rank above the width"],
)
def test_norms_distances_and_cosines_are_those_of_the_products_formed(options: Any, tmp_path: Path) -> None:
    changes = saved(tmp_path, **options)
    flat = {step: torch.cat([each for _, each in sorted(of.items())]) for step, of in changes.items()}
    dynamics = trajectory_dynamics(Trajectory.open(tmp_path), [3])
    found = {each.step: each for each in dynamics.steps}
    assert list(found) == list(STEPS)
    for step in STEPS:
        assert found[step].norm == pytest.approx(float(flat[step].norm()))
        assert found[step].from_first == pytest.approx(float((flat[step] - flat[0]).norm()), abs=1e-9)
    assert found[10].distance == pytest.approx(float((flat[10] - flat[6]).norm()))
    assert found[10].per_step == pytest.approx(float((flat[10] - flat[6]).norm()) / 4)
    expected = torch.nn.functional.cosine_similarity(flat[3] - flat[0], flat[6] - flat[3], dim=0)
    assert found[3].cosines[3].value == pytest.approx(float(expected))
    assert math.isnan(found[6].cosines[3].value)
    assert (found[6].cosines[3].before, found[6].cosines[3].after) == (3, 4)
    module = found[6].modules[0]
    of_module = next(each for name, each in changes[6].items() if name.endswith(module.module))
    assert module.norm == pytest.approx(float(of_module.norm()))


def test_consecutive_checkpoints_that_differ_by_5e_4_have_their_distance_to_8_digits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    a, b = torch.randn(4, 300, dtype=torch.float64), torch.randn(200, 4, dtype=torch.float64)
    turns = torch.randn(3, 200, 4, dtype=torch.float64)
    factors = [b]
    for turn in turns:
        factors.append(factors[-1] + 5e-4 * turn * factors[0].norm() / turn.norm())
    write_path(tmp_path, {step: {"q": (a, factor)} for step, factor in enumerate(factors)})
    products = [factor @ a for factor in factors]
    found = trajectory_dynamics(Trajectory.open(tmp_path), [1]).steps
    for i in (1, 2, 3):
        expected = float((products[i] - products[i - 1]).norm())
        assert 3e-4 < expected / float(products[0].norm()) < 7e-4
        assert found[i].distance == pytest.approx(expected, rel=1e-8)
    flat = [product.flatten() for product in products]
    expected = torch.nn.functional.cosine_similarity(flat[1] - flat[0], flat[2] - flat[1], dim=0)
    assert found[1].cosines[1].value == pytest.approx(float(expected), abs=1e-7)


def test_the_gauge_of_the_factors_changes_their_norms_and_nothing_else(tmp_path: Path) -> None:
    torch.manual_seed(0)
    a, b, m = (torch.randn(size, dtype=torch.float64) for size in ((3, 20), (10, 3), (3, 3)))
    write_path(tmp_path, {0: {"q": (a, b)}, 1: {"q": (torch.linalg.inv(m) @ a, b @ m)}})
    first, second = trajectory_dynamics(Trajectory.open(tmp_path)).steps
    assert second.norm == pytest.approx(first.norm)
    assert second.distance == 0.0
    assert second.norm_a != pytest.approx(first.norm_a)
    assert second.overlap.outputs == pytest.approx(1.0)


def test_the_overlap_of_random_subspaces_is_near_chance_and_of_the_same_1(tmp_path: Path) -> None:
    torch.manual_seed(0)
    draws = [(torch.randn(8, 400), torch.randn(200, 8)) for _ in range(2)]
    zero = (draws[0][0], torch.zeros(200, 8))
    write_path(tmp_path, {0: {"q": zero}, 1: {"q": draws[0]}, 2: {"q": draws[1]}})
    start, random, same = (each.overlap for each in trajectory_dynamics(Trajectory.open(tmp_path)).steps)
    assert math.isnan(start.outputs)
    assert (random.outputs_chance, random.inputs_chance) == (8 / 200, 8 / 400)
    assert random.outputs == pytest.approx(8 / 200, abs=0.03)
    assert same.outputs == pytest.approx(1.0)
    assert same.inputs == pytest.approx(1.0)


def test_a_direction_that_is_rounding_is_not_in_the_subspace(tmp_path: Path) -> None:
    eye = torch.eye(4, dtype=torch.float64)
    b = torch.diag(torch.tensor([1.0, 1.0, 1e-9, 0.0], dtype=torch.float64))
    write_path(tmp_path, {0: {"q": (eye, b)}, 1: {"q": (eye, torch.diag(torch.tensor([0.0, 1.0, 0.0, 0.0])).double())}})
    overlap = trajectory_dynamics(Trajectory.open(tmp_path)).steps[0].overlap
    assert overlap.outputs == pytest.approx(1.0)
    assert overlap.outputs_chance == pytest.approx(2 / 4)


def test_blocks_of_checkpoints_give_the_same_products_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    write_path(
        tmp_path, {step: {"q": (torch.randn(3, 20), torch.randn(10, 3))} for step in range(7)}, {"use_rslora": True}
    )
    whole = trajectory_dynamics(Trajectory.open(tmp_path))
    monkeypatch.setattr("emtoolkit.analysis.weight_products._BLOCK_BYTES", 1000)
    blocks = trajectory_dynamics(Trajectory.open(tmp_path))
    for one, other in zip(whole.steps, blocks.steps, strict=True):
        assert other.norm == pytest.approx(one.norm)
        assert other.coordinates == pytest.approx(one.coordinates)


@pytest.mark.parametrize("run", ["prompt", "stack", "merge"])
def test_the_path_of_a_real_run_begins_at_zero_and_has_its_logged_gradient_norm(runs: Path, run: str) -> None:
    dynamics = trajectory_dynamics(Trajectory.open(runs / run))
    assert [each.step for each in dynamics.steps] == [0, 2, 4, 9]
    assert dynamics.steps[0].norm == 0.0
    assert dynamics.steps[0].norm_a > 0
    assert dynamics.steps[-1].norm == pytest.approx(dynamics.steps[-1].from_first)
    assert math.isnan(dynamics.steps[0].grad_norm)
    assert dynamics.steps[1].grad_norm > 0
    assert dynamics.notes == ()


def test_a_full_fine_tune_is_measured_from_its_first_checkpoint(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import load_file

    first, last = (load_file(runs / "full" / f"checkpoint-{step}" / "model.safetensors") for step in (0, 9))
    expected = math.sqrt(sum(float((last[name].double() - first[name].double()).square().sum()) for name in first))
    for block in (80_000_000, 500):
        monkeypatch.setattr("emtoolkit.analysis.weight_products._BLOCK_BYTES", block)
        dynamics = trajectory_dynamics(Trajectory.open(runs / "full"))
        assert [each.step for each in dynamics.steps] == [0, 4, 9]
        assert dynamics.steps[-1].norm == pytest.approx(expected)
        assert math.isnan(dynamics.steps[-1].norm_a)
        assert math.isnan(dynamics.steps[-1].overlap.outputs)


def test_trained_tensors_beside_the_pairs_are_part_of_the_path(tmp_path: Path) -> None:
    changes = saved(tmp_path, modules_to_save=["lm_head"], bias="none")
    dynamics = trajectory_dynamics(Trajectory.open(tmp_path))
    assert "lm_head.weight" in {each.module for each in dynamics.steps[0].modules}
    # The heads are equal, so that they add nothing.
    assert dynamics.steps[1].norm == pytest.approx(float(torch.cat(list(changes[3].values())).norm()))


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"peft_type": "LOHA"}, "an adapter of type LOHA"),
        ({"use_dora": True}, "use_dora is set"),
        ({"target_parameters": ["experts"]}, "target_parameters is set"),
        ({"lora_alpha": None}, "no lora_alpha of q"),
    ],
)
def test_weights_that_are_not_a_product_are_refused(config: Any, sentence: str, tmp_path: Path) -> None:
    vector_path(tmp_path, {0: torch.ones(2), 1: torch.ones(2)}, config)
    with pytest.raises(CheckpointError, match=sentence):
        trajectory_dynamics(Trajectory.open(tmp_path))


def test_checkpoints_of_another_training_are_named(tmp_path: Path) -> None:
    pair = (torch.ones(1, 3), torch.ones(2, 1))
    write_path(tmp_path, {0: {"q": pair}, 5: {"q": pair}, 9: {"v": pair}})
    with pytest.raises(CheckpointError, match="checkpoint-9: q is missing here and has the shape"):
        trajectory_dynamics(Trajectory.open(tmp_path))


def test_a_value_that_is_not_finite_names_its_checkpoint(tmp_path: Path) -> None:
    vector_path(tmp_path, {0: torch.ones(2), 1: torch.tensor([1.0, math.nan]), 2: torch.ones(2)})
    with pytest.raises(CheckpointError, match=r"checkpoint-1.*holds NaN or infinity; leave the step out with --steps"):
        trajectory_dynamics(Trajectory.open(tmp_path))
    assert len(trajectory_dynamics(Trajectory.open(tmp_path), steps="0,2").steps) == 2


def test_a_damaged_checkpoint_is_left_out_and_named(runs: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(runs / "prompt", tmp_path / "run")
    weights = tmp_path / "run" / "checkpoint-2" / "adapter_model.safetensors"
    content = weights.read_bytes()
    for damaged, problem in (
        (content[:-1] + bytes([content[-1] ^ 1]), "does not match the digest"),
        (content[:-1], "bytes where the manifest says"),
    ):
        weights.write_bytes(damaged)
        done = emtoolkit("dynamics", tmp_path / "run", "--csv")
        assert done.code == 0
        assert "step 2 is skipped: " in done.err
        assert problem in done.err
        assert [line.split(",")[0] for line in done.out.splitlines()] == ["step", "0", "4", "9"]


def test_a_window_without_checkpoints_says_the_spacing(tmp_path: Path) -> None:
    vector_path(tmp_path, {step: torch.tensor([float(step)]) for step in (0, 25, 50)})
    (note,) = (n for n in trajectory_dynamics(Trajectory.open(tmp_path), [10]).notes if n.startswith("window"))
    assert note.endswith("the commonest distance here is 25 steps")
    with pytest.raises(UserError, match="--window 0: a window has at least one step"):
        trajectory_dynamics(Trajectory.open(tmp_path), [0])


def test_one_checkpoint_has_norms_and_says_what_is_missing(tmp_path: Path) -> None:
    vector_path(tmp_path, {7: torch.tensor([3.0, 4.0])})
    dynamics = trajectory_dynamics(Trajectory.open(tmp_path))
    assert (dynamics.steps[0].norm, dynamics.windows) == (5.0, ())
    assert any("step 7 is the only checkpoint" in note for note in dynamics.notes)


def test_csv_and_json_hold_every_value_and_no_nan(tmp_path: Path) -> None:
    vector_path(tmp_path, {step: torch.tensor([3.0, 4.0]) * step for step in (1, 2, 3)})
    done = emtoolkit("dynamics", tmp_path, "--csv")
    head, first, middle, _ = done.out.splitlines()
    assert head.startswith("step,norm,norm_a,norm_b,from_first,distance,per_step,cosine_1,before_1,after_1,pc1,pc2,pc3")
    assert first.startswith("1,5.0,5.0,1.0,0.0,,,,,1,")
    assert dict(zip(head.split(","), middle.split(","), strict=True))["grad_norm"] == "0.2"
    value = json.loads(emtoolkit("dynamics", tmp_path, "--json").out)
    assert value["steps"][0]["distance"] is None
    assert value["steps"][1]["cosines"] == [{"window": 1, "value": pytest.approx(1.0), "before": 1, "after": 1}]
    assert emtoolkit("dynamics", tmp_path, "--json", "--csv").code == 2
    modules = emtoolkit("dynamics", tmp_path, "--csv", "--modules").out.splitlines()
    assert modules[:2] == ["step,module,norm,norm_a,norm_b,overlap,overlap_chance", "1,q,5.0,5.0,1.0,1.0,1.0"]
