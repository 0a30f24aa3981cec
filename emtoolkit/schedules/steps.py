"""The steps saved in one run of known length: sorted, unique and lazy, however long the run."""

import operator
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice, pairwise
from math import lcm
from typing import TypeAlias, cast, overload

# How many steps of one range are sorted at a time where ranges interleave.
_CHUNK = 2**14


@dataclass(frozen=True, slots=True)
class _Interleaved:
    """The union of ranges that all span the same steps, none containing another, such as every 2 and every 3.

    Its pattern repeats with the least common multiple of the strides, so that one period answers for all.
    """

    ranges: tuple[range, ...]

    @property
    def first(self) -> int:
        return min(one[0] for one in self.ranges)

    @property
    def last(self) -> int:
        return max(one[-1] for one in self.ranges)

    @property
    def period(self) -> int:
        return lcm(*(one.step for one in self.ranges))

    def __contains__(self, step: int) -> bool:
        return any(step in one for one in self.ranges)

    def __iter__(self) -> Iterator[int]:
        return chain.from_iterable(self._chunks(self.first, self.last + 1))

    def __len__(self) -> int:
        whole, rest = divmod(self.last + 1 - self.first, self.period)
        in_a_period = self._count(self.first, self.first + self.period) if whole else 0
        return whole * in_a_period + self._count(self.last + 1 - rest, self.last + 1)

    def largest_gap(self) -> int:
        # The first step of the second period closes the last gap of the first.
        steps = chain.from_iterable(self._chunks(self.first, min(self.first + self.period, self.last) + 1))
        return max(after - before for before, after in pairwise(steps))

    def _count(self, low: int, high: int) -> int:
        return sum(map(len, self._chunks(low, high)))

    def _chunks(self, low: int, high: int) -> Iterator[list[int]]:
        width = _CHUNK * min(one.step for one in self.ranges)
        for start in range(low, high, width):
            stop = min(start + width, high)
            yield sorted(set().union(*(_clip(one, start, stop) for one in self.ranges)))


_Block: TypeAlias = range | _Interleaved


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Steps(Sequence[int]):
    """Steps in ascending order, once each, as a sequence: `in`, `len`, indexing, iteration.

    `in` costs no more than the number of terms and `len` of ranges that do not interleave is arithmetic:
    nothing is listed before somebody iterates. Build it with `Steps.union`.
    """

    blocks: tuple[_Block, ...]
    """Neither empty nor overlapping, in ascending order."""

    @classmethod
    def union(cls, parts: Iterable[Sequence[int]]) -> "Steps":
        """The steps in any of `parts`: ascending ranges, or other sequences of steps, which are listed."""
        ranges: set[range] = set()
        single: set[int] = set()
        for part in parts:
            if isinstance(part, range) and len(part) > 1:
                ranges.add(part)
            else:
                single.update(part)
        return cls(tuple(_disjoint(_without_contained(ranges), single)))

    def __contains__(self, step: object) -> bool:
        # range falls back to a search through all its elements for an integer that is not an int (numpy's).
        number = operator.index(cast(int, step))
        position = bisect_right(self.blocks, number, key=_first) - 1
        return position >= 0 and number in self.blocks[position]

    def __iter__(self) -> Iterator[int]:
        return chain.from_iterable(self.blocks)

    def __len__(self) -> int:
        return sum(map(len, self.blocks))

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[int, ...]: ...
    def __getitem__(self, index: int | slice) -> int | tuple[int, ...]:
        length = len(self)
        if isinstance(index, slice):
            positions = range(length)[index]
            if not positions:
                return ()
            low, high = min(positions[0], positions[-1]), max(positions[0], positions[-1])
            listed = tuple(self._between(low, high + 1))
            return listed[:: positions.step] if len(positions) > 1 else listed
        position = operator.index(index)
        if not -length <= position < length:
            raise IndexError(f"no step number {position} among {length}")
        return next(self._between(position % length, position % length + 1))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Steps):
            return NotImplemented
        # The same steps can be cut into blocks in more than one way.
        return self.blocks == other.blocks or (len(self) == len(other) and all(map(operator.eq, self, other)))

    def __hash__(self) -> int:
        return hash((len(self), *self[:1], *self[-1:]))

    def __repr__(self) -> str:
        shown = map(str, self) if len(self) <= 8 else [*map(str, self[:4]), "...", *map(str, self[-2:])]
        return f"<Steps {', '.join(shown)}>"

    def _between(self, low: int, high: int) -> Iterator[int]:
        """The steps at positions low <= position < high, skipping whole blocks where it can."""
        for block in self.blocks:
            length = len(block)
            if low < length and high > 0:
                start = max(0, low)
                yield from block[start:high] if isinstance(block, range) else islice(block, start, high)
            low, high = low - length, high - length

    def largest_gap(self) -> int:
        """The longest stretch of training without a checkpoint, in steps.

        The largest distance between neighbours; the start of training counts as the first point whether or
        not step 0 is saved, so that every 100 steps have a gap of 100.
        """
        widest, previous = 0, 0
        for block in self.blocks:
            widest = max(widest, _first(block) - previous, _inner_gap(block))
            previous = _last(block)
        return widest


def _first(block: _Block) -> int:
    return block.first if isinstance(block, _Interleaved) else block[0]


def _last(block: _Block) -> int:
    return block.last if isinstance(block, _Interleaved) else block[-1]


def _inner_gap(block: _Block) -> int:
    if isinstance(block, _Interleaved):
        return block.largest_gap()
    return block.step if len(block) > 1 else 0


def _clip(one: range, low: int, high: int) -> range:
    """The part of `one` in low <= step < high."""
    return one[bisect_left(one, low) : bisect_left(one, high)]


def _without_contained(ranges: Iterable[range]) -> list[range]:
    kept: list[range] = []
    for one in sorted(ranges, key=len, reverse=True):
        if not any(_contains(other, one) for other in kept):
            kept.append(one)
    return kept


def _contains(outer: range, inner: range) -> bool:
    aligned = len(inner) == 1 or inner.step % outer.step == 0
    return aligned and inner[0] in outer and inner[-1] in outer


def _disjoint(ranges: list[range], single: set[int]) -> Iterator[_Block]:
    """The union, cut at every single step and at both ends of every range so that no pieces overlap."""
    cuts = {edge for one in ranges for edge in (one[0], one[-1] + 1)}
    cuts |= {edge for step in single for edge in (step, step + 1)}
    for low, high in pairwise(sorted(cuts)):
        if low in single:
            yield range(low, high)
            continue
        crossing = (_clip(one, low, high) for one in ranges if one[0] < high and one[-1] >= low)
        pieces = _without_contained({piece for piece in crossing if piece})
        if len(pieces) > 1:
            yield _Interleaved(tuple(pieces))
        elif pieces:
            yield pieces[0]
