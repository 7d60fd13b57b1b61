"""The door for prompts and for the options of a generation: what is refused, and what of a prompt is not read.

A prompt is never changed but for its white space. What a model cannot read of it is told: characters that its tokenizer
does not know (another script, an emoji, in a small vocabulary even a full stop), its own marks such as <|endoftext|>
typed as text, and the weights and tags of other programs, which mean nothing here.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from guda_core.errors import OptionError, PromptError

MAX_PROMPT = 2000  # characters: about the 512 tokens that Stable Diffusion 3 and FLUX read
SEEDS, STEPS, GUIDANCE = (0, 2**32 - 1), (1, 200), (1.0, 20.0)
MOST_NAMED = 8  # parts named in a sentence

SYNTAX = re.compile(
    r"""
      <[a-z]\w*:[^<>]*>                         # <lora:name:0.8>, <hypernet:name:1>
    | \(+ [^()]* : \s* [+-]? (?: \d++ (?:\.\d++)? | \.\d++ ) \s* \)+   # (rocket:1.3)
    | \({2,} [^()]* \){2,}                      # ((rocket))
    | \( [^()]+ \) (?: \d*\.\d+ | [+-]+ )       # (rocket)1.3, (rocket)++
    | \[+ [^\[\]]* \]+                          # [rocket], [cat:dog:0.5], [cat|dog]
    | \{+ [^{}]+ \}+                            # {rocket}, {cat|dog}
    | (?<!\S) \w{2,} (?: \+{2,} | -{2,} )(?!\w) # rocket++
    | \b embedding:\S+                          # embedding:name
    | __ [\w/-]+ __                             # __wildcard__
    | (?<!\S) BREAK (?!\S)                      # parts of a prompt that other programs read apart
    """,
    re.VERBOSE,
)
BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # a byte of a character that SentencePiece does not know


def check_prompt(prompt: str) -> str:
    """The prompt with white space (newlines and tabs too) reduced to single spaces; "" is allowed.

    Raises:
        PromptError: it is not text, longer than `MAX_PROMPT`, or holds NUL, control or half (surrogate) characters.
    """
    if not isinstance(prompt, str):
        raise PromptError("The prompt must be text.")
    if (n := len(prompt.strip())) > MAX_PROMPT:
        raise PromptError(
            f"A prompt or caption may have {MAX_PROMPT:,} characters at most; this one has {n:,}. Shorten it."
        )
    for c in prompt:
        if unicodedata.category(c) in ("Cc", "Cs") and c not in "\t\r\n":
            raise PromptError(f"The prompt holds the control character U+{ord(c):04X}. Type it in again without it.")
    return " ".join(prompt.split())


def check_options(*, seed: int, steps: int, guidance: float) -> None:
    """Check the options of a generation: seed 0 .. 2^32-1 and steps 1 .. 200 whole, guidance 1 .. 20.

    Raises:
        OptionError: one is out of its range, not a number, or not whole where it must be.
    """
    for name, value, (low, high) in (("seed", seed, SEEDS), ("number of steps", steps, STEPS)):
        if type(value) is not int or not low <= value <= high:
            raise OptionError(f"The {name} must be a whole number from {low} to {high}.")
    low, high = GUIDANCE
    if isinstance(guidance, bool) or not isinstance(guidance, int | float) or not low <= guidance <= high:  # NaN is not
        raise OptionError(f"The guidance must be a number from {low:g} to {high:g}.")


def syntax_parts(prompt: str) -> tuple[str, ...]:
    """Weights, tags and other syntax of A1111, ComfyUI, InvokeAI and the like in a prompt, in order, each once."""
    return tuple(dict.fromkeys(m.group().strip() for m in SYNTAX.finditer(prompt)))


def special_parts(prompt: str, tokenizer: Any) -> tuple[str, ...]:
    """The tokenizer's own marks, such as <|endoftext|>, that stand in a prompt as text, in order, each once."""
    marks = [t for t in tokenizer.all_special_tokens if t.strip()]
    return tuple(sorted((m for m in set(marks) if m in prompt), key=prompt.index))


def _lost(prompt: str, tokenizer: Any) -> list[bool]:
    """Of every character, whether the tokenizer cannot read it: it becomes the unknown token, only pieces of its bytes,
    or nothing at all. White space and marks are not meant to be read. tokenizer: with offsets (a "fast" one)."""
    found = tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True, truncation=False, verbose=False)
    read, unread, marked = set[int](), set[int](), set[int]()
    for token, (start, end) in zip(found["input_ids"], found["offset_mapping"], strict=True):
        (read if _stands_for_text(token, tokenizer) else unread).update(range(start, end))
    for mark in special_parts(prompt, tokenizer):
        marked |= {i for m in re.finditer(re.escape(mark), prompt) for i in range(*m.span())}
    return [not c.isspace() and i not in marked and (i in unread or i not in read) for i, c in enumerate(prompt)]


def _stands_for_text(token: int, tokenizer: Any) -> bool:
    if token in (tokenizer.unk_token_id, *tokenizer.all_special_ids):
        return False
    return "\ufffd" not in tokenizer.decode([token]) and not BYTE.fullmatch(tokenizer.convert_ids_to_tokens(token))


def _runs(prompt: str, lost: Sequence[bool]) -> Iterator[str]:
    """The runs of lost characters, not across white space."""
    start = None
    for i, gone in enumerate([*lost, False]):
        if gone and start is None:
            start = i
        elif not gone and start is not None:
            yield prompt[start:i]
            start = None


def shown(part: str) -> str:
    """A part for a sentence: in quotes; characters that show nothing, or turn the text around them, by their number."""
    visible = any(unicodedata.category(c)[0] in "LNPS" for c in part)
    joins = "\u200d\ufe0e\ufe0f" if visible else ""  # what emoji are put together with
    return "“" + "".join(c if c in joins or (c.isprintable() and visible) else f"U+{ord(c):04X}" for c in part) + "”"


def _named(parts: Iterable[str]) -> str:
    parts = list(parts)
    more = f" and {len(parts) - MOST_NAMED} more" if len(parts) > MOST_NAMED else ""
    return ", ".join(map(shown, parts[:MOST_NAMED])) + more


def prompt_notes(prompt: str, tokenizers: Sequence[Any]) -> tuple[str, ...]:
    """Sentences that say what a model with these tokenizers does not read of a prompt; () when it reads all of it.

    A character that one of several tokenizers reads is read. Of marks each tokenizer's count.
    """
    notes: list[str] = []
    syntax = syntax_parts(prompt)
    if syntax:
        notes.append(f"Weights and tags mean nothing here and are read as plain text: {_named(syntax)}.")
    marks = dict.fromkeys(m for t in tokenizers for m in special_parts(prompt, t))
    if marks:
        notes.append(f"Marks of the model's own are no words, and may end the prompt: {_named(marks)}.")
    lost = [all(by) for by in zip(*(_lost(prompt, t) for t in tokenizers), strict=True)]  # what one reads is read
    if any(lost):
        whole = sum(lost) == sum(not c.isspace() for c in prompt)
        what = "The model can read nothing of this prompt" if whole else "The model cannot read parts of the prompt"
        notes.append(f"{what}: {_named(dict.fromkeys(_runs(prompt, lost)))}.")
    return tuple(notes)
