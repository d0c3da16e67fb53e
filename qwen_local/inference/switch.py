"""One model in memory that answers with its adapter or without it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qwen_local.backends.base import Arrays, Backend, Completion, Sampling, Session


class Switch:
    """Puts an adapter's arrays into the model, or none.

    Linear layers without arrays are those of the base. Of a LoRA to the bit: y = W x + scale * 0.
    """

    def __init__(self, engine: Backend, adapter: Arrays) -> None:
        """Put the adapter on.

        Args:
            engine: whose model has room for an adapter.
            adapter: PEFT names and layout.
        """
        self._engine = engine
        self._arrays: dict[bool, Arrays] = {True: adapter, False: {}}
        self._on: bool | None = None
        self.turn(on=True)

    def turn(self, *, on: bool) -> None:
        """From here on the model answers with the adapter, or without it."""
        if self._on is not on:
            self._on = None  # whatever breaks this off leaves a mixture
            self._engine.load_adapter(self._arrays[on])
            self._on = on

    def session(self, *, on: bool) -> Session:
        """A conversation of which every token is computed with the adapter, or without it."""
        self.turn(on=on)
        return _Switched(self._engine.session(), lambda: self.turn(on=on))


class _Switched:
    """A session that sees to its weights before it computes anything."""

    def __init__(self, session: Session, turn: Callable[[], None]) -> None:
        self._session = session
        self._turn = turn

    def reply(
        self,
        prompt: Sequence[int],
        *,
        max_tokens: int,
        stop_ids: Sequence[int],
        sampling: Sampling,
        emit: Callable[[int], bool],
    ) -> Completion:
        """See `Session.reply`."""
        self._turn()
        return self._session.reply(
            prompt, max_tokens=max_tokens, stop_ids=stop_ids, sampling=sampling, emit=emit
        )
