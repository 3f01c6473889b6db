# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The chat itself: texts and commands of the user, until the user has enough."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType

from trl_ext.messages.printable import one_line
from trl_ext.messages.suggestion import suggestion

from .screen import PlainScreen, TerminalScreen
from .talk import Talk

__all__ = ["COMMANDS", "Session", "Stop", "turn"]

COMMANDS = {
    "/help": "this list",
    "/reset": "begin a new conversation",
    "/undo": "forget the last message and its answer",
    "/again": "answer the last message again, with another seed",
    "/quit": "end the chat, as Ctrl-D does",
}
_KEYS = "Ctrl-C stops an answer. A line that ends in \\ goes on in the next. // begins a text with a slash."
_NO_CONVERSATION = "There is no conversation: each text is continued on its own."
_REFUSALS = (ValueError, TypeError, RuntimeError)


class Stop:
    """Whether the user has pressed Ctrl-C: asked after every token, and true once for each press."""

    def __init__(self) -> None:
        self._pressed = False

    def __call__(self) -> bool:
        """Return whether Ctrl-C was pressed since the last question."""
        pressed, self._pressed = self._pressed, False
        return pressed

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take Ctrl-C in a block; a second press before the first was asked for is a KeyboardInterrupt."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGINT, self._press)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
            self._pressed = False

    def _press(self, number: int, frame: FrameType | None) -> None:
        if self._pressed:
            raise KeyboardInterrupt
        self._pressed = True


def turn(talk: Talk, screen: TerminalScreen | PlainScreen, said: str, stop: Stop | None = None) -> None:
    """Answer one text, and show the answers with their rewards.

    Args:
        talk: The models.
        screen: Shows their answers.
        said: The text.
        stop: Takes Ctrl-C while the models answer; None to leave Ctrl-C as it is.

    Raises:
        ValueError: when the text does not fit into a model's context.
        ValueError, TypeError, RuntimeError: when a reward function fails; the answers are shown before.
    """
    begun = "" if talk.conversational else said
    titles = [speaker.title for speaker in talk.speakers]
    with screen.streaming(titles, begun) as write, stop.listening() if stop else nullcontext():
        answers = talk.answers(said, on_text=write, **({"stop": stop} if stop else {}))
    failure: Exception | None = None
    messages: list[str] = []
    scored = talk.unscored(answers)
    try:
        scored, messages = talk.score(answers)
    except KeyboardInterrupt:
        messages = ["The rewards were stopped."]
    except _REFUSALS as error:
        failure = error
    screen.answers(scored, begun)
    for message in messages:
        screen.say(one_line(message, 1000))
    if failure is not None:
        raise failure


class Session:
    """A chat: texts are answered, and lines that begin with a slash are commands.

    Args:
        talk: The models.
        screen: Shows their answers.
        read: Returns the next line of the user; raises EOFError at the end and KeyboardInterrupt at Ctrl-C.
    """

    def __init__(self, talk: Talk, screen: TerminalScreen | PlainScreen, read: Callable[[], str]):
        self.talk, self.screen, self.read = talk, screen, read
        self._last: str | None = None  # text of the user
        self._commands: dict[str, Callable[[], None]] = {
            "/help": self._help,
            "/reset": self._reset,
            "/undo": self._undo,
            "/again": self._again,
        }

    def run(self) -> None:
        """Answer until the user ends the chat."""
        while True:
            try:
                line = self._line()
            except KeyboardInterrupt:
                self.screen.say("/quit or Ctrl-D ends the chat.")
                continue
            except EOFError:
                return
            name = line.split()[0] if line.strip() else ""
            if name in ("/quit", "/exit"):
                return
            if name in self._commands:
                self._commands[name]()
            elif name.startswith("/") and not name.startswith("//"):
                answer = suggestion(name, COMMANDS) or "/help lists all of them."
                self.screen.say(f"There is no command {one_line(name, 60)}: {answer}")
            elif name:
                self._answer(line.removeprefix("/") if line.startswith("//") else line)

    def _line(self) -> str:
        """Return the next text of the user; a backslash at the end of a line joins the next."""
        lines = [self.read()]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(self.read())
        return "\n".join(lines)

    def _answer(self, said: str) -> None:
        self._last = said
        try:
            turn(self.talk, self.screen, said, Stop())
        except KeyboardInterrupt:
            self.screen.say("Stopped; the message is forgotten.")
        except _REFUSALS as error:
            self.screen.say(f"error: {one_line(error, 1000)}")

    def _help(self) -> None:
        lines = [f"{name:8} {text}" for name, text in COMMANDS.items()]
        self.screen.say("\n".join([*lines, _KEYS]))

    def _reset(self) -> None:
        self.talk.reset()
        self._last = None
        self.screen.say("A new conversation." if self.talk.conversational else _NO_CONVERSATION)

    def _undo(self) -> None:
        if not self.talk.conversational:
            self.screen.say(_NO_CONVERSATION)
            return
        said = self.talk.undo()
        self._last = None
        self.screen.say("There is nothing to forget." if said is None else f"Forgotten: {one_line(said, 60)}")

    def _again(self) -> None:
        if self._last is None:
            self.screen.say("There is no message to answer again.")
            return
        self.talk.undo()
        self._answer(self._last)
