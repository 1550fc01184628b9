"""Discounts."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class Discount:
    """A share of the total that is taken off if a condition holds."""

    name: str
    share: float
    applies: Callable

    def __repr__(self):
        return f"Discount({self.name}, {self.share:.0%})"


def apply_discounts(orders, rules):
    """The largest discount that applies to each order."""

    def largest(order):
        return max([rule.share for rule in rules if rule.applies(order)], default=0.0)

    return orders.apply(largest, axis=1)
