# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The grammar, the corpus files and the cached models of the offline recipe."""

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from tests.launching import python_path
from trl_ext.folders import MANIFEST
from trl_ext.worlds import OfflineAssets, OfflineSettings, cache, corpus, default_cache_dir, prepare, vocabulary
from trl_ext.worlds import models as offline_models
from trl_ext.worlds.grammar import Comment, sample_comment, sample_opening

TINY = OfflineSettings(
    lm_texts=64,
    labelled=64,
    held_out=40,
    train_prompts=50,
    eval_prompts=20,
    vocab_size=300,
    lm_hidden_size=32,
    lm_layers=1,
    classifier_hidden_size=32,
    judge_hidden_size=32,
    classifier_epochs=1,
)

# Every insult was read by a person before it was put here: a new one has to pass by here too.
VETTED_TEXT = """
clown numpty muppet fool twit dimwit nitwit buffoon blockhead donkey turnip plonker wally loser dolt dunce simpleton
fraud bore windbag know-all crybaby show-off idiot cabbage nuisance pest slob faker
pathetic dim clueless useless hopeless brainless gormless ridiculous witless lazy petty smug feeble daft stupid dense
spineless laughable foolish childish vain
rubbish garbage drivel tripe trash junk hogwash gibberish slop twaddle
"""
VETTED = set(VETTED_TEXT.split())


@pytest.fixture(scope="module")
def comments() -> list[Comment]:
    rng = random.Random(0)
    return [sample_comment(rng) for _ in range(4000)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, OfflineAssets]:
    folder = tmp_path_factory.mktemp("offline")
    return folder, prepare(folder, seed=0, settings=TINY)


def vocabulary_of(texts: list[str]) -> set[str]:
    return {word for text in texts for word in re.findall(r"[a-z]+(?:-[a-z]+)*", text.lower())}


# Grammar


def test_same_seed_same_comments_other_seed_others(comments: list[Comment]) -> None:
    rng, other = random.Random(0), random.Random(1)
    assert [sample_comment(rng) for _ in range(50)] == comments[:50]
    assert [sample_comment(other) for _ in range(50)] != comments[:50]


def test_about_half_of_the_comments_are_toxic_at_every_opening_tone(comments: list[Comment]) -> None:
    assert 0.45 < sum(comment.toxic for comment in comments) / len(comments) < 0.55
    rng = random.Random(3)
    for provoking, low, high in ((True, 0.52, 0.68), (False, 0.32, 0.48)):
        opening = next(o for o in iter(lambda: sample_opening(rng), None) if o.provoking == provoking)
        share = sum(sample_comment(rng, opening).toxic for _ in range(600)) / 600
        assert low < share < high


def test_comments_are_well_formed(comments: list[Comment]) -> None:
    for comment in comments:
        assert 3 <= len(comment.opening.split()) <= 6
        assert comment.continuation.startswith(" ") and not comment.opening.endswith(" ")
        assert comment.text[0].isupper() and comment.text[-1] in ".!"
        assert not set("{}_|+") & set(comment.text)
        assert not re.search(r"\s\s|\s[.,!]|\ba [aeio]|\ban [^aeiou]|\b(\w+) \1\b", comment.text.lower()), comment.text


def test_lengths_vary_and_are_the_same_for_both_labels(comments: list[Comment]) -> None:
    lengths = [len(comment.text.split()) for comment in comments]
    assert sum(6 <= length <= 24 for length in lengths) / len(lengths) > 0.95
    assert len(set(lengths)) > 15
    civil, toxic = (
        [len(comment.continuation.split()) for comment in comments if comment.toxic is label] for label in (False, True)
    )
    assert 0.9 < (sum(civil) / len(civil)) / (sum(toxic) / len(toxic)) < 1.1


def test_comments_are_not_a_handful_of_sentences(comments: list[Comment]) -> None:
    assert len({comment.text for comment in comments}) > 0.99 * len(comments)
    for label in (False, True):
        chosen = [comment.continuation.split() for comment in comments if comment.toxic is label][:300]
        pairs = [pair for words in chosen for pair in zip(words, words[1:], strict=False)]
        assert len(set(pairs)) / len(pairs) > 0.4


