"""Prompts and options of a generation: what passes, what is tidied, what is refused."""

from __future__ import annotations

import time

import pytest
from PIL import Image
from transformers import CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from guda_core.data.prompts import (
    check_options,
    check_prompt,
    prompt_notes,
    shown,
    special_parts,
    syntax_parts,
)
from guda_core.errors import OptionError, PromptError
from guda_core.paths import ASSETS
from tests.test_imaging import NOISE, encoded
from tests.tiny import tiny_service


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("  a cat  ", "a cat"),
        ("", ""),
        ("a\ncat\tand\r\n a   dog", "a cat and a dog"),
        ("Schwäbisch 日本 👩‍🎨", "Schwäbisch 日本 👩‍🎨"),
        (" " + "x" * 2000 + " ", "x" * 2000),
    ],
)
def test_prompts_are_tidied(prompt, expected):
    assert check_prompt(prompt) == expected


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("x" * 2001, "caption may have 2,000 characters at most; this one has 2,001"),
        ("a\0b", r"U\+0000"),
        ("a\x1b[31mb", r"U\+001B"),
        ("a\x7fb", r"U\+007F"),
        ("a\x85b", r"U\+0085"),
        ("a\x1fb", r"U\+001F"),
        ("a\ud800b", r"U\+D800"),
        (None, "must be text"),
    ],
)
def test_prompts_are_refused(prompt, words):
    with pytest.raises(PromptError, match=words):
        check_prompt(prompt)


GOOD = {"seed": 0, "steps": 25, "guidance": 2.5}


@pytest.mark.parametrize(
    ("name", "value"),
    [("seed", 0), ("seed", 2**32 - 1), ("steps", 1), ("steps", 200), ("guidance", 1), ("guidance", 20.0)],
)
def test_options_at_the_edge_pass(name, value):
    check_options(**{**GOOD, name: value})


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("name", "value"),
    [("seed", v) for v in (-1, 2**32, 1.5, NAN, "7", True, None)]
    + [("steps", v) for v in (0, 201, 2.0, NAN, INF, "25", True)]
    + [("guidance", v) for v in (0.99, 20.01, NAN, INF, -INF, "3", True, None)],
)
def test_options_out_of_range_are_refused(name, value):
    with pytest.raises(OptionError, match=f"{name}|number of {name}"):
        check_options(**{**GOOD, name: value})


EMBEDDED = CLIPTokenizer.from_pretrained(ASSETS / "clip")  # its words are those of the emoji's captions


def of_bytes() -> CLIPTokenizer:
    """As Stable Diffusion's: every byte is known, so that nothing is unknown; and one whole letter, é."""
    signs = list(bytes_to_unicode().values())
    vocab = {
        t: i for i, t in enumerate([*signs, *(f"{c}</w>" for c in signs), "Ã©</w>", "<|startoftext|>", "<|endoftext|>"])
    }
    return CLIPTokenizer(vocab=vocab, merges=[("Ã", "©</w>")], model_max_length=77)


BYTES = of_bytes()


@pytest.mark.parametrize(
    ("prompt", "embedded", "of_bytes"),
    [
        ("rocket, artistic style featuring thick black outline", (), ()),
        ("日本 rocket", ("日本",), ("日本",)),
        ("a 👩\u200d🎨 and a 👍", ("👩\u200d🎨", "👍"), ("👩\u200d🎨", "👍")),
        ("кот кот", ("кот",), ("кот",)),  # the same part is named once
        ("café", ("é",), ()),
        ("cafés", ("é",), ("é",)),  # only the é that ends a word is a token of its own
        ("cat!", ("!",), ()),
        ("cat\u200bdog", ("\u200b",), ("\u200b",)),
        ("rocket <|endoftext|> cat", (), ()),
        ("", (), ()),
    ],
)
def test_what_a_tokenizer_cannot_read_is_named(prompt, embedded, of_bytes):
    for tokenizer, parts in ((EMBEDDED, embedded), (BYTES, of_bytes)):
        said = [n.partition(": ")[2] for n in prompt_notes(prompt, [tokenizer]) if n.startswith("The model can")]
        assert said == ([", ".join(map(shown, parts)) + "."] if parts else [])


