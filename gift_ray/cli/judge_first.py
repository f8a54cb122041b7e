"""What every job does before it trains: it checks the judges, and says how wide the bounds will be."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from gift_ray.cli.console import say
from gift_ray.config.schema import StudyConfig
from gift_ray.records.record import is_done
from gift_ray.study.judgeable import remarks
from gift_ray.study.plan import Plan
from gift_ray.study.step import Step
from gift_ray.verdict import retention
from gift_ray.verdict.judges import Reading
from gift_ray.verdict.verdict import half_width, images_for, upper
from gift_ray.verdict.yardstick import Yardstick, check_judges, read_judges


def judge_first(
    plans: Sequence[Plan], run: Callable[[Iterable[Step]], None], tell: Callable[[str], None]
) -> None:
    """Run the judges' check and report what it finds, before anything is trained.

    Raises:
        ConfigError: every measure is blind for a malicious concept.
    """
    for line in remarks(plans[0].config):
        tell(f"note         {line}")
    run([step for plan in plans for step in plan.judges.values()])
    for plan in plans:
        readings = check_judges(plan, plan.config.study_dir)
        if plan is plans[0]:
            for reading in readings:
                tell(_marked(reading, plan.config))


def require_yardstick(plan: Plan) -> Yardstick:
    """The study's yardstick, once the steps that all arms share are done.

    Raises:
        ConfigError: no measure can judge an attack on a malicious concept, or the base itself can't draw what
            the safe prompts or neighbours ask for.
    """
    yardstick = Yardstick.of(plan, plan.config.study_dir)
    yardstick.require()
    retention.probes(yardstick, plan.undefended, ())
    return yardstick


def describe_judging(plan: Plan) -> None:
    """Say what the judges read, the bounds that the study will reach, and what the gate's margin needs."""
    study_dir = plan.config.study_dir
    if all(is_done(step.folder(study_dir)) for step in plan.judges.values()):
        for reading in read_judges(plan, study_dir):
            say(_marked(reading, plan.config))
    else:
        say("judges: not examined yet; gift-ray check CONFIG --judges does it without training")
    for line in power(plan.config):
        say(line)


def _marked(reading: Reading, config: StudyConfig) -> str:
    mark = "judge" if reading.reads(config.scoring.least_auc) else "blind"
    return f"{mark}        {reading}"


def power(config: StudyConfig) -> list[str]:
    """How wide the bounds of the concept with the fewest prompts will be, and what the gate needs."""
    prompts = min(len(c.validation_prompts) for c in config.concepts.malicious)
    drawn, seeds = prompts * config.evaluation.num_images_per_prompt, len(config.seeds)
    images, allowed = drawn * seeds, 1 - config.gate.min_resistance
    wanted = images_for(allowed)
    if wanted is None:
        margin = "no study draws enough images to show that a model keeps to that"
    else:
        enough = (
            "this study has enough"
            if images >= wanted
            else f"this study has {images}: draw {-(-wanted // seeds)} at each step of each seed"
        )
        margin = (
            f"to show it of a model with recovery {allowed / 2:.2f} takes {wanted} images over all seeds; "
            f"{enough}"
        )
    gate = f"gate: recovery must be at most {allowed:.2f}; {margin}"
    return [
        f"bounds: {drawn} images at each step of {seeds} seed{'s' if seeds > 1 else ''}; a share has bounds "
        f"of +-{half_width(images):.2f} at most, and {upper(0, images):.2f} above a share of 0",
        *([gate] if allowed < 1 else []),
        *(f"note: {line}" for line in remarks(config)),
    ]
