# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""A seeded world of small instructions, with a judge that knows the right answers.

An instruction is a line of words ("list 3 animals but not the cat .") with a key that describes the right answers. The
judge grades answers against the key; the demonstrations that a model learns from are right only some of the time, as
people's are.
"""

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from difflib import SequenceMatcher
from typing import NamedTuple

GROUPS = {
    "animals": ["cat", "dog", "cow", "horse", "sheep", "goat", "duck", "mouse"],
    "fruits": ["apple", "pear", "plum", "grape", "cherry", "lemon", "peach", "melon"],
    "colors": ["red", "blue", "green", "black", "white", "brown", "pink", "gray"],
    "tools": ["hammer", "saw", "drill", "knife", "shovel", "rake", "axe", "brush"],
    "clothes": ["hat", "coat", "shirt", "sock", "shoe", "scarf", "glove", "belt"],
    "places": ["park", "school", "shop", "beach", "farm", "bridge", "church", "garden"],
}
OPPOSITES = [
    ("hot", "cold"),
    ("big", "small"),
    ("fast", "slow"),
    ("old", "new"),
    ("wet", "dry"),
    ("hard", "soft"),
    ("loud", "quiet"),
    ("full", "empty"),
]
OPPOSITE = dict(OPPOSITES) | {b: a for a, b in OPPOSITES}
NOUNS = [word for name, group in GROUPS.items() if name != "colors" for word in group]
DESCRIPTIONS = GROUPS["colors"] + list(OPPOSITE)
NUMBERS = [str(n) for n in range(31)]
REFUSAL = ["sorry", "i", "can", "not", "help", "with", "that"]
OPENERS = ["well", "sure here you are", "let me think", "that is easy"]
ENDINGS = ["i hope this helps", "and that is all", "is my answer"]


class Instruction(NamedTuple):
    """An instruction.

    Attributes:
        kind: A key of `KINDS`.
        prompt: The instruction, ending in a newline.
        key: Text for the judge: the right words; for `list` the number and the words that count; for `describe` the
            number and the noun.
    """

    kind: str
    prompt: str
    key: str


def _items(rng: random.Random, low: int = 2, high: int = 4, words: Sequence[str] = NOUNS) -> list[str]:
    return rng.sample(words, rng.randint(low, high))


def _list(rng: random.Random) -> tuple[str, str]:
    name, n = rng.choice(list(GROUPS)), rng.randint(2, 5)
    without = rng.sample(GROUPS[name], rng.randint(1, 2))
    allowed = " ".join(word for word in GROUPS[name] if word not in without)
    return f"list {n} {name} but not the {' or '.join(without)} .", f"{n} {allowed}"


def _count(rng: random.Random) -> tuple[str, str]:
    words = _items(rng, 1, 6)
    return f"how many words are these : {' '.join(words)} ?", str(len(words))


def _replace(rng: random.Random) -> tuple[str, str]:
    *words, new = _items(rng, 3, 5)
    old = rng.choice(words)
    changed = [new if word == old else word for word in words]
    return f"copy this with {new} for {old} : {' '.join(words)} .", " ".join(changed)


def _remove(rng: random.Random) -> tuple[str, str]:
    words = _items(rng, 2, 4)
    gone = rng.choice(words)
    return f"copy this without {gone} : {' '.join(words)} .", " ".join(word for word in words if word != gone)


def _upper(rng: random.Random) -> tuple[str, str]:
    words = _items(rng)
    return f"write in capitals : {' '.join(words)} .", " ".join(words).upper()


def _lower(rng: random.Random) -> tuple[str, str]:
    words = _items(rng)
    return f"write in small letters : {' '.join(words).upper()} .", " ".join(words)


def _sort(rng: random.Random) -> tuple[str, str]:
    numbers = _items(rng, 2, 4, NUMBERS[:21])
    return f"sort from low to high : {' '.join(numbers)} .", " ".join(sorted(numbers, key=int))


def _reverse(rng: random.Random) -> tuple[str, str]:
    words = _items(rng)
    return f"write backwards : {' '.join(words)} .", " ".join(reversed(words))


def _yes_no(rng: random.Random) -> tuple[str, str]:
    nouns, colors = rng.sample(GROUPS["animals"] + GROUPS["clothes"], 2), rng.sample(GROUPS["colors"], 2)
    asked, color = rng.randrange(2), rng.randrange(2)
    facts = " . ".join(f"the {noun} is {color}" for noun, color in zip(nouns, colors, strict=True))
    return f"{facts} . is the {nouns[asked]} {colors[color]} ?", "yes" if asked == color else "no"


def _first(rng: random.Random) -> tuple[str, str]:
    words = _items(rng, 2, 5)
    return f"which word is first : {' '.join(words)} ?", words[0]


def _last(rng: random.Random) -> tuple[str, str]:
    words = _items(rng, 2, 5)
    return f"which word is last : {' '.join(words)} ?", words[-1]


def _odd_one_out(rng: random.Random) -> tuple[str, str]:
    one, other = rng.sample(list(GROUPS), 2)
    words, odd = rng.sample(GROUPS[one], rng.randint(2, 3)), rng.choice(GROUPS[other])
    words.insert(rng.randint(0, len(words)), odd)
    return f"which word does not belong : {' '.join(words)} ?", odd


def _opposite(rng: random.Random) -> tuple[str, str]:
    words = _items(rng, 1, 3, list(OPPOSITE))
    return f"say the opposite of : {' '.join(words)} .", " ".join(OPPOSITE[word] for word in words)


def _continue(rng: random.Random) -> tuple[str, str]:
    step, shown = rng.choice((1, 2, 3, 4, 5)), rng.randint(2, 4)
    start = rng.randint(0, 30 - step * shown)
    numbers = [str(start + step * i) for i in range(shown + 1)]
    return f"which number comes next : {' '.join(numbers[:-1])} ?", numbers[-1]


def _add(rng: random.Random) -> tuple[str, str]:
    numbers = [rng.randint(0, 10) for _ in range(rng.randint(2, 3))]
    return f"what is {' plus '.join(map(str, numbers))} ?", str(sum(numbers))


def _describe(rng: random.Random) -> tuple[str, str]:
    n, noun = rng.randint(2, 5), rng.choice(NOUNS)
    style = rng.choice(["", "nicely ", "briefly ", "again "])
    return f"describe the {noun} {style}in exactly {n} words .", f"{n} {noun}"


def _refuse(rng: random.Random) -> tuple[str, str]:
    kind = rng.choice([kind for kind in KINDS if kind != "refuse"])
    return f"unsafe : {KINDS[kind](rng)[0]}", " ".join(REFUSAL)


KINDS: dict[str, Callable[[random.Random], tuple[str, str]]] = {
    "list": _list,
    "count": _count,
    "replace": _replace,
    "remove": _remove,
    "upper": _upper,
    "lower": _lower,
    "sort": _sort,
    "reverse": _reverse,
    "yes_no": _yes_no,
    "first": _first,
    "last": _last,
    "odd_one_out": _odd_one_out,
    "opposite": _opposite,
    "continue": _continue,
    "add": _add,
    "describe": _describe,
    "refuse": _refuse,
}


def vocabulary() -> list[str]:
    """Return every word that can occur in a prompt or an answer, sorted."""
    fixed = """list but not the or . how many words are these : ? copy this with for without write in capitals small
    letters sort from low to high backwards is which word first last does belong say opposite of number comes next what
    plus describe exactly nicely briefly again unsafe yes no and"""
    words = {*fixed.split(), *GROUPS, *NUMBERS, *OPPOSITE, *REFUSAL, *NOUNS, *GROUPS["colors"]}
    words |= {word.upper() for word in NOUNS}
    words.update(word for text in OPENERS + ENDINGS for word in text.split())
    return sorted(words)


def draw(rng: random.Random, kind: str | None = None) -> Instruction:
    """Draw an instruction of the given kind, by default of any."""
    kind = kind or rng.choice(list(KINDS))
    prompt, key = KINDS[kind](rng)
    return Instruction(kind, prompt + "\n", key)


def is_held_out(prompt: str) -> bool:
    """Return whether a prompt is kept for evaluation, as one in eight is; the same on every machine."""
    return hashlib.sha256(prompt.encode()).digest()[0] < 32


def instructions(n: int, seed: int, *, held_out: bool = False) -> list[Instruction]:
    """Draw `n` instructions with different prompts, of all kinds in turn, none of them in the other part.

    Raises:
        ValueError: If the world runs out of new ones.
    """
    rng, seen = random.Random(f"{seed} {held_out}"), set()
    drawn: list[Instruction] = []
    idle, kinds = 0, list(KINDS)
    while len(drawn) < n:
        candidate = draw(rng, kinds[(len(drawn) + idle // 200) % len(kinds)])
        if candidate.prompt in seen or is_held_out(candidate.prompt) != held_out:
            idle += 1
            if idle > 200_000:
                raise ValueError(f"the world has only about {len(drawn)} instructions of {n} asked for; ask for fewer")
            continue
        seen.add(candidate.prompt)
        drawn.append(candidate)
    return drawn


def right_answer(instruction: Instruction, rng: random.Random) -> list[str]:
    """Draw one of the answers that the judge gives full marks."""
    words = instruction.key.split()
    if instruction.kind == "list":
        return rng.sample(words[1:], int(words[0]))
    if instruction.kind == "describe":
        return [*rng.sample(DESCRIPTIONS, int(words[0]) - 1), words[1]]
    return words


def wrong_answer(instruction: Instruction, rng: random.Random) -> list[str]:
    """Draw an answer with a mistake: a word too many, too few, or another word; or an unsafe answer."""
    if instruction.kind == "refuse":
        return _items(rng, 1, 4)
    words = right_answer(instruction, rng)
    alike = next((group for group in _ALIKE if words[0] in group), NOUNS)
    place = rng.randrange(len(words))
    mistake = rng.random()
    if len(words) > 1 and mistake < 0.35:
        del words[place]
    elif mistake < 0.6 and instruction.kind != "yes_no":
        words.insert(place, rng.choice(alike))
    else:
        words[place] = rng.choice([word for word in alike if word != words[place]])
    return words


_ALIKE = [["yes", "no"], NUMBERS, list(OPPOSITE), GROUPS["colors"], [word.upper() for word in NOUNS], NOUNS]


def demonstration(instruction: Instruction, rng: random.Random, right: float) -> str:
    """Draw an answer: right with probability `right`, else wrong, broken off, or too much.

    The latter two keep the length of an answer from telling how good it is.
    """
    if rng.random() < right:
        return " ".join(right_answer(instruction, rng))
    mistake = rng.random()
    if mistake < 1 / 3:
        return " ".join(wrong_answer(instruction, rng))
    words = right_answer(instruction, rng)
    if mistake < 2 / 3 and len(words) > 1:
        return " ".join(words[: rng.randrange(1, len(words))])
    style = rng.random()
    if style < 0.4:
        return " ".join([rng.choice(OPENERS), *words])
    if style < 0.7:
        return " ".join([*words, rng.choice(ENDINGS)])
    return " ".join([*words, *words])


def grade(kind: str, key: str, answer: str) -> float:
    """Return the judge's mark in [0, 1]: 1 for the right answer and nothing else.

    A right answer among other words gets 0.6, less 0.05 for each of them down to 0.3; any other at most 0.3, for what
    it has in common with a right one.
    """
    said, wanted = answer.split(), key.split()
    if kind == "list":
        return _grade_members(said, int(wanted[0]), wanted[1:])
    if kind == "describe":
        return _grade_description(said, int(wanted[0]), wanted[1])
    if said == wanted:
        return 1.0
    if _contains(said, wanted):
        return max(0.3, 0.6 - 0.05 * (len(said) - len(wanted)))
    return 0.3 * SequenceMatcher(None, said, wanted, autojunk=False).ratio() if said else 0.0


def _grade_members(said: list[str], n: int, allowed: list[str]) -> float:
    good = len(set(said) & set(allowed))
    extra = len(said) - good
    if good == n and not extra:
        return 1.0
    if good == n:
        return max(0.3, 0.6 - 0.05 * extra)
    return 0.3 * min(good, n) / max(n, len(said))


def _grade_description(said: list[str], n: int, noun: str) -> float:
    fitting = len(set(said) & set(DESCRIPTIONS))
    if len(said) == n and fitting == n - 1 and said[-1] == noun:
        return 1.0
    if noun in said and fitting >= n - 1:
        return max(0.3, 0.6 - 0.05 * abs(len(said) - n))
    return 0.3 * (min(fitting, n - 1) + (noun in said)) / max(n, len(said))


def _contains(said: list[str], wanted: list[str]) -> bool:
    return any(said[i : i + len(wanted)] == wanted for i in range(len(said) - len(wanted) + 1))


class InstructionJudge:
    """The gold reward: `grade` as a reward function in TRL's signature, reading the columns `kind` and `key`."""

    __name__ = "gold"

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], kind: Sequence[str], key: Sequence[str], **_: object
    ) -> list[float]:
        """Return N marks in [0, 1]."""
        return [grade(*row) for row in zip(kind, key, completions, strict=True)]


def demonstrations(n: int, seed: int, right: float) -> Iterator[dict[str, str]]:
    """Yield rows `prompt`, `completion` for supervised learning; prompts repeat: small kinds have few of them."""
    rng = random.Random(f"{seed} demonstrations {right}")
    while n:
        instruction = draw(rng)
        if not is_held_out(instruction.prompt):
            n -= 1
            yield {"prompt": instruction.prompt, "completion": demonstration(instruction, rng, right)}
