# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The chat as its user sees it: one-shot output, commands, rewards, narrow and wide terminals, refusals."""

import io
import os
import signal

import pytest
from rich.console import Console

from tests.tiny_models import save_tiny, tiny_causal_lm, tiny_classifier, tiny_tokenizer
from trl_ext.chatting.screen import PlainScreen, TerminalScreen, screen_for
from trl_ext.chatting.session import Session, Stop, turn
from trl_ext.chatting.speaker import Speaker
from trl_ext.chatting.talk import Talk
from trl_ext.commands.chat import main
from trl_ext.messages.printable import printable
from trl_ext.rewards import RewardRunner
from trl_ext.rewards.by_name import reward_by_name
from trl_ext.running.finished import Sampling

REWARDS = """
def letters(completions, **columns):
    return [float(len(text if isinstance(text, str) else text[0]["content"])) for text in completions]

def seldom(completions, **columns):
    return [None for _ in completions]

def broken(completions, **columns):
    raise OSError("the scorer is away")
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    save_tiny(folder / "chat", tiny_causal_lm())
    save_tiny(folder / "other", tiny_causal_lm(seed=1))
    save_tiny(folder / "text", tiny_causal_lm(), tiny_tokenizer(chat_template=False))
    save_tiny(folder / "classifier", tiny_classifier())
    (folder / "scores.py").write_text(REWARDS)
    return folder


def talk(models: int = 2, conversational: bool = True, **options) -> Talk:
    sampling = Sampling(max_completion_length=6, temperature=0.0)
    speakers = [
        Speaker(f"model {seed}", tiny_causal_lm(seed=seed), tiny_tokenizer(), sampling, conversational=conversational)
        for seed in range(models)
    ]
    return Talk(speakers, **options)


def terminal(width: int) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, height=30, color_system=None)


def run(told: Talk, *lines: str, console: Console | None = None) -> str:
    """What a chat prints for these lines of the user."""
    console = console or Console(file=io.StringIO())
    given = iter(lines)

    def read() -> str:
        line = next(given, None)
        if line is None:
            raise EOFError
        return line

    Session(told, screen_for(console), read).run()
    return console.file.getvalue()


def test_one_answer_to_a_pipe_is_its_text_alone(world, capfd):
    main([str(world / "text"), "--prompt", "the cat", "--temperature", "0", "--max_completion_length", "6"])
    out, err = capfd.readouterr()
    one = Speaker("x", tiny_causal_lm(), tiny_tokenizer(), Sampling(6, 0.0), conversational=False)
    assert out == one.answer("the cat", seed=0).text + "\n" and "\x1b" not in out
    assert "continues texts, greedy, at most 6 tokens" in err


def test_the_rewards_shown_are_those_of_the_functions(world, capfd):
    classifier, scores = world / "classifier", world / "scores.py"
    names = [f"toxicity:{classifier}", f"{scores}:letters", f"{scores}:seldom"]
    options = [text for name in names for text in ("--reward", name)]
    options += ["--reward_weights", "1", "0.5", "3", "--temperature", "0", "--max_completion_length", "6"]
    main([str(world / "chat"), "--baseline", str(world / "other"), "--prompt", "hi", *options])
    out = capfd.readouterr().out
    for seed in (0, 1):
        one = Speaker("x", tiny_causal_lm(seed=seed), tiny_tokenizer(), Sampling(6, 0.0), conversational=True)
        answer = one.answer("hi", seed=0)
        said = [[{"role": "assistant", "content": answer.text}]]
        toxicity = reward_by_name(names[0])([answer.prompt], said, [answer.ids])[0]
        total = toxicity + 0.5 * len(answer.text)
        line = f"[non_toxicity {toxicity:.3g} · letters {len(answer.text):.3g} · seldom none · sum {total:.3g} · "
        assert line in out and answer.text in out
    assert "\x1b" not in out


def test_a_reward_that_fails_leaves_the_answer(world, capfd):
    main([str(world / "text"), "--prompt", "the cat", "--reward", f"{world / 'scores.py'}:broken"])
    out = capfd.readouterr().out
    assert "broken none" in out and "OSError: the scorer is away" in out


def test_commands_change_the_conversation_and_nothing_else():
    told = talk()
    out = run(told, "hello", "and now?", "/undo", "/help", "/udno", "/again", "//x")
    messages = [m["content"] for m in told.speakers[0].messages if m["role"] == "user"]
    assert messages == ["hello", "/x"]
    assert all(len(speaker.messages) == 4 for speaker in told.speakers)
    assert "Forgotten: and now?" in out and "did you mean `/undo`?" in out and "There is no message" in out
    assert "Ctrl-C stops an answer" in out
    run(told, "/reset", "   ", "/quit", "never read")
    assert [speaker.messages for speaker in told.speakers] == [[], []]


def test_again_answers_the_same_message_with_another_seed():
    told = talk(1)
    told.speakers[0].sampling = Sampling(max_completion_length=12)
    run(told, "hello", "/again")
    first, second = (
        talk(1).speakers[0].answer("hello", seed=0).prompt,
        told.speakers[0].messages,
    )
    assert second[:1] == first and len(second) == 2 and told.seed == 2


def test_a_backslash_goes_on_in_the_next_line():
    told = talk(1)
    run(told, "one \\", "two")
    assert told.speakers[0].messages[0]["content"] == "one \ntwo"


def test_without_a_template_each_text_is_continued_on_its_own():
    told = talk(1, conversational=False)
    out = run(told, "the cat", "/undo", "the cat")
    assert "each text is continued on its own" in out and told.speakers[0].messages == []


def test_text_that_does_not_fit_is_one_line_and_the_chat_goes_on():
    told = talk(1)
    out = run(told, "the cat sat " * 60, "hello")
    assert "error: The prompt has" in out and [m["content"] for m in told.speakers[0].messages][0] == "hello"


def test_ctrl_c_stops_one_answer_and_neither_the_other_nor_the_chat():
    told, console, asked = talk(), Console(file=io.StringIO()), []

    class Pressing(Stop):
        def __call__(self) -> bool:
            asked.append(1)
            if len(asked) == 2:
                os.kill(os.getpid(), signal.SIGINT)
            return super().__call__()

    turn(told, PlainScreen(console), "hello", Pressing())
    first, second = (speaker.messages[1]["content"] for speaker in told.speakers)
    whole = talk()
    turn(whole, PlainScreen(Console(file=io.StringIO())), "hello")
    ours, theirs = (speaker.messages[1]["content"] for speaker in whole.speakers)
    assert ours.startswith(first) and len(first) < len(ours) and second == theirs
    assert console.file.getvalue().count("stopped") == 1


def test_a_second_ctrl_c_forgets_the_message():
    told = talk()

    class Impatient(Stop):
        def __call__(self) -> bool:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
            return super().__call__()

    with pytest.raises(KeyboardInterrupt):
        turn(told, PlainScreen(Console(file=io.StringIO())), "hello", Impatient())
    assert [speaker.messages for speaker in told.speakers] == [[], []]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_columns_where_they_fit_and_one_under_the_other_where_not():
    wide, narrow = (run(talk(), "hello", console=terminal(width)) for width in (120, 50))
    assert any("model 0" in line and "model 1" in line for line in wide.splitlines())
    assert not any("model 0" in line and "model 1" in line for line in narrow.splitlines())
    assert max(len(printable(line)) for line in narrow.splitlines()) == 50


def test_a_model_cannot_drive_the_terminal(monkeypatch):
    told, console = talk(1), terminal(80)
    wicked = "\x1b[2Jgone\x1b]0;title\x07 \u202eback [bold]mark[/bold]"
    monkeypatch.setattr("trl_ext.chatting.speaker.decode_answers", lambda *a: [wicked])
    monkeypatch.setattr("trl_ext.evaluation.sampling.decode_answers", lambda *a: [wicked])
    out = run(told, "hello", console=console)
    assert "gone back [bold]mark[/bold]" in out and "\x1b[2J" not in out and "\x1b]0" not in out and "\u202e" not in out


def test_a_terminal_that_cannot_move_its_cursor_gets_plain_text(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(screen_for(Console(file=io.StringIO(), force_terminal=True)), PlainScreen)
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(screen_for(Console(file=io.StringIO(), force_terminal=True)), TerminalScreen)


def test_scores_of_a_talk_are_those_of_the_runner(world):
    rewards = RewardRunner([reward_by_name(f"{world / 'scores.py'}:letters")])
    told = talk(rewards=rewards)
    scored, messages = told.score(told.answers("hello"))
    assert [one.rewards["letters"] for one in scored] == [float(len(one.answer.text)) for one in scored]
    assert messages == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["./nothing"], "`DIR` './nothing' is a folder that does not exist"),
        (["{chat}", "--baseline", "./nothing"], "`--baseline` './nothing' is a folder that does not exist"),
        (["{chat}", "--reward", "nothing.py:f"], "there is no file 'nothing.py'"),
        (["{chat}", "--reward", "{scores}:letters", "--reward_weights", "1", "2"], "2 numbers for 1 rewards"),
        (["{chat}", "--temperature", "-1"], "`--temperature` is -1.0; give 0, which is greedy, or more."),
        (["{chat}", "--top_p", "0"], "`--top_p` is 0.0"),
        (["{chat}", "--max_completion_length", "0"], "`--max_completion_length` is 0"),
        (["{text}", "--system", "Be kind."], "`--system` is a message of a conversation, and '{text}' has no chat"),
        (["{chat}", "--system", "Be kind.", "--plain"], "`--plain` continues texts; leave it out."),
        (["{chat}", "--device", "cuda:77"], "`--device cuda:77` is not a device of this machine"),
        (["{chat}", "--prompt", " \n"], "`--prompt` is empty"),
    ],
)
def test_refusals_are_one_line_before_anything_is_loaded(world, capsys, monkeypatch, options, message):
    places = {"chat": world / "chat", "text": world / "text", "scores": world / "scores.py"}
    monkeypatch.setattr("trl_ext.chatting.opening.load_pair", lambda pair: pytest.fail("loaded"))
    with pytest.raises(SystemExit) as end:
        main([option.format(**places) for option in options])
    (line,) = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and message.format(**places) in line


def test_settings_of_the_run_are_the_defaults(world, tmp_path, capfd):
    save_tiny(tmp_path / "run", tiny_causal_lm(), tiny_tokenizer(chat_template=False))
    settings = '{"temperature": 0.5, "max_completion_length": 3, "stop_strings": ["t"], "top_p": 0.9}'
    (tmp_path / "run" / "ppo_config.json").write_text(settings)
    (tmp_path / "run" / "base_model.json").write_text(f'{{"base_model": "{world / "other"}"}}')
    main([str(tmp_path / "run"), "--prompt", "the cat"])
    out, err = capfd.readouterr()
    assert "temperature 0.5, at most 3 tokens" in err and f"The baseline is '{world / 'other'}'" in err
    assert "baseline" in out
    (tmp_path / "run" / "base_model.json").write_text('{"base_model": "/gone/far"}')
    main([str(tmp_path / "run"), "--prompt", "the cat"])
    assert "Training began from '/gone/far', which is not at hand" in capfd.readouterr().err
    (tmp_path / "run" / "ppo_config.json").write_text("[")
    with pytest.raises(SystemExit):
        main([str(tmp_path / "run"), "--prompt", "the cat"])
    assert "cannot be read as settings of a run" in capfd.readouterr().err
