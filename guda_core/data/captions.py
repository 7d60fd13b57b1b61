"""How a style is said: captions, anchor captions and prompts of a group set. Nothing else in the project knows it.

    caption   content + the group's own words          "cat, artistic style featuring flat colours, no outlines"
    anchor    the same content + another group's words  "cat, artistic style featuring fine dark outline, ..."
    content   the caption without any group's words     "cat"

A group's words are descriptors, of which each caption draws some (`StyleCaptions`, as in the GUDA paper), or one phrase
such as "in the Cubism style" or "by NAME" (`PhraseCaptions`). Or a set has no captions at all (`NoCaptions`), as the
classes of an unconditional model. The set's template says which: "{object} with {descriptors}", "{content}, {phrase}",
or "". Whatever is drawn comes from the generator that is handed in: the same generator, the same captions.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from guda_core.data.dataset import Item, described
from guda_core.records import GroupSet

if TYPE_CHECKING:
    from torch import Generator


class Captioner(ABC):
    """Writes the captions of one group set."""

    def __init__(self, group_set: GroupSet) -> None:
        self.group_set = group_set

    @abstractmethod
    def phrases(self, group: str) -> tuple[str, ...]:
        """All words for a group's style, () where there are none. Their text features tell how near two groups are."""

    @abstractmethod
    def content(self, item: Item) -> str:
        """What the picture shows, without any group's words; "" where that is not known."""

    @abstractmethod
    def anchor(self, item: Item, group: str, rng: Generator) -> str:
        """The item's caption with the words of `group` in place of its own group's."""

    @abstractmethod
    def prompt(self, item: Item) -> str:
        """A caption of the item in which nothing is left to chance."""

    @abstractmethod
    def blend(self, item: Item, groups: Sequence[str], rng: Generator) -> str:
        """The item's content with words of several groups in turn."""

    def caption(self, item: Item, rng: Generator) -> str:
        """The item's caption in training."""
        return self.anchor(item, item.group, rng)

    def examples(self) -> list[str]:
        """Prompts that the model can read, one for each object trained on and each group; [] where it reads none.
        A picture's likeliest caption is looked for among them."""
        ids, concepts = self.group_set.groups, self.group_set.train_objects or ("",)
        prompts = [self.prompt(described(g, c)) for c in concepts for g in ids]
        return [p for p in dict.fromkeys(prompts) if p]


def draw(items: Sequence[str], k: int, rng: Generator) -> list[str]:
    """k different items, in random order."""
    import torch

    order: list[int] = torch.randperm(len(items), generator=rng)[:k].tolist()
    return [items[i] for i in order]


class StyleCaptions(Captioner):
    """The object with `descriptors_per_caption` random descriptors of the group; never the group's name."""

    def phrases(self, group: str) -> tuple[str, ...]:
        return self.group_set.groups[group].descriptors

    def content(self, item: Item) -> str:
        return item.concept.replace("-", " ")

    def write(self, item: Item, descriptors: Sequence[str]) -> str:
        """The caption with these descriptors."""
        content = self.content(item)
        text = self.group_set.caption.format(object=content, descriptors=", ".join(descriptors))
        return text if content else text.strip(" ,")

    def anchor(self, item: Item, group: str, rng: Generator) -> str:
        return self.write(item, draw(self.phrases(group), self.group_set.descriptors_per_caption, rng))

    def prompt(self, item: Item) -> str:
        return self.write(item, self.phrases(item.group)[: self.group_set.descriptors_per_caption])

    def blend(self, item: Item, groups: Sequence[str], rng: Generator) -> str:
        """With descriptors of the groups in turn: `descriptors_per_caption` in all, no doubles."""
        lists = [draw(self.phrases(g), 99, rng) for g in groups]
        chosen: list[str] = []
        while len(chosen) < self.group_set.descriptors_per_caption:
            pool = lists[len(chosen) % len(lists)]
            chosen.append(next(d for d in pool if d not in chosen))
        return self.write(item, chosen)


class PhraseCaptions(Captioner):
    """Content and one phrase a group: "a cat on a wall, in the Cubism style". Nothing is drawn.

    The content is the caption as written beside the picture, else the concept. A written caption that says the group's
    phrase already (a trigger word) is the caption itself, and its content is what is left without the phrase. Where
    nothing is known of the content, caption and anchor are the phrase alone.
    """

    def phrases(self, group: str) -> tuple[str, ...]:
        return (self.group_set.groups[group].phrase,)

    def _own_phrase(self, item: Item) -> re.Pattern[str]:
        """The phrase of the item's group as whole words, in any case, its accents spelled in either of two ways."""
        (phrase,) = self.phrases(item.group)
        ways = dict.fromkeys((phrase, *(unicodedata.normalize(form, phrase) for form in ("NFC", "NFD"))))
        return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, ways))})(?!\w)", re.IGNORECASE)

    def content(self, item: Item) -> str:
        parts = self._own_phrase(item).split(item.caption) if item.caption else [item.concept.replace("-", " ")]
        return ", ".join(p for p in (part.strip(" ,") for part in parts) if p)

    def _with(self, item: Item, phrase: str) -> str:
        """The item's caption with this phrase; it stands where its own stood, else where the template has it."""
        own = self._own_phrase(item)
        if own.search(item.caption):
            return own.sub(lambda found: phrase, item.caption)
        content = self.content(item)
        return self.group_set.caption.format(content=content, phrase=phrase) if content else phrase

    def anchor(self, item: Item, group: str, rng: Generator) -> str:
        return self._with(item, *self.phrases(group))

    def prompt(self, item: Item) -> str:
        return self._with(item, *self.phrases(item.group))

    def blend(self, item: Item, groups: Sequence[str], rng: Generator) -> str:
        return self._with(item, ", ".join(p for g in groups for p in self.phrases(g)))


class NoCaptions(Captioner):
    """For models without prompts: every caption is the empty prompt."""

    def phrases(self, group: str) -> tuple[str, ...]:
        return ()

    def content(self, item: Item) -> str:
        return ""

    def anchor(self, item: Item, group: str, rng: Generator) -> str:
        return ""

    def prompt(self, item: Item) -> str:
        return ""

    def blend(self, item: Item, groups: Sequence[str], rng: Generator) -> str:
        return ""


def captioner_of(group_set: GroupSet) -> Captioner:
    """What writes the captions of a group set, by its template."""
    if not group_set.caption:
        return NoCaptions(group_set)
    kind = StyleCaptions if "{descriptors}" in group_set.caption else PhraseCaptions
    return kind(group_set)


def words_sha256(group_set: GroupSet) -> str:
    """SHA-256 of how the set's captions are written: the template and all groups' words, in order."""
    words = {g: captioner_of(group_set).phrases(g) for g in group_set.groups}
    told = json.dumps([group_set.caption, group_set.descriptors_per_caption, list(words.items())])
    return hashlib.sha256(told.encode()).hexdigest()


def captions_sha256(group_set: GroupSet, items: Sequence[Item]) -> str:
    """SHA-256 of all that the captions of these pictures are made of: the words, and what each is said to show."""
    told = [words_sha256(group_set), *(captioner_of(group_set).prompt(i) for i in items)]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def drop(captions: Sequence[str], probability: float, rng: Generator) -> list[str]:
    """Each caption replaced by the empty prompt with the given probability (classifier-free guidance's training)."""
    import torch

    gone = torch.rand(len(captions), generator=rng, dtype=torch.float32) < probability
    return ["" if g else c for c, g in zip(captions, gone.tolist(), strict=True)]
