"""One model in memory that answers with its adapter or without it, as requested."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qwen_local.backends.base import Arrays, Backend, Completion, Sampling, Session


class Switch:
    """Puts an adapter into the model and takes it out again.

    Without its arrays, a LoRA layer computes exactly what the base layer does:
    y = W x + scale * 0.
    """

    def __init__(self, engine: Backend, adapter: Arrays) -> None:
        """Put the adapter into the model.

        Args:
            engine: has a model that was opened with LoRA layers.
            adapter: arrays with PEFT names and layout.
        """
        self._engine = engine
        self._arrays: dict[bool, Arrays] = {True: adapter, False: {}}
        self._on: bool | None = None
        self.turn(on=True)

    def turn(self, *, on: bool) -> None:
        """Use the adapter from now on, or the base model alone."""
        if self._on is not on:
            self._on = None  # an interrupt leaves some layers of each
            self._engine.load_adapter(self._arrays[on])
            self._on = on

    def session(self, *, on: bool) -> Session:
        """Start a conversation that is always computed with the adapter, or always without it."""
        self.turn(on=on)
        return _Switched(self._engine.session(), lambda: self.turn(on=on))


class _Switched:
    """A session that selects its weights before it computes anything."""

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
