"""A comparison is planned and refused before anything trains."""

from dataclasses import replace

import pytest
from comparisons import config, shop
from photographs import photo

from personalize.compare.jobs import flags_of, plan, thinned, train_config
from personalize.compare.run import run
from personalize.config.compare_config import (
    completed,
    each_run,
    mini_compare,
    quickened,
    widened,
)
from toy2d.runs.files import UserError


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"runs": ("l2:1",)}, "--runs needs standard"),
        ({"runs": ("standard", "l2")}, "l2 needs a number"),
        ({"runs": ("standard", "ewc:1")}, "unknown objective 'ewc'"),
        ({"runs": ("standard", "replay_all:1")}, "the toy's only"),
        ({"runs": ("standard", "prior:1+prior:2")}, "twice"),
        ({"seeds": ()}, "--seeds"),
        ({"images": 0}, "--images 0"),
        ({"equal_fidelity": 2.0}, "--equal_fidelity"),
        ({"subjects": ("photos:",)}, "no such folder"),
        ({"subjects": ()}, "--subjects are missing"),
        ({"each": {"objective": "l2"}}, "--objective is decided by --runs"),
        ({"each": {"seed": 3}}, "--seed is decided by --seeds"),
        ({"each": {"fisher_samples": 8}}, "--fisher_samples has no effect on any run"),
        ({"workers": 0}, "--workers 0"),
    ],
)
def test_what_cannot_be_is_refused_in_the_users_words(tmp_path, change, complaint):
    with pytest.raises(UserError, match=complaint):
        run(config(tmp_path / "c", **change))
    assert not (tmp_path / "c" / "metrics.json").exists()


def test_a_subject_needs_its_class(tmp_path):
    with pytest.raises(UserError, match="say what it is"):
        plan(config(tmp_path, subjects=(str(shop() / "photos"),)))


def test_runs_in_the_toys_words_become_the_trainers_flags():
    assert flags_of("standard") == {"objective": "standard"}
    assert flags_of("l2_tensor_mean:500") == {
        "objective": "l2",
        "l2_reg_weight": 500.0,
        "reg_reduction": "tensor_mean",
    }
    assert flags_of("prior:1+l2:0.01") == {
        "objective": "prior+l2",
        "prior_loss_weight": 1.0,
        "l2_reg_weight": 0.01,
    }


def test_another_base_is_not_trained_with_the_minis_settings(tmp_path):
    c = config(tmp_path)
    with pytest.raises(UserError, match="say --learning_rate --max_train_steps --runs "):
        completed(c, {"pretrained_model_name_or_path"})
    preset = completed(replace(c, each=replace(c.each, preset="paper_sd15_lora")), {"runs", "rank"})
    assert preset.each.lora_alpha == 27.0
    assert preset.each.rank == c.each.rank
    assert preset.each.objective == "standard"  # --runs decides


def test_an_objectives_first_weight_gets_every_seed_and_the_others_few(tmp_path):
    c = config(tmp_path, runs=("standard", "l2:1", "l2:2", "prior:1"), seeds=(0, 1, 2))
    assert dict(each_run(c)) == {
        "standard": (0, 1, 2),
        "l2:1": (0, 1, 2),
        "l2:2": (0,),
        "prior:1": (0, 1, 2),
    }
    assert dict(each_run(replace(c, sweep_seeds=3)))["l2:2"] == (0, 1, 2)


def test_runs_differ_in_their_objective_only(tmp_path):
    _, _, jobs = plan(config(tmp_path, seeds=(0,)))
    standard, prior = (vars(train_config(j)) for j in jobs)
    differing = {k for k in standard if standard[k] != prior[k]}
    assert differing <= {
        "objective",
        "output_dir",
        "class_data_dir",
        "num_class_images",
        "class_steps",
    }


def test_quick_is_the_same_comparison_made_smaller():
    c = mini_compare()
    q = quickened(c)
    assert q.runs == c.runs
    assert len(q.seeds) == 1
    assert q.each.max_train_steps <= c.each.max_train_steps
    assert q.each.num_class_images < c.each.num_class_images
    assert q.prompts_each <= c.prompts_each
    assert q.images <= c.images
    assert q.each.output_dir == f"{c.each.output_dir}-quick"


def test_tuning_spans_three_decades_around_each_first_weight_on_one_seed(tmp_path):
    t = widened(config(tmp_path, runs=("standard", "l2:0.1", "l2:1", "prior:1")))
    assert t.seeds == (0,)
    assert t.runs[:3] == ("standard", "l2:0.003", "l2:0.01")
    assert t.runs[-1] == "prior:30"
    assert len(t.runs) == 1 + 2 * 7


def test_prompts_are_thinned_evenly():
    assert thinned(tuple("abcdefgh"), 4) == tuple("aceg")
    assert thinned(tuple("abc"), 0) == tuple("abc")
    assert thinned(tuple("abc"), 5) == tuple("abc")


def test_a_subject_may_bring_held_out_pictures(tmp_path):
    (held := tmp_path / "held").mkdir()
    photo(80, 64, seed=10).save(held / "0.png")
    _, subjects, jobs = plan(config(tmp_path / "c", subjects=(f"{shop() / 'photos'}:dog:{held}",)))
    assert (subjects[0].class_word, subjects[0].held_out) == ("dog", str(held))
    assert {train_config(j).held_out_data_dir for j in jobs} == {str(held)}
    with pytest.raises(UserError, match=r"no such folder.*FOLDER:CLASS:HELD_OUT"):
        plan(config(tmp_path / "d", subjects=(f"{shop() / 'photos'}:dog:{tmp_path / 'gone'}",)))


def test_pictures_may_be_drawn_on_some_seeds_only(tmp_path):
    _, _, jobs = plan(config(tmp_path / "c", seeds=(3, 5, 7), picture_seeds=2))
    assert {j.seed for j in jobs if j.draws} == {3, 5}
    _, _, jobs = plan(config(tmp_path / "c", seeds=(3, 5, 7)))
    assert all(j.draws for j in jobs)


def test_the_minis_preset_measures_gain_and_path_kl_at_the_same_steps():
    """A point of a curve needs both: gain follows --probe_steps, path KL --path_kl_steps."""
    c = mini_compare().each
    assert c.probe_steps == c.path_kl_steps
    assert c.max_train_steps >= 6 * c.probe_steps
    assert c.max_train_steps % c.probe_steps == 0