def test_marks_of_the_model_typed_as_text_are_named():
    assert special_parts("a <|endoftext|> <|startoftext|> <|endoftext|>", EMBEDDED) == (
        "<|endoftext|>", "<|startoftext|>"
    )  # fmt: skip
    assert special_parts("a <|ENDOFTEXT|> end", EMBEDDED) == ()  # plain text to the tokenizer
    assert prompt_notes("rocket <|endoftext|>", [EMBEDDED]) == (
        "Marks of the model's own are no words, and may end the prompt: “<|endoftext|>”.",
    )


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("(rocket:1.3)", ("(rocket:1.3)",)),
        ("a ((rocket)), [cat]", ("((rocket))", "[cat]")),
        ("a <lora:my style:0.8> cat", ("<lora:my style:0.8>",)),
        ("<hypernet:x:1>, <lyco:y>", ("<hypernet:x:1>", "<lyco:y>")),
        ("[cat:dog:0.5] [cat|dog]", ("[cat:dog:0.5]", "[cat|dog]")),
        ("(rocket)1.3 (red)++ cat-- rocket++", ("(rocket)1.3", "(red)++", "cat--", "rocket++")),
        ("{cat|dog} __animal__ embedding:bad-hands", ("{cat|dog}", "__animal__", "embedding:bad-hands")),
        ("cat BREAK dog", ("BREAK",)),
        ("a cat (asleep) on a well-known mat -- at 5:30, please", ()),
        ("(cat:1.2), (cat:1.2)", ("(cat:1.2)",)),
        ("a < b > c, breakfast", ()),
    ],
)
def test_weights_and_tags_of_other_programs_are_named(prompt, parts):
    assert syntax_parts(prompt) == parts


@pytest.mark.parametrize("prompt", ["(" * 1000 + ":" + "1" * 999, "(a:1" + " " * 1990, "(" * 1000 + "[" * 1000])
def test_no_prompt_takes_long_to_be_looked_through(prompt):
    began = time.process_time()
    assert check_prompt(prompt) and not syntax_parts(prompt)
    assert time.process_time() - began < 1.0


def test_notes_are_sentences_and_say_whether_anything_is_read():
    assert prompt_notes("rocket", [EMBEDDED]) == prompt_notes("", [EMBEDDED]) == ()
    assert prompt_notes("日本 日本", [EMBEDDED]) == ("The model can read nothing of this prompt: “日本”.",)
    assert prompt_notes("日本 rocket", [EMBEDDED]) == ("The model cannot read parts of the prompt: “日本”.",)
    weights, unread = prompt_notes("(rocket:1.3)", [EMBEDDED])
    assert weights == "Weights and tags mean nothing here and are read as plain text: “(rocket:1.3)”."
    assert unread.startswith("The model cannot read parts of the prompt: “(”")
    many = prompt_notes(" ".join(chr(0x4E00 + i) for i in range(11)), [EMBEDDED])[0]
    assert many.endswith(" and 3 more.") and many.count("“") == 8


def test_of_several_tokenizers_one_that_reads_is_enough():
    assert prompt_notes("café 日本", [EMBEDDED]) == ("The model cannot read parts of the prompt: “é”, “日本”.",)
    assert prompt_notes("café 日本", [EMBEDDED, BYTES]) == ("The model cannot read parts of the prompt: “日本”.",)
    assert prompt_notes("日本 [x]", []) == (
        "Weights and tags mean nothing here and are read as plain text: “[x]”.",
    )  # a model without a tokenizer


def test_parts_that_show_nothing_or_turn_the_text_are_shown_by_number():
    assert shown("\u200b") == "“U+200B”" and shown("a\u202eb") == "“aU+202Eb”" and shown("\ufe0f") == "“U+FE0F”"
    assert shown("👩\u200d🎨") == "“👩\u200d🎨”"


def test_what_is_not_read_is_said_with_the_picture_and_goes_with_the_prompt(tmp_path):
    service = tiny_service(tmp_path)
    picture = encoded(Image.fromarray(NOISE))
    query = service.prepare(picture, prompt="日本 <lora:x:1>")
    assert any("<lora:x:1>" in s for s in query.preparation) and any("“日本”" in s for s in query.preparation)
    assert set(service.unread("日本 <lora:x:1>")) < set(query.preparation) and service.unread("cat") == ()
    assert "日本" not in " ".join(service.with_prompt(query, "cat").preparation)
    assert service.prepare(picture, prompt="cat").preparation == service.with_prompt(query, "cat").preparation
    *_, drawn = service.generate(prompt="日本", seed=0, steps=1, guidance=1.0)
    assert drawn.preparation == ("The model can read nothing of this prompt: “日本”.",)
