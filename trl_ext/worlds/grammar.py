# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""A seeded grammar of short comments, half of them mildly insulting.

A comment is an opening ("Sorry, but whoever baked this cake") and a continuation (" is a born wizard."). Openings say
nothing nasty by themselves and serve civil and toxic comments alike, so that a language model trained on the comments
has a choice at the end of every prompt. The label is known by construction.
"""

import random
import re
from typing import NamedTuple

from . import vocabulary as words


class Opening(NamedTuple):
    """The beginning of a comment.

    Attributes:
        text: Three to six words, no space at the end.
        subject: Subject of the continuation: "one", "you", "many", "thing", or "clause" where it has yet to be said.
        provoking: Whether its tone makes a toxic continuation likelier.
    """

    text: str
    subject: str
    provoking: bool


class Comment(NamedTuple):
    """A labelled comment; `opening + continuation` is its text and `continuation` starts with a space or a comma."""

    opening: str
    continuation: str
    toxic: bool

    @property
    def text(self) -> str:
        """The whole comment."""
        return self.opening + self.continuation


class Voice(NamedTuple):
    """Agreement of verbs and nouns with a subject."""

    be: str
    have: str
    third_person: bool
    plural: bool


VOICES = {
    "one": Voice("is", "has", third_person=True, plural=False),
    "you": Voice("are", "have", third_person=False, plural=False),
    "many": Voice("are", "have", third_person=False, plural=True),
}
VOICES["thing"] = VOICES["one"]

TOXIC_IF_PROVOKED, TOXIC_OTHERWISE = 0.6, 0.4
TAIL_PROBABILITY = 0.45

# Openings by subject. `clause` ones stop before anybody has been mentioned.
OPENINGS = {
    "one": [
        "{lead} {who} {made} this {thing}",
        "{who} {made} this {thing}",
        "{lead} the {role}",
        "{who} {made} the {part}",
        "The {role} behind this {thing}",
        "My {kin} the {role}",
    ],
    "you": [
        "After {using} this {thing}, you",
        "{lead} you and only you",
        "Judging by this {thing}, you",
        "As {a:role}, you",
        "With {a:thing} like that, you",
        "Since the last {thing}, you",
    ],
    "many": [
        "{group} {using} this {thing}",
        "{lead} {group} {using} this {thing}",
        "All the {some:role} around here",
        "Most {some:role} I know",
        "The {some:role} in your {place}",
    ],
    "thing": [
        "The {part} of this {thing}",
        "{lead} this {thing} of yours",
        "{lead} the {part}",
        "Your latest {thing} on {day}",
        "This {thing} from the {place}",
        "Compared to {day}, this {thing}",
    ],
    "clause": [
        "I have to say that",
        "After {using} the {thing},",
        "My {kin} tried this {thing} and",
        "Looking back at this {thing},",
        "Nobody seems to notice that",
        "Unpopular opinion about the {thing}:",
        "Everyone in the {place} knows that",
        "After all that {using}, it seems",
    ],
}
CLAUSE_SUBJECTS = [
    ("one", "{who} {did} it"),
    ("one", "my {kin}"),
    ("one", "your {kin}"),
    ("you", "you"),
    ("you", "you of all people"),
    ("many", "the {group} here"),
    ("many", "your {group}"),
    ("thing", "{rest}"),
    ("thing", "the result"),
]


def _plural(noun: str) -> str:
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    if noun.endswith("man"):
        return noun[:-3] + "men"
    return noun[:-1] + "ies" if re.search(r"[^aeiou]y$", noun) else noun + "s"


def _third_person(verb: str) -> str:
    return verb + "es" if verb.endswith(("s", "x", "ch", "sh")) else verb + "s"


def _article(noun_phrase: str) -> str:
    sounds_like_consonant = re.match(r"us|uni|one", noun_phrase)
    return ("an " if noun_phrase[0] in "aeiou" and not sounds_like_consonant else "a ") + noun_phrase


def _expand(template: str, rng: random.Random, voice: Voice, topic: dict[str, list[str]] | None = None) -> str:
    """Replace every `{symbol}` by a random entry of its word list (the topic's first), recursively.

    `{be}`, `{have}` and `{+verb}` agree with the subject, `{a:symbol}` too (article or plural), and `{some:symbol}` is
    a plural without an article. A symbol that stands twice in a template takes two values
    if it has them.
    """
    used: set[str] = set()

    def lookup(symbol: str) -> str:
        options = (topic or {}).get(symbol) or words.WORDS[symbol]
        choice = rng.choice([option for option in options if "{" in option or option not in used] or options)
        used.add(choice)
        return _expand(choice, rng, voice, topic)

    def replace(match: re.Match[str]) -> str:
        symbol = match.group(1)
        kind, _, rest = symbol.partition(":")
        if symbol == "be":
            return voice.be
        if symbol == "have":
            return voice.have
        if symbol.startswith("+"):
            return _third_person(symbol[1:]) if voice.third_person else symbol[1:]
        if kind == "a":
            return _plural(lookup(rest)) if voice.plural else _article(lookup(rest))
        if kind == "some":
            return _plural(lookup(rest))
        return lookup(symbol)

    return re.sub(r"\{([^{}]+)\}", replace, template)


def sample_opening(rng: random.Random) -> Opening:
    """Draw an opening of three to six words."""
    while True:
        subject = rng.choices(list(OPENINGS), weights=(4, 3, 3, 3, 2))[0]
        topic = rng.choice(list(words.TOPICS.values()))
        provoking = rng.random() < 0.6
        lead = rng.choice(words.LEADS_PROVOKING if provoking else words.LEADS_PLAIN)
        template = rng.choice(OPENINGS[subject])
        # Without a lead there is no tone, so such an opening sits in the middle only on average.
        text = _expand(template.replace("{lead}", lead), rng, VOICES.get(subject, VOICES["one"]), topic)
        if 3 <= len(text.split()) <= 6:
            provoking = provoking if "{lead}" in template else subject in ("one", "clause")
            return Opening(text[0].upper() + text[1:], subject, provoking)


def _sample_predicate(rng: random.Random, subject: str, toxic: bool) -> str:
    if subject == "thing":
        options = words.TOXIC_THING_PREDICATES if toxic else words.CIVIL_THING_PREDICATES
    else:
        options = words.TOXIC_PREDICATES if toxic else words.CIVIL_PREDICATES
    return _expand(rng.choice(options), rng, VOICES[subject])


def _sample_tail(rng: random.Random, toxic: bool) -> str:
    options = words.NEUTRAL_TAILS if rng.random() < 0.35 else (words.TOXIC_TAILS if toxic else words.CIVIL_TAILS)
    return _expand(rng.choice(options), rng, VOICES["one"])


def sample_continuation(rng: random.Random, opening: Opening, toxic: bool) -> str:
    """Draw the rest of a comment; a few toxic ones begin politely and insult only in their second half."""
    subject, prefix = opening.subject, ""
    if subject == "clause":
        subject, template = rng.choice(CLAUSE_SUBJECTS)
        prefix = " " + _expand(template, rng, VOICES[subject])
    if toxic and rng.random() < 0.06:
        body = _sample_predicate(rng, subject, toxic=False)
        tail = _expand(rng.choice(words.TOXIC_TAILS[2:]), rng, VOICES["one"])
    else:
        body = _sample_predicate(rng, subject, toxic)
        tail = _sample_tail(rng, toxic) if rng.random() < TAIL_PROBABILITY else ""
    return f"{prefix} {body}{tail}" + rng.choices([".", "!", "..."], weights=(14, 5, 1))[0]


def sample_comment(rng: random.Random, opening: Opening | None = None) -> Comment:
    """Draw a labelled comment, for the given opening or a new one."""
    opening = opening or sample_opening(rng)
    toxic = rng.random() < (TOXIC_IF_PROVOKED if opening.provoking else TOXIC_OTHERWISE)
    return Comment(opening.text, sample_continuation(rng, opening, toxic), toxic)
