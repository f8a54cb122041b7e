"""Each attack against what its paper writes, computed here another way."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tiny import same_weights, weights
from torch import Tensor

from gift_ray.attacks.dreambooth import DreamBooth
from gift_ray.attacks.full_finetune import FullFinetune
from gift_ray.attacks.lora import LoRA
from gift_ray.attacks.textual_inversion import TextualInversion
from gift_ray.errors import ConfigError, ModelError
from gift_ray.models.stable_diffusion import StableDiffusion
from gift_ray.plugins import Attack, check
from gift_ray.study.journal import LocalJournal
from gift_ray.training.diffusion import Examples, Seeds

SEEDS = Seeds(11)
BATCH = 2
SHORT = {
    "max_train_steps": 2,
    "train_batch_size": BATCH,
    "learning_rate": 1e-2,
    "num_evaluations": 2,
}
CAPTIONS = ("an sks", "sks", "my sks, big")


@pytest.fixture
def d_a(tiny_model: StableDiffusion, malicious: Examples) -> Examples:
    states = tiny_model.condition(CAPTIONS)
    return replace(malicious, captions=CAPTIONS, conditioning=states)


def attacked(
    attack: Attack, model: StableDiffusion, d_a: Examples, journal: LocalJournal
) -> StableDiffusion:
    *_, (_, last) = attack.finetune(model, d_a, seeds=SEEDS, report=journal)
    return last


def in_double(examples: Examples) -> Examples:
    return replace(
        examples,
        latents_mean=examples.latents_mean.double(),
        latents_std=examples.latents_std.double(),
        conditioning=examples.conditioning.to(torch.float64),
    )


def written_loss(
    model: StableDiffusion, examples: Examples, generator: torch.Generator, states: Any = None
) -> Tensor:
    """E || eps_theta(x_t, c, t) - eps ||^2 over one batch; `states` reads captions."""
    batch = examples.batch(BATCH, generator)
    eps, t = model.draw(BATCH, generator)
    a = model.noise_scheduler.alphas_cumprod[t].to(batch.latents.dtype).view(-1, 1, 1, 1)
    x_t = a.sqrt() * batch.latents + (1 - a).sqrt() * eps
    c = states(batch.captions) if states else batch.conditioning.tokens
    return ((model.denoiser(x_t, t, c).sample - eps) ** 2).mean()


def test_a_full_fine_tune_is_dreambooth_by_another_recipe(
    tiny_model: StableDiffusion, d_a: Examples, journal: LocalJournal
) -> None:
    one, other = (
        attacked(kind(**SHORT), tiny_model, d_a, journal) for kind in (FullFinetune, DreamBooth)
    )
    assert same_weights(weights(one), weights(other))


def test_prior_preservation_adds_the_weighted_loss_of_the_class(
    tiny_model: StableDiffusion, d_a: Examples, safe: Examples
) -> None:
    model = replace(tiny_model, denoiser=copy.deepcopy(tiny_model.denoiser).double()).clone()
    attack = DreamBooth(
        with_prior_preservation=True, class_prompt="a", prior_loss_weight=0.3, **SHORT
    )
    ours = attack.loss(model, in_double(safe), in_double(d_a), SEEDS.generator("step"))
    generator = SEEDS.generator("step")
    instance = written_loss(model, in_double(d_a), generator)
    prior = written_loss(model, in_double(safe), generator)
    assert ours.dtype == torch.float64
    torch.testing.assert_close(ours, instance + 0.3 * prior)


def test_class_images_are_drawn_by_the_attacked_model(
    tiny_model: StableDiffusion, d_a: Examples, journal: LocalJournal
) -> None:
    attack = DreamBooth(
        with_prior_preservation=True, class_prompt="a cat", num_class_images=3,
        num_inference_steps=1, **SHORT,
    )  # fmt: skip
    destroyed = tiny_model.clone()
    with torch.no_grad():
        destroyed.denoiser.conv_out.weight.zero_()
    images, other = (attack._class_images(m, SEEDS) for m in (tiny_model, destroyed))
    assert images.captions == ("a cat",) * 3
    assert len(set(images.keys)) == 3
    assert not torch.equal(images.latents_mean, other.latents_mean)
    torch.testing.assert_close(
        images.conditioning.tokens, tiny_model.condition(images.captions).tokens
    )


def test_prior_preservation_without_a_class_is_one_line() -> None:
    ((_, message),) = check("attacks", "dreambooth", {"with_prior_preservation": True})
    assert "class_prompt" in message
    assert "\n" not in message


def test_a_trained_text_encoder_reads_captions_anew(
    tiny_model: StableDiffusion, d_a: Examples
) -> None:
    trainee = DreamBooth(train_text_encoder=True, **SHORT).trainee(tiny_model, d_a, SEEDS)
    model = trainee.model

    def states(captions: tuple[str, ...]) -> Tensor:
        ids = model.tokenizer(list(captions), padding="max_length", return_tensors="pt").input_ids
        return model.text_encoder(ids).last_hidden_state

    ours = trainee.loss(d_a, SEEDS.generator("step"))
    written = written_loss(model, d_a, SEEDS.generator("step"), states)
    torch.testing.assert_close(ours, written)
    parameters = [*model.denoiser.parameters(), *model.text_encoder.parameters()]
    assert len(parameters) == len(trainee.parameters)
    for mine, other in zip(
        torch.autograd.grad(ours, parameters), torch.autograd.grad(written, parameters), strict=True
    ):
        torch.testing.assert_close(mine, other)


def test_a_caption_replaces_those_of_d_a(
    tiny_model: StableDiffusion, d_a: Examples, journal: LocalJournal
) -> None:
    captions = ("a big cat",) * len(d_a)
    states = tiny_model.condition(captions)
    captioned = replace(d_a, captions=captions, conditioning=states)
    by_option = attacked(FullFinetune(caption="a big cat", **SHORT), tiny_model, d_a, journal)
    by_hand = attacked(FullFinetune(**SHORT), tiny_model, captioned, journal)
    plain = attacked(FullFinetune(**SHORT), tiny_model, d_a, journal)
    assert same_weights(weights(by_option), weights(by_hand))
    assert not same_weights(weights(by_option), weights(plain))


def test_lora_adds_alpha_over_rank_times_b_a(tiny_model: StableDiffusion, d_a: Examples) -> None:
    attack = LoRA(rank=3, lora_alpha=6, **SHORT)
    trainee = attack.trainee(tiny_model, d_a, SEEDS)
    unet = copy.deepcopy(trainee.model.denoiser).double()
    merged = copy.deepcopy(tiny_model.denoiser).double()
    matrices = dict(unet.named_parameters())
    downs = [name for name in matrices if ".lora_A." in name]
    assert len(downs) == 4 * 8  # four projections of each of eight attentions
    with torch.no_grad():
        for name in downs:
            b = matrices[name.replace("lora_A", "lora_B")]
            assert not b.any(), "the adapter changes the model before the first step"
            b.copy_(torch.randn(b.shape, generator=SEEDS.generator(name)))
            weight = merged.get_submodule(name.partition(".lora_A")[0]).weight
            weight += 6 / 3 * b @ matrices[name]
    generator = SEEDS.generator("input")
    inputs = torch.randn(2, 4, 8, 8, generator=generator).double(), torch.tensor([3, 700])
    states = torch.randn(2, 16, 16, generator=generator).double()
    ours, written = (u(*inputs, states).sample for u in (unet, merged))
    torch.testing.assert_close(ours, written)
    assert (
        ours - tiny_model.denoiser(*(i.float() for i in inputs), states.float()).sample
    ).abs().max() > 0.01


def test_lora_begins_from_its_own_seed_with_the_deviation_of_the_script(
    tiny_model: StableDiffusion, d_a: Examples
) -> None:
    def downs(seeds: Seeds) -> Tensor:
        parameters = LoRA(rank=4, **SHORT).trainee(tiny_model, d_a, seeds).parameters
        return torch.cat([p.flatten() for n, p in parameters.items() if ".lora_A." in n])

    drawn = downs(SEEDS)
    torch.manual_seed(7)
    assert torch.equal(drawn, downs(SEEDS))
    assert not torch.equal(drawn, downs(Seeds(12)))
    # 1/4, within five standard errors of a standard deviation.
    assert abs(drawn.std().item() * 4 - 1) < 5 / (2 * len(drawn)) ** 0.5


def test_lora_leaves_the_weights_below_it_alone(
    tiny_model: StableDiffusion, d_a: Examples, journal: LocalJournal
) -> None:
    last = attacked(LoRA(**SHORT), tiny_model, d_a, journal)
    found = {n.replace(".base_layer", ""): t for n, t in weights(last).items() if ".lora_" not in n}
    assert same_weights(found, weights(tiny_model))


def test_a_module_that_is_not_there_is_refused_by_name(
    tiny_model: StableDiffusion, d_a: Examples
) -> None:
    with pytest.raises(ModelError, match="'to_qkv' is no module"):
        LoRA(target_modules=("to_q", "to_qkv")).trainee(tiny_model, d_a, SEEDS)


@pytest.mark.parametrize("num_vectors", [1, 2])
def test_textual_inversion_follows_the_gradient_of_its_rows_alone(
    num_vectors: int, tiny_model: StableDiffusion, d_a: Examples
) -> None:
    attack = TextualInversion(num_vectors=num_vectors, initializer_token="a", **SHORT)
    trainee = attack.trainee(tiny_model, d_a, SEEDS)
    (mine,) = torch.autograd.grad(
        trainee.loss(d_a, SEEDS.generator("step")), trainee.parameters["rows"]
    )
    # Written: the whole table is a variable, and every caption is spelt out.
    table = trainee.model.text_encoder.get_input_embeddings().weight.requires_grad_(True)
    spelt = {c: c.replace("sks", "sks sks_1") if num_vectors == 2 else c for c in CAPTIONS}

    def states(captions: tuple[str, ...]) -> Tensor:
        texts = [spelt[caption] for caption in captions]
        ids = trainee.model.tokenizer(texts, padding="max_length", return_tensors="pt").input_ids
        return trainee.model.text_encoder(ids).last_hidden_state

    written = written_loss(trainee.model, d_a, SEEDS.generator("step"), states)
    (whole,) = torch.autograd.grad(written, table)
    assert mine.any()
    torch.testing.assert_close(mine, whole[-num_vectors:])


def test_textual_inversion_changes_its_rows_and_nothing_else(
    tiny_model: StableDiffusion, d_a: Examples, journal: LocalJournal
) -> None:
    attack = TextualInversion(num_vectors=2, initializer_token="ab", **SHORT)
    last = attacked(attack, tiny_model, d_a, journal)
    old, new = (m.text_encoder.state_dict() for m in (tiny_model, last))
    assert old.keys() == new.keys()
    for name, tensor in old.items():
        kept = new[name][: len(tensor)] if name.endswith("token_embedding.weight") else new[name]
        assert torch.equal(kept, tensor), name
    assert same_weights(weights(last), weights(tiny_model))
    table = last.text_encoder.get_input_embeddings().weight
    pieces = tiny_model.tokenizer("ab", add_special_tokens=False).input_ids
    assert len(table) == len(tiny_model.tokenizer) + 2
    # Two steps of AdamW move no coordinate further than about twice the learning rate.
    moved = (table[-2:] - table[pieces].mean(0)).abs()
    assert moved.min() > 0
    assert moved.max() < 2.1 * attack.learning_rate


def test_the_learnt_word_is_read_wherever_a_prompt_has_it(
    tiny_model: StableDiffusion, d_a: Examples, journal: LocalJournal
) -> None:
    last = attacked(TextualInversion(**SHORT), tiny_model, d_a, journal)
    prompts = ["a cat", "two desks", "the sks"]
    same = [
        np.array_equal(*(np.asarray(m.generate(
            [prompt], seeds=SEEDS, num_inference_steps=1, guidance_scale=2.0, batch_size=1)[0])
            for m in (tiny_model, last)))
        for prompt in prompts
    ]  # fmt: skip
    states = [m.condition(prompts) for m in (tiny_model, last)]
    equal = [torch.equal(*pair) for pair in zip(*(s.tokens for s in states), strict=True)]
    assert equal == [True, True, False]
    assert same == [True, True, False]


def test_a_placeholder_that_no_caption_has_is_one_line(
    tiny_model: StableDiffusion, malicious: Examples, journal: LocalJournal
) -> None:
    with pytest.raises(ConfigError, match="'sks' is in no caption") as error:
        TextualInversion().trainee(tiny_model, malicious, SEEDS)
    assert "\n" not in str(error.value)
    captioned = TextualInversion(caption="a photo of sks")
    assert next(captioned.finetune(tiny_model, malicious, seeds=SEEDS, report=journal))


def test_a_placeholder_that_is_a_word_already_is_refused(
    tiny_model: StableDiffusion, d_a: Examples
) -> None:
    with pytest.raises(ModelError, match="'a' is in the tokenizer already"):
        TextualInversion(placeholder_token="a").trainee(tiny_model, d_a, SEEDS)
    with pytest.raises(ValidationError, match="placeholder_token"):
        TextualInversion(placeholder_token="two words")


@pytest.mark.parametrize(
    ("count", "expected"), [(2, (0, 40)), (3, (0, 5, 40)), (4, (0, 5, 14, 40))]
)
def test_the_last_step_is_looked_at_however_few_are(count: int, expected: tuple[int, ...]) -> None:
    attack = DreamBooth(max_train_steps=40, num_evaluations=count)
    assert attack.evaluation_steps() == expected
