"""ESD against its equation, derived again here and differentiated by autograd."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from diffusers import DDPMScheduler
from tiny import doubled, doubled_examples, same_weights, weights
from torch import Tensor

from gift_ray.defenses.esd import Esd, erased
from gift_ray.errors import UnitFailed
from gift_ray.models.stable_diffusion import StableDiffusion
from gift_ray.study.journal import LocalJournal
from gift_ray.training.diffusion import Examples, Seeds

SEEDS = Seeds(11)
BATCH = 2
LETTER = {"optimizer": "sgd", "train_batch_size": BATCH, "num_inference_steps": 4}
TRAINED = {
    "esd-x": re.compile(r"\.attn2\."),
    "esd-u": re.compile(r"^(?!time_embedding|conv_norm_out|conv_out)(?!.*attn2)"),
    "esd-x-strict": re.compile(r"\.attn2\.to_[kv]\."),
}


@pytest.fixture(scope="module")
def model(tiny_model: StableDiffusion) -> StableDiffusion:
    return doubled(tiny_model)


@pytest.fixture(scope="module")
def d_m(malicious: Examples) -> Examples:
    return doubled_examples(malicious)


def trained(
    esd: Esd, model: StableDiffusion, d_m: Examples, safe: Examples, journal: LocalJournal
) -> StableDiffusion:
    return esd.immunize(model, [d_m], safe, seeds=SEEDS, report=journal)


def test_eta_is_the_papers() -> None:
    concept, null = torch.tensor([3.0]), torch.tensor([1.0])
    # Steered by eta times the concept's direction, 3 - 1, past the unconditional prediction.
    assert erased(concept, null, 0.0).item() == 1.0
    assert erased(concept, null, 1.0).item() == -1.0
    assert erased(concept, null, 2.0).item() == -3.0
    # The authors' later code: eps(c) - eta' (eps(c) - eps(null)), where eta' = 2 is eta = 1.
    assert erased(concept, null, 1.0) == concept - 2.0 * (concept - null)


def test_the_target_does_not_depend_on_what_the_unet_predicts() -> None:
    """eps = sqrt(a) v + sqrt(1 - a) x_t: formed of v and turned into eps, it is formed of eps."""
    concept, null, x_t = (torch.randn(5, generator=SEEDS.generator("v", i)) for i in range(3))
    signal, sigma = 0.6, 0.8
    from_v = signal * erased(concept, null, 1.7) + sigma * x_t
    eps = [signal * v + sigma * x_t for v in (concept, null)]
    torch.testing.assert_close(from_v, erased(*eps, 1.7))


def written_sample(
    model: StableDiffusion, x_t: Tensor, c: Tensor, null: Tensor, done: int, n: int, scale: float
) -> tuple[Tensor, Tensor]:
    """DDIM (Song et al. 2021, Eq. 12, sigma = 0) from noise, stopped after some steps: (x_t, t)."""
    alphas = model.noise_scheduler.alphas_cumprod.double()
    stride = len(alphas) // n
    steps = [stride * i + 1 for i in range(n)][::-1]
    for t in steps[:done]:
        where = torch.tensor([t] * len(x_t))
        nothing = null.expand_as(c)
        with torch.no_grad():
            eps_c, eps_0 = (model.denoiser(x_t, where, s).sample for s in (c, nothing))
        eps = eps_0 + scale * (eps_c - eps_0)
        before = alphas[t - stride]
        x_0 = (x_t - (1 - alphas[t]).sqrt() * eps) / alphas[t].sqrt()
        x_t = before.sqrt() * x_0 + (1 - before).sqrt() * eps
    return x_t, torch.tensor([steps[done]] * len(x_t))


@pytest.mark.parametrize("done", [0, 1, 3])
def test_partial_denoising_is_a_ddim_loop_cut_short(
    done: int, model: StableDiffusion, d_m: Examples
) -> None:
    noise = model.draw(BATCH, SEEDS.generator("x"))[0].double()
    null = model.condition([""]).to(torch.float64)
    concept = d_m.conditioning[:BATCH]
    found, times = model.partially_denoised(
        noise, concept, null, steps=done, num_inference_steps=4, guidance_scale=3.0
    )
    expected, t = written_sample(model, noise, concept.tokens, null.tokens, done, 4, 3.0)
    # The sampler keeps its alphas in single precision.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert torch.equal(times, t)


@pytest.mark.parametrize("x_t", ["on_policy", "off_policy"])
@pytest.mark.parametrize("method", list(TRAINED))
def test_steps_descend_the_written_loss(
    method: str, x_t: str, model: StableDiffusion, d_m: Examples, safe: Examples,
    journal: LocalJournal,
) -> None:  # fmt: skip
    """Two steps: at the second the model is no longer the base, which target and x_t must tell."""
    rate, eta = 0.5, 1.5
    esd = Esd(
        **LETTER, train_method=method, x_t=x_t, negative_guidance=eta, learning_rate=rate,
        max_train_steps=2, guidance_scale=2.0,
    )  # fmt: skip
    by_hand = doubled(model)
    psi = {n: p for n, p in by_hand.denoiser.named_parameters() if TRAINED[method].search(n)}
    null = model.condition([""]).tokens.double()
    losses = []
    for step in (1, 2):
        generator = SEEDS.generator("esd", step)
        batch = d_m.batch(BATCH, generator)
        noise, t = model.draw(BATCH, generator)
        c = batch.conditioning.tokens
        if x_t == "on_policy":
            done = int(torch.randint(0, 4, (), generator=generator))
            noisy, t = written_sample(by_hand, noise.double(), c, null, done, 4, 2.0)
        else:
            a = model.noise_scheduler.alphas_cumprod[t].double().view(-1, 1, 1, 1)
            noisy = a.sqrt() * batch.latents + (1 - a).sqrt() * noise
        with torch.no_grad():
            e_c, e_0 = (model.denoiser(noisy, t, s).sample for s in (c, null.expand_as(c)))
        loss = ((by_hand.denoiser(noisy, t, c).sample - (e_0 - eta * (e_c - e_0))) ** 2).mean()
        gradients = torch.autograd.grad(loss, list(psi.values()))
        with torch.no_grad():
            for parameter, gradient in zip(psi.values(), gradients, strict=True):
                parameter -= rate * gradient
        losses.append(loss.item())

    result, before = weights(trained(esd, model, d_m, safe, journal)), weights(model)
    for name, expected in weights(by_hand).items():
        torch.testing.assert_close(result[name], expected, rtol=0, atol=1e-6)
    assert {n for n in before if not torch.equal(result[n], before[n])} == set(psi)
    assert [row["loss"] for row in journal.rows] == pytest.approx(losses, rel=1e-5)
    assert [row["images_seen"] for row in journal.rows] == [BATCH, 2 * BATCH]


def test_the_concept_is_predicted_as_what_leads_away_from_it(
    model: StableDiffusion, d_m: Examples, safe: Examples, journal: LocalJournal
) -> None:
    esd = Esd(
        **LETTER | {"optimizer": "adamw"}, negative_guidance=2.0, learning_rate=1e-2,
        max_train_steps=15, x_t="off_policy",
    )  # fmt: skip
    edited = trained(esd, model, d_m, safe, journal)
    null = model.condition([""]).tokens.double()

    @torch.no_grad()
    def errors(of: StableDiffusion) -> tuple[float, float, float]:
        """Held-out squared distances of eps(c): to the target, to the base's; and the latter's to
        the target's direction: their inner product."""
        generator = Seeds(5).generator("held out")
        batch = d_m.batch(len(d_m), generator)
        x_t, t = model.draw(len(d_m), generator)
        c = batch.conditioning.tokens
        e_c, e_0 = (model.denoiser(x_t.double(), t, s).sample for s in (c, null.expand_as(c)))
        target = e_0 - 2.0 * (e_c - e_0)
        now = of.denoiser(x_t.double(), t, c).sample
        towards = ((now - e_c) * (target - e_c)).mean()
        return (
            float((now - target).square().mean()),
            float((now - e_c).square().mean()),
            float(towards),
        )

    assert errors(model)[1:] == (0.0, 0.0)
    to_target, moved, towards = errors(edited)
    assert to_target < 0.8 * errors(model)[0]
    assert moved > 0
    assert towards > 0
    assert journal.rows[-1]["mse_base"] > journal.rows[0]["mse_base"] == 0


