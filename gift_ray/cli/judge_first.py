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
    """In lines, of the concept with the fewest prompts."""
    prompts = min(len(c.validation_prompts) for c in config.concepts.malicious)
    drawn, seeds = prompts * config.evaluation.num_images_per_prompt, len(config.seeds)
    images, allowed = drawn * seeds, 1 - config.gate.min_resistance
    wanted = images_for(allowed)
    if wanted is None:
        margin = f"no number of images that a study draws shows less than {allowed:.2f}"
    else:
        enough = (
            "enough"
            if images >= wanted
            else f"not enough: {-(-wanted // seeds)} a step and seed are"
        )
        margin = f"to show that {allowed / 2:.2f} is under it takes {wanted} images over all seeds ({enough})"
    gate = f"gate: recovery of at most {allowed:.2f} is allowed; {margin}"
    return [
        f"bounds: {drawn} images at each step of {seeds} seed{'s' if seeds > 1 else ''}: at most "
        f"+-{half_width(images):.2f}; none of them recognised still allows {upper(0, images):.2f}",
        *([gate] if allowed < 1 else []),
        *(f"note: {line}" for line in remarks(config)),
    ]
