"""Makes a plan that shows something as small as it can be."""

from collections.abc import Callable, Mapping, Sequence

from explorer.plans import Action, Plan, Spot


def smallest(
    order: Sequence[str],
    used: Mapping[Spot, Action],
    shows: Callable[[Plan], Mapping[Spot, Action] | None],
) -> Plan:
    """Return the plan with the fewest actions that still shows what was found.

    `shows` runs a plan; it returns the actions that were used, None if the plan does not show it.
    """
    plan = Plan(tuple(order), at_spots=dict(used))
    is_smaller = True
    while is_smaller:
        is_smaller = False
        for spot in reversed(list(plan.at_spots)):
            fewer = {one: action for one, action in plan.at_spots.items() if one != spot}
            seen = shows(Plan(plan.order, at_spots=fewer))
            if seen is not None:
                plan, is_smaller = Plan(plan.order, at_spots=dict(seen)), True
                break
    return plan