def test_the_concept_is_named_by_a_prompt_or_by_its_captions(
    tiny_model: StableDiffusion, malicious: Examples, safe: Examples, journal: LocalJournal
) -> None:
    states = tiny_model.condition(["a cat"] * len(malicious))
    captioned = replace(malicious, conditioning=states)
    short = {"max_train_steps": 2, "num_inference_steps": 3, "learning_rate": 1e-3}
    by_caption = weights(trained(Esd(**short), tiny_model, captioned, safe, journal))
    for prompt, same in (("a cat", True), ("a dog", False)):
        esd = Esd(**short, erase_prompt=prompt)
        found = weights(trained(esd, tiny_model, malicious, safe, journal))
        assert same_weights(found, by_caption) == same


def test_a_v_prediction_model_is_erased_too(
    tiny_model: StableDiffusion, malicious: Examples, safe: Examples, journal: LocalJournal
) -> None:
    config = dict(tiny_model.noise_scheduler.config) | {"prediction_type": "v_prediction"}
    model = replace(tiny_model, noise_scheduler=DDPMScheduler.from_config(config))
    esd = Esd(**LETTER | {"optimizer": "adamw"}, learning_rate=1e-2, max_train_steps=12)
    trained(esd, model, malicious, safe, journal)
    losses = [row["loss"] for row in journal.rows]
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])


def test_leaving_the_finite_numbers_is_a_failed_unit(
    tiny_model: StableDiffusion, malicious: Examples, safe: Examples, journal: LocalJournal
) -> None:
    esd = Esd(**LETTER, learning_rate=1e30, max_train_steps=8)
    with pytest.raises(UnitFailed, match=r"step \d+: .*loss.* not finite; lower learning_rate"):
        trained(esd, tiny_model, malicious, safe, journal)