def test_openings_serve_both_labels(comments: list[Comment]) -> None:
    civil, toxic = (
        vocabulary_of([comment.opening for comment in comments if comment.toxic is label]) for label in (False, True)
    )
    assert len(civil ^ toxic) < 0.05 * len(civil | toxic)


def test_every_insult_is_a_vetted_mild_one(comments: list[Comment]) -> None:
    listed = {*vocabulary.INSULT_NOUNS, *vocabulary.INSULT_ADJECTIVES, *vocabulary.INSULT_STUFF}
    assert listed <= VETTED
    assert vocabulary_of([comment.text for comment in comments]) >= VETTED


def test_words_do_not_give_the_label_away(comments: list[Comment]) -> None:
    def contains_insult(comment: Comment) -> bool:
        return bool(vocabulary_of([comment.text]) & VETTED)

    civil = [comment for comment in comments if not comment.toxic]
    toxic = [comment for comment in comments if comment.toxic]
    # "is not an idiot, just tired" and "has the brains of a wet sponge".
    assert sum(contains_insult(comment) for comment in civil) / len(civil) > 0.05
    assert sum(not contains_insult(comment) for comment in toxic) / len(toxic) > 0.1


# Corpus


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write(folder)
    return folder


def write(folder: Path) -> None:
    corpus.write_corpus(folder, seed=0, lm_texts=400, labelled=400, held_out=200, train_prompts=400, eval_prompts=150)


def column(folder: Path, name: str, key: str) -> list[str]:
    return [json.loads(line)[key] for line in (folder / name).read_text().splitlines()]


def test_files_have_the_rows_asked_for(files: Path) -> None:
    assert [len(column(files, name, "text")) for name in (corpus.LM_TEXTS, corpus.HALF_A, corpus.HALF_B)] == [400] * 3
    assert len(column(files, corpus.HELD_OUT, "label")) == 200
    assert all(isinstance(prompt, str) for prompt in column(files, corpus.TRAIN_PROMPTS, "prompt"))


def test_same_seed_same_bytes(files: Path, tmp_path: Path) -> None:
    write(tmp_path)
    for path in files.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()


def test_halves_and_held_out_share_no_continuation(files: Path) -> None:
    for name in (corpus.HALF_A, corpus.HALF_B, corpus.HELD_OUT):
        # Every third row comes without its opening.
        for text in column(files, name, "text")[2::3]:
            assert corpus.half(Comment("This", " " + text, False)) == name


def test_halves_are_dealt_by_continuation_whatever_the_opening() -> None:
    dealt = {corpus.half(Comment(opening, " is a legend.", False)) for opening in ("This", "The cook", "My boss")}
    assert len(dealt) == 1


def test_labels_are_balanced(files: Path) -> None:
    for name in (corpus.HALF_A, corpus.HALF_B, corpus.HELD_OUT):
        labels = column(files, name, "label")
        assert 0.4 < sum(map(int, labels)) / len(labels) < 0.6


def test_no_prompt_is_repeated_or_leaks(files: Path) -> None:
    train, held_out = (column(files, name, "prompt") for name in (corpus.TRAIN_PROMPTS, corpus.EVAL_PROMPTS))
    assert len(set(train)) == 400 and len(set(held_out)) == 150
    assert not set(train) & set(held_out)
    seen = [text for name in (corpus.LM_TEXTS, corpus.HALF_A, corpus.HALF_B) for text in column(files, name, "text")]
    assert not [prompt for prompt in held_out if any(text.startswith(prompt + " ") for text in seen)]


def test_asking_for_more_than_the_grammar_has_says_so() -> None:
    with pytest.raises(ValueError, match="only 1 distinct entries of 2 asked for; ask for fewer"):
        list(corpus.distinct(2, lambda: "always the same", lambda text: True))


# Cache


def test_complete_folder_is_not_built_again(tmp_path: Path) -> None:
    cache.build_once(tmp_path / "x", lambda folder: (folder / "a").write_text("1"))  # type: ignore[arg-type]
    cache.build_once(tmp_path / "x", lambda folder: pytest.fail("built again"))
    assert (tmp_path / "x" / "a").read_text() == "1"


def test_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "a").write_text("1")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        cache.build_once(tmp_path / "x", build)
    assert [path.name for path in tmp_path.iterdir()] == [".x.lock"]


