"""What is made from the base before training: pools of pictures, and the base as a predictor."""

import torch
from small import config, load_quickly, moved, workshop

from personalize.adapters.trainable import choose_as
from personalize.config.rules import resolve
from personalize.train.assembly import make_predictors
from personalize.train.experiment import read
from personalize.train.from_base import make_pools
from personalize.train.setup import make_accelerator


def test_output_on_the_subjects_pictures_uses_the_class_prompt(tmp_path):
    """The base is imitated where it must not change: under prompts without the identifier."""
    no_class_images = {"class_data_dir": None, "num_class_images": 100, "class_steps": 20}
    c = config(tmp_path / "run", "output", output_source="instance", **no_class_images)
    c, pictures = read(c)
    pools = make_pools(c, load_quickly(str(workshop() / "sd")), pictures)
    assert pools["instance"].prompts == ["a photo of sks dog"] * 3
    assert pools["output"].prompts == ["a photo of a dog"] * 3


def test_the_base_keeps_its_own_text_encoder_while_another_trains(tmp_path):
    """To the bit, and without encoding anything: its embeddings were computed before training."""
    c = resolve(config(tmp_path / "run", "output", "lora+text"))
    model = load_quickly(str(workshop() / "sd"))
    theta = choose_as(model, c)
    predictors = make_predictors(c, model, make_accelerator(c), ["a photo of a dog"])
    rng = torch.Generator().manual_seed(0)
    x_t = torch.randn(2, *model.latent_shape(64), generator=rng)
    batch = x_t, model.schedule.timesteps[torch.tensor([5, 900])], ["a photo of a dog"] * 2
    encoded, forward = [], model.encode_prompts
    with torch.no_grad():
        before = predictors.base(*batch)
        moved(theta)
        model.encode_prompts = lambda prompts: encoded.append(prompts) or forward(prompts)
        assert torch.equal(predictors.base(*batch), before)
        assert not encoded
        assert not torch.equal(predictors.live(*batch), before)
        assert encoded == [["a photo of a dog"] * 2]
