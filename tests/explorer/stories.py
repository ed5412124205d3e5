"""A schedule as a text that people read."""

from collections.abc import Iterator, Sequence

from explorer.scheduler import Event


def story(events: Sequence[Event]) -> Iterator[str]:
    """Yield one line for each stretch in which one task worked, and one for each action."""
    stretch: list[Event] = []
    for event in events:
        if stretch and (event.is_action or event.task != stretch[0].task):
            yield _line(stretch)
            stretch = []
        if event.is_action:
            yield f"{event.at_seconds:9.3f}  {event.task} ▸ {event.what}"
        else:
            stretch.append(event)
    if stretch:
        yield _line(stretch)


def _line(stretch: Sequence[Event]) -> str:
    first, last = stretch[0], stretch[-1]
    what = first.what if len(stretch) == 1 else f"{first.what} … {last.what} ({len(stretch)})"
    return f"{first.at_seconds:9.3f}  {first.task}: {what}"
