"""The mini's IP-Adapter: its training moves nothing else, and diffusers opens what is published."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from personalize.config.commands import ADAPTER, PARTS, Pretrain
from personalize.mini.pretrain import command as pretrain
from personalize.mini.pretrain import ip_adapter, publish, quality, vae
from personalize.mini.pretrain.loop import fit
from personalize.mini.shipped import ADAPTER_FILE, ip_adapter_folder, subjects
from personalize.pipeline.load import load
from toy2d.runs.files import UserError
from toy2d.runs.folder import RunFolder

torch.set_num_threads(1)


def parts_from(start, out, **asked) -> pretrain.Parts:
    return pretrain.Parts(Pretrain(start=str(start), out=str(out), parts=(ADAPTER,), **asked))


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """An untrained base, published as a trained one is."""
    out = tmp_path_factory.mktemp("weights")
    new = pretrain.Parts(Pretrain(out=str(out)))
    publish.publish({p: new.new(p) for p in PARTS}, {"seed": 0}, out)
    return out


@pytest.fixture(scope="module")
def loss(small_world, start, tmp_path_factory):
    words = publish.read("clip", start).eval().requires_grad_(False)
    first = ip_adapter.unlearnt(small_world)
    network = publish.read("vae", start)
    latents = vae.encode(network, small_world.train)
    others = vae.encode(network, small_world.instances[first:])
    return ip_adapter.terms(small_world, latents, others, words)


def test_it_learns_and_the_unet_does_not_move(start, loss, tmp_path, monkeypatch):
    """Ten steps on one repeated batch lower its loss."""

    def same(network, _):
        return loss(network, torch.Generator().manual_seed(7))

    def value(network):
        with torch.no_grad():
            return float(same(network, None)["instance"])

    network = parts_from(start, tmp_path, anew=True).new(ADAPTER)
    names = {n for n, _ in network.named_parameters()}
    assert not any(n.startswith(("conv", "down", "mid", "up")) for n in names)
    unet = network._unet[0]
    own = {n: p.clone() for n, p in unet.named_parameters() if "_ip" not in n and "hid" not in n}
    before = value(network)
    fit(ADAPTER, network, same, 10, 1e-2, tmp_path, 0)
    tensors, _ = RunFolder(tmp_path / ADAPTER, {}).newest_checkpoint()
    state = {k[6:]: v for k, v in tensors.items() if k.startswith("theta/")}
    network.load_state_dict(state)
    assert value(network) < before
    assert all(torch.equal(dict(unet.named_parameters())[n], p) for n, p in own.items())


def test_it_begins_as_the_bases_own_keys_and_values(start, tmp_path):
    network = parts_from(start, tmp_path, anew=True).new(ADAPTER)
    unet = network._unet[0]
    own = unet.mid_block.attentions[0].transformer_blocks[0].attn2
    assert torch.equal(own.processor.to_k_ip[0].weight, own.to_k.weight)
    assert len(network.attention) == sum(
        n.endswith("attn2.processor") for n in unet.attn_processors
    )


def test_a_batch_shows_other_pictures_of_the_same_drawing(start, loss, tmp_path):
    """Half of the rows are drawings that the base never learnt; some prompts are empty."""
    asked = {}

    def network(x_t, t, text, image):
        asked.update(text=text, image=image)
        return x_t

    seen = []
    for seed in range(12):
        loss(network, torch.Generator().manual_seed(seed))
        B, V, E = asked["image"].shape
        assert (B, E) == (ip_adapter.BATCH, ip_adapter.EMBEDDING)
        assert 1 <= V <= ip_adapter.MOST
        seen += asked["image"].abs().sum((1, 2)).eq(0).tolist()
    assert 0.05 < np.mean(seen) < 0.16  # 576 rows at 10 %: 4 standard deviations are 0.05


def test_diffusers_opens_what_is_published(start, tmp_path):
    """The same answers as the network that trained, in half precision's rounding."""
    network = parts_from(start, tmp_path, anew=True).new(ADAPTER)
    words = publish.read("clip", start).eval()
    publish.publish_adapter(network, words, tmp_path / "weights")
    model = load(str(start / "model"))
    model.pipeline.load_ip_adapter(
        tmp_path / "weights" / "ip_adapter", "", "ip_adapter.safetensors"
    )
    rng = torch.Generator().manual_seed(0)
    x, image = torch.randn(2, 8, 16, 16, generator=rng), torch.randn(2, 3, 96, generator=rng)
    text, t = torch.randn(2, 24, 128, generator=rng), torch.tensor([5, 900])
    with torch.no_grad():
        theirs = model.denoiser(x, t, text, added_cond_kwargs={"image_embeds": [image]}).sample
        ours = network(x, t, text, image)
    torch.testing.assert_close(theirs, ours, rtol=0, atol=0.01)
    assert publish.read_adapter(tmp_path / "weights").keys() == network.file().keys()
    with pytest.raises(UserError, match="--anew"):
        publish.read_adapter(start)


def test_the_shipped_adapter_moves_the_shipped_base_by_its_pictures_alone():
    """Intact (its manifest is checked), opened by diffusers, and read only where pictures are."""
    model = load("mini")
    x, t = (
        torch.randn(1, 8, 16, 16, generator=torch.Generator().manual_seed(0)),
        torch.tensor([500]),
    )
    text = torch.zeros(1, 24, 128)
    with torch.no_grad():
        base = model.denoiser(x, t, text).sample
        model.pipeline.load_ip_adapter(ip_adapter_folder(), "", ADAPTER_FILE)
        image = torch.ones(1, 1, 96)
        shown = model.denoiser(x, t, text, added_cond_kwargs={"image_embeds": [image]}).sample
        model.pipeline.set_ip_adapter_scale(0.0)
        off = model.denoiser(x, t, text, added_cond_kwargs={"image_embeds": [image]}).sample
    torch.testing.assert_close(off, base, rtol=0, atol=1e-5)
    assert float((shown - base).norm() / base.norm()) > 0.01


def test_the_published_encoder_sees_what_the_mini_clip_sees(start, tmp_path):
    """CLIP's own normalization and the mini's give one embedding."""
    words = publish.read("clip", start).eval()
    publish.publish_adapter(parts_from(start, tmp_path, anew=True).new(ADAPTER), words, tmp_path)
    model = load(str(start / "model"))
    model.pipeline.load_ip_adapter(tmp_path / "ip_adapter", "", "ip_adapter.safetensors")
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    theirs, _ = model.pipeline.encode_image([Image.fromarray(p) for p in pictures], "cpu", 1)
    ours = ip_adapter.embeddings(words, pictures)
    assert (theirs - ours).abs().max() < 0.01 * ours.abs().max()


def test_quality_asks_whether_pictures_follow(start, tmp_path, monkeypatch):
    """Of one subject: the adapter's and the base's DINO, class, scene, and gain in nats."""
    network = parts_from(start, tmp_path, anew=True).new(ADAPTER)
    shutil.copytree(start / "model", tmp_path / "model")
    publish.publish_adapter(network, publish.read("clip", start).eval(), tmp_path)
    monkeypatch.setattr(quality, "SCALES", (1.0,))
    name, subject = next(iter(subjects().items()))
    found = quality.image_prompts(tmp_path, seeds=1, steps=1, chosen={name: subject})["1"]
    assert set(found) == {"dino", "dino_base", "class_right", "scene_right", "gain"}
    assert 0 <= found["class_right"] <= 1
    assert found["gain"] != 0
