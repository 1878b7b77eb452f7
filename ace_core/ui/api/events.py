"""What Gradio keeps of calls, and would keep long after them: half a megabyte of settings each, with what was said."""

from __future__ import annotations

from collections import OrderedDict

import gradio as gr

__all__ = ["Events"]


class Events:
    """Calls of the endpoints that are not over; used by the server's event loop only.

    A call without a page has a session of its own, named as its event.

    Args:
        page: whose queue and sessions they are in.
        most: how many that nobody follows are kept.
    """

    def __init__(self, page: gr.Blocks, most: int) -> None:
        self._page, self._most = page, most
        self._unfollowed: OrderedDict[str, None] = OrderedDict()

    async def asked(self, event: str) -> None:
        """A call was made."""
        self._unfollowed[event] = None
        while len(self._unfollowed) > self._most:
            oldest, _ = self._unfollowed.popitem(last=False)
            await self._page._queue.clean_events(session_hash=oldest)
            self.forget(oldest)

    def followed(self, event: str) -> None:
        """Somebody reads its stream."""
        self._unfollowed.pop(event, None)

    def forget(self, event: str) -> None:
        """Its stream is over."""
        queue, sessions = self._page._queue, self._page.state_holder  # type: ignore[attr-defined]
        kept = (queue.pending_messages_per_session, queue.pending_event_ids_session)
        for each in (*kept, sessions.session_data, sessions.time_last_used):
            each.pop(event, None)
