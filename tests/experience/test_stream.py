# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""A stream as train set: the rows of each rollout by their position, and streams that cannot be used."""

import random
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset, IterableDataset

from tests import scripted
from tests.launching import torchrun
from tests.tiny_models import tiny_tokenizer
from trl_ext.experience.prompt_checks import RowCheck
from trl_ext.experience.stream import StreamRows


def rows_of(stream: IterableDataset, num_rows: int, size: int, max_length: int = 40) -> StreamRows:
    check = RowCheck("train_dataset", "prompt", tiny_tokenizer(), max_length, None, None)
    return StreamRows(stream, num_rows, size, check)


def numbers(count: int) -> Dataset:
    return Dataset.from_dict({"prompt": [str(i) for i in range(count)]})


def read(rows: StreamRows, *positions: int) -> list[str]:
    return [row["prompt"] for row in rows.__getitems__(list(positions))]


def test_rows_come_by_position_over_the_end_of_the_stream_and_back():
    rows = rows_of(numbers(5).to_iterable_dataset(), 12, 4)
    assert len(rows) == 12 and rows.column_names == ["prompt"]
    assert [read(rows, *range(i, i + 4)) for i in (0, 4, 8)] == [list("0123"), list("4012"), list("3401")]
    assert read(rows, 6, 7) == list("12"), "back, and the share of one process"


def test_a_stream_that_is_read_in_order_is_read_once():
    drawn = []

    def counted():
        for i in range(40):
            drawn.append(i)
            yield {"prompt": str(i)}

    rows = rows_of(IterableDataset.from_generator(counted), 40, 4)
    drawn.clear()  # the first rows were checked
    assert sum((read(rows, *range(i, i + 4)) for i in range(0, 40, 4)), []) == [str(i) for i in range(40)]
    assert drawn == list(range(40))


def test_every_position_of_a_shuffled_stream_is_found_from_anywhere():
    def shuffled() -> IterableDataset:
        return numbers(30).to_iterable_dataset(num_shards=4).shuffle(seed=1, buffer_size=7)

    whole = rows_of(shuffled(), 80, 8)
    drawn = [read(whole, *range(start, start + 8)) for start in range(0, 80, 8)]
    first, second = sum(drawn, [])[:30], sum(drawn, [])[30:60]
    assert sorted(first) == sorted(second) and first != second != sorted(second), "each epoch in an order of its own"
    for i in (9, 3, 4):
        assert read(rows_of(shuffled(), 80, 8), *range(8 * i, 8 * i + 8)) == drawn[i]


def test_a_row_that_cannot_be_used_is_named_before_the_run_or_when_it_comes():
    texts = ["a"] * 1500
    texts[700] = ""
    with pytest.raises(ValueError, match="`train_dataset` row 700: the prompt is empty; filter such rows out"):
        rows_of(Dataset.from_dict({"prompt": texts}).to_iterable_dataset(), 1500, 4)
    texts[700], texts[1202] = "a", "a" * 50
    rows = rows_of(Dataset.from_dict({"prompt": texts}).to_iterable_dataset(), 1500, 4)
    assert read(rows, 1196) == ["a"]
    with pytest.raises(ValueError, match="`train_dataset` row 1202: the prompt has 50 tokens"):
        read(rows, 1203)  # every process reads the whole rollout, so that all of them stop at this row


def test_a_stream_that_ends_for_ever_is_refused():
    left = iter(["a", "b", "c"])
    once = rows_of(IterableDataset.from_generator(lambda: ({"prompt": text} for text in left)), 8, 4)
    with pytest.raises(ValueError, match="`train_dataset` gives no rows when it is read again; make the stream of a"):
        read(once, 0)


SETTINGS = {"scripted": False, "save_strategy": "steps", "save_steps": 1, "num_mini_batches": 2}


def test_a_run_on_a_stream_is_the_run_on_its_rows(tmp_path):
    """Also where the stream has columns that no feature describes."""

    def unknown():
        yield from scripted.prompts(16)

    ends = []
    for data in (
        scripted.prompts(16),
        scripted.prompts(16).to_iterable_dataset(),
        IterableDataset.from_generator(unknown),
    ):
        made = scripted.trainer(tmp_path, train_dataset=data, shuffle_dataset=False, scripted=False)
        made.train()
        assert made.state.global_step == 4
        ends.append(scripted.weights(made))
    assert all(torch.equal(value, end[name]) for end in ends[1:] for name, value in ends[0].items())


def test_another_stream_is_not_gone_on_with(tmp_path):
    def stream(seed):
        return scripted.prompts(30).to_iterable_dataset().shuffle(seed=seed, buffer_size=30)

    scripted.trainer(tmp_path, train_dataset=stream(0), max_steps=2, total_episodes=None, **SETTINGS).train()
    other = scripted.trainer(tmp_path, train_dataset=stream(1), max_steps=4, total_episodes=None, **SETTINGS)
    with pytest.raises(ValueError, match=r"another configuration: train_dataset \(then stream \w+, now stream"):
        other.train(resume_from_checkpoint=True)
    longer = scripted.trainer(tmp_path, train_dataset=stream(0), max_steps=8, total_episodes=None, **SETTINGS)
    longer.train(resume_from_checkpoint=True)
    assert longer.state.global_step == 8, "a longer run goes on with the rows that follow"


def one_process(folder: Path) -> None:
    """What `torchrun` starts: an order of its own in each process."""
    stream = (
        scripted.prompts(30).to_iterable_dataset().shuffle(seed=random.SystemRandom().getrandbits(30), buffer_size=9)
    )
    scripted.trainer(folder, train_dataset=stream)


def test_processes_that_read_different_streams_are_refused(tmp_path):
    done = torchrun(Path(__file__), tmp_path)
    assert done.returncode != 0
    assert "`train_dataset` is a stream whose rows differ from process to process; shuffle it" in done.stderr


if __name__ == "__main__":
    one_process(Path(sys.argv[1]))