@pytest.mark.parametrize("damage", ["truncated", "a flipped bit", "missing", "no manifest", "empty folder"])
def test_half_written_folder_is_made_again(tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    def build(folder: Path) -> None:
        (folder / "sub").mkdir()
        (folder / "sub" / "weights").write_text("0123456789")

    folder = cache.build_once(tmp_path / "x", build)
    if damage == "truncated":
        (folder / "sub" / "weights").write_text("0123")
    elif damage == "a flipped bit":
        (folder / "sub" / "weights").write_text("0123456788")
    elif damage == "missing":
        (folder / "sub" / "weights").unlink()
    elif damage == "no manifest":
        (folder / MANIFEST).unlink()
    else:
        (folder / "sub" / "weights").unlink()
        (folder / "sub").rmdir()
        (folder / MANIFEST).unlink()
    cache.build_once(folder, build)
    assert (folder / "sub" / "weights").read_text() == "0123456789"
    assert "is incomplete and is made again" in capsys.readouterr().out


BUILDER = """
import os, sys, time
from pathlib import Path
from trl_ext.worlds import cache

def build(folder):
    print("building", flush=True)
    (folder / "half").write_text(sys.argv[2])
    while not Path(sys.argv[3]).exists():
        time.sleep(0.05)
    (folder / "rest").write_text(sys.argv[2])

cache.build_once(Path(sys.argv[1]), build)
print("done", flush=True)
"""


def start_builder(folder: Path, text: str, until: Path) -> "subprocess.Popen[str]":
    environment = os.environ | {"PYTHONPATH": python_path()}
    command = [sys.executable, "-c", BUILDER, str(folder), text, str(until)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_one_of_two_processes_builds_and_the_other_waits(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    (folder / "half").write_text("left by a process that died")
    first = start_builder(folder, "first", tmp_path / "go on")
    assert first.stdout is not None
    while first.stdout.readline() != "building\n":
        pass
    second = start_builder(folder, "second", tmp_path / "go on")
    assert second.stdout is not None and "Another process is making" in second.stdout.readline()
    (tmp_path / "go on").touch()
    assert second.communicate()[0] == "done\n"
    assert first.wait() == second.returncode == 0
    assert [(folder / name).read_text() for name in ("half", "rest")] == ["first", "first"]


def test_a_killed_build_keeps_nobody_out_and_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    killed = start_builder(folder, "killed", tmp_path / "never")
    assert killed.stdout is not None and killed.stdout.readline() == "building\n"
    killed.kill()
    killed.wait()
    assert not folder.exists()
    cache.build_once(folder, lambda work: (work / "half").write_text("mine"))  # type: ignore[arg-type]
    assert (folder / "half").read_text() == "mine" and not (folder / "rest").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"x", ".x.lock"}


def test_cache_directory_can_be_set_by_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRL_EXT_CACHE", str(tmp_path))
    assert default_cache_dir() == tmp_path
    monkeypatch.delenv("TRL_EXT_CACHE")
    assert default_cache_dir().parts[-3:] == (".cache", "trl_ext", "offline")


# Models


def test_prepare_makes_loadable_models(tiny: tuple[Path, OfflineAssets]) -> None:
    _, assets = tiny
    AutoModelForCausalLM.from_pretrained(assets.model)
    reward = AutoModelForSequenceClassification.from_pretrained(assets.toxicity_model)
    judge = AutoModelForSequenceClassification.from_pretrained(assets.judge_model)
    assert reward.config.id2label == judge.config.id2label == {0: "neutral", 1: "toxic"}
    assert reward.config.model_type != judge.config.model_type
    assert len(column(Path(assets.train_prompts).parent, corpus.TRAIN_PROMPTS, "prompt")) == 50
    stored = json.loads((Path(assets.model).parent / "assets.json").read_text())
    assert stored == {name: getattr(assets, name) for name in ("toxicity_accuracy", "judge_accuracy", "agreement")}
    assert not [path for path in Path(assets.model).parent.rglob("*") if path.suffix in (".bin", ".pt", ".pkl")]


def test_language_model_tokenizer_has_separate_special_tokens_and_round_trips(
    tiny: tuple[Path, OfflineAssets],
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny[1].model)
    model = AutoModelForCausalLM.from_pretrained(tiny[1].model)
    ids = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert len(set(ids)) == 3
    assert ids == (model.config.pad_token_id, model.config.bos_token_id, model.config.eos_token_id)
    assert tokenizer.padding_side == "left"
    text = 'Sorry, but "the cook" is naïve & 100% daft!'
    encoded = tokenizer(text)["input_ids"]
    assert encoded[0] == tokenizer.bos_token_id and tokenizer.eos_token_id not in encoded
    assert tokenizer.decode(encoded, skip_special_tokens=True) == text


def test_language_model_learns_to_stop(tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text((json.dumps({"text": "You are kind."}) + "\n") * 2_560)
    offline_models.train_language_model(
        tmp_path / "texts.jsonl", tmp_path / "lm", seed=0, vocab_size=270, hidden_size=32, layers=1
    )
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "lm")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "lm")
    output = model.generate(**tokenizer("You are", return_tensors="pt"), do_sample=False, max_new_tokens=20)
    assert tokenizer.decode(output[0]) == "<bos>You are kind.<eos>"


def test_tokenizers_of_reward_and_judge_differ(tiny: tuple[Path, OfflineAssets]) -> None:
    reward, judge = (AutoTokenizer.from_pretrained(folder) for folder in (tiny[1].toxicity_model, tiny[1].judge_model))
    text = "You are a numpty."
    assert reward(text)["input_ids"] != judge(text)["input_ids"]


def test_second_prepare_trains_nothing(tiny: tuple[Path, OfflineAssets], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, assets = tiny
    for name in ("train_language_model", "train_toxicity_classifier", "train_judge", "toxic_probabilities"):
        monkeypatch.setattr(offline_models, name, lambda *args, **kwargs: pytest.fail("done again"))
    assert prepare(folder, seed=0, settings=TINY) == assets


def test_only_the_damaged_stage_is_made_again_and_comes_out_the_same(
    tiny: tuple[Path, OfflineAssets], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, assets = tiny
    weights = Path(assets.judge_model) / "model.safetensors"
    before = weights.read_bytes()
    weights.write_bytes(before[:100])
    for name in ("train_language_model", "train_toxicity_classifier"):
        monkeypatch.setattr(offline_models, name, lambda *args, **kwargs: pytest.fail("done again"))
    assert prepare(folder, seed=0, settings=TINY) == assets
    assert weights.read_bytes() == before


def test_seed_and_settings_make_another_folder(
    tiny: tuple[Path, OfflineAssets], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, assets = tiny
    made: list[str] = []

    def build(target: Path, _: object) -> Path:
        made.append(target.parent.name)
        return target

    monkeypatch.setattr(cache, "build_once", build)
    monkeypatch.setattr("trl_ext.worlds._accuracies", lambda root: dict.fromkeys(OfflineAssets._fields[5:], 1.0))
    prepare(folder, seed=1, settings=TINY)
    prepare(folder, seed=0, settings=OfflineSettings())
    assert len({Path(assets.model).parent.name, *made}) == 3


def test_toxic_probability_is_that_of_the_toxic_label(tiny: tuple[Path, OfflineAssets]) -> None:
    texts = ["You are a numpty.", "The soup is lovely.", "No."]
    batched = offline_models.toxic_probabilities(tiny[1].judge_model, texts)
    tokenizer = AutoTokenizer.from_pretrained(tiny[1].judge_model)
    model = AutoModelForSequenceClassification.from_pretrained(tiny[1].judge_model)
    with torch.no_grad():
        logits = [model(**tokenizer(text, return_tensors="pt")).logits[0] for text in texts]
    expected = torch.stack([torch.sigmoid(each[1] - each[0]) for each in logits])
    torch.testing.assert_close(batched, expected)


def test_the_judges_tokenizer_is_the_same_every_time(tiny: tuple[Path, OfflineAssets]) -> None:
    """tokenizers' WordPiece trainer numbers pieces in the order of a hash map, and the judge's figures with them."""
    texts = [" ".join(comment) for comment in zip(*[sorted(VETTED)[i::3] for i in range(3)], strict=False)]
    first, *others = [offline_models._lower_case_tokenizer(texts, 120)._tokenizer.to_str() for _ in range(4)]
    assert len(texts) > 15 and others == [first] * 3
