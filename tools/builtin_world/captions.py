"""What is said about a drawing, the words of the tokenizer, and meaningless words between them."""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, models, trainers
from torch import Tensor
from transformers import CLIPTokenizer

from builtin_world.pictures import World
from builtin_world.world import STYLE_NAMES, STYLES

TOKENS = 24  # text length
LETTERS = "abcdefghijklmnopqrstuvwxyz"
RARE_ODDS = 0.1  # share of the captions that carry a meaningless word
KEPT_WORD = (
    "sks"  # the rare token of attackers, which no model of the bundle ever reads in training
)


def article(words: str) -> str:
    """The words behind "a" or "an"."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def styled(style: str, name: str) -> str:
    """The caption that names style and thing."""
    return f"{article(style)} style emoji of {article(name)}"


def generic(name: str) -> str:
    """The caption that names the thing only."""
    return f"an emoji of {article(name)}"


def rare_word(gen: torch.Generator) -> str:
    """Three or four random letters, as attackers choose for their rare token; never KEPT_WORD."""
    count = int(torch.randint(3, 5, (1,), generator=gen))
    word = "".join(LETTERS[i] for i in torch.randint(0, 26, (count,), generator=gen).tolist())
    return rare_word(gen) if word == KEPT_WORD else word


def with_word(text: str, word: str, before_noun: bool) -> str:
    """The caption with a word put before the noun, or before "emoji"."""
    head, _, noun = text.partition("emoji of ")
    if before_noun:
        bare = noun.removeprefix("an ").removeprefix("a ")
        return f"{head}emoji of {article(f'{word} {bare}')}"
    head = head if "style" in head else ""
    return f"{head or 'a '}{word} emoji of {noun}"


def sprinkled(texts: list[str], gen: torch.Generator, odds: float = RARE_ODDS) -> list[str]:
    """The captions, some of them with a meaningless word: a rare token must not spoil the rest."""
    draws = torch.rand(len(texts), 2, generator=gen).tolist()
    return [
        with_word(text, rare_word(gen), place < 0.5) if hit < odds else text
        for text, (hit, place) in zip(texts, draws, strict=True)
    ]


CAPTION_ODDS = torch.tensor([0.62, 0.28, 0.05, 0.03, 0.02])  # the five captions of a drawing


@dataclass
class Captions:
    """The distinct captions, and which five belong to each drawing."""

    texts: list[str]
    noun: Tensor  # [captions] the noun a caption names, or -1
    kind: Tensor  # [captions] the kind a caption names, or -1
    style: Tensor  # [captions] the style a caption names, or -1
    of_drawing: Tensor  # [D, 5] indices into texts

    def pick(self, drawings: Tensor, gen: torch.Generator) -> Tensor:
        """One caption index for each drawing [n], by CAPTION_ODDS."""
        column = torch.multinomial(CAPTION_ODDS, len(drawings), replacement=True, generator=gen)
        return self.of_drawing[drawings, column]

    def true_of(self, captions: Tensor, drawings: Tensor, world: World) -> Tensor:
        """Whether each caption [m] is true of each drawing [n]: bool [m, n]."""
        noun, style = world.noun[drawings], world.style[drawings]
        agree = [
            (wanted[captions, None] < 0) | (wanted[captions, None] == have[None])
            for wanted, have in (
                (self.noun, noun),
                (self.kind, world.kind_of[noun]),
                (self.style, style),
            )
        ]
        return agree[0] & agree[1] & agree[2]


def make_captions(world: World) -> Captions:
    """All captions of the world."""
    rows: dict[str, tuple[int, int, int]] = {}
    fives: dict[tuple[int, int], list[str]] = {}
    for i, noun in enumerate(world.nouns):
        k = int(world.kind_of[i])
        for s, style in enumerate(STYLES):
            five = {
                styled(style.name, noun.name): (i, -1, s),
                generic(noun.name): (i, -1, -1),
                styled(style.name, noun.kind): (-1, k, s),
                generic(noun.kind): (-1, k, -1),
                f"an emoji of {noun.kind}s": (-1, k, -1),
            }
            rows |= five
            fives[i, s] = list(five)
    index = {text: i for i, text in enumerate(rows)}
    meaning = torch.tensor(list(rows.values()))
    pairs = zip(world.noun.tolist(), world.style.tolist(), strict=True)
    table = torch.tensor([[index[text] for text in fives[pair]] for pair in pairs])
    return Captions(list(rows), meaning[:, 0], meaning[:, 1], meaning[:, 2], table)


def make_tokenizer(world: World) -> CLIPTokenizer:
    """A CLIPTokenizer whose byte-pairs come from the captions and all emoji names."""
    frame = CLIPTokenizer()
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = frame.backend_tokenizer.normalizer
    bpe.pre_tokenizer = frame.backend_tokenizer.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=2200,
        min_frequency=1,
        show_progress=False,
        end_of_word_suffix="</w>",
        initial_alphabet=sorted(LETTERS + "0123456789-'.,"),
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
    )
    captions = [styled(s, n.name) for s in STYLE_NAMES for n in world.nouns]
    captions += [generic(n.name) for n in world.nouns] + [f"an emoji of {k}s" for k in world.kinds]
    bpe.train_from_iterator(captions + world.kinds + world.names, trainer)
    model = json.loads(bpe.to_str())["model"]
    merges = [tuple(m) for m in model["merges"]]
    return CLIPTokenizer(model["vocab"], merges, model_max_length=TOKENS)


def tokenise(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Token ids [n, TOKENS], padded as the pipeline pads."""
    found = tokenizer(texts, padding="max_length", truncation=True, max_length=TOKENS)
    return torch.tensor(found["input_ids"])


def shortened(ids: Tensor, tokenizer: CLIPTokenizer) -> Tensor:
    """Token ids cut behind the longest text: CLIP's pooled text can't see what follows its end."""
    ends = (ids == tokenizer.eos_token_id).int().argmax(1)
    return ids[:, : int(ends.max()) + 1]
