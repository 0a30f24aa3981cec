"""The steps saved in a run of known length: sorted, unique and lazy, however long the run."""

import operator
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice, pairwise
from math import lcm
from typing import TypeAlias, cast, overload

# How many steps of a range are sorted at a time where ranges interleave.
_CHUNK = 2**14


@dataclass(frozen=True, slots=True)
class _Interleaved:
    """The union of ranges over the same steps, none containing another, such as every 2 and every 3.

    The pattern repeats with the least common multiple of the strides, so one period answers for all.
    """

    ranges: tuple[range, ...]

    @property
    def first(self) -> int:
        return min(steps[0] for steps in self.ranges)

    @property
    def last(self) -> int:
        return max(steps[-1] for steps in self.ranges)

    @property
    def period(self) -> int:
        return lcm(*(steps.step for steps in self.ranges))

    def __contains__(self, step: int) -> bool:
        return any(step in steps for steps in self.ranges)

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
        width = _CHUNK * min(steps.step for steps in self.ranges)
        for start in range(low, high, width):
            stop = min(start + width, high)
            yield sorted(set().union(*(_clip(steps, start, stop) for steps in self.ranges)))


_Block: TypeAlias = range | _Interleaved


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Steps(Sequence[int]):
    """Steps in ascending order without repeats, as a sequence: `in`, `len`, indexing, iteration.

    `in` takes time proportional to the number of terms, and `len` is arithmetic unless ranges interleave: nothing is
    listed until the caller iterates. Build a value with `Steps.union`.
    """

    blocks: tuple[_Block, ...]
    """Non-empty blocks in ascending order that do not overlap."""

    @classmethod
    def union(cls, parts: Iterable[Sequence[int]]) -> "Steps":
        """The steps in any of `parts`: ascending ranges, which stay lazy, or other sequences, which are listed."""
        ranges: set[range] = set()
        single: set[int] = set()
        for part in parts:
            if isinstance(part, range) and len(part) > 1:
                ranges.add(part)
            else:
                single.update(part)
        return cls(tuple(_disjoint(_without_contained(ranges), single)))

    def __contains__(self, step: object) -> bool:
        # For an integer that is not an int (numpy's), range searches through all its elements.
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
            raise IndexError(f"index {position} is out of range for {length} steps")
        return next(self._between(position % length, position % length + 1))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Steps):
            return NotImplemented
        # The same steps can be cut into blocks in more than one way.
        return self.blocks == other.blocks or (len(self) == len(other) and all(map(operator.eq, self, other)))

    def __hash__(self) -> int:
        return hash((len(self), *self[:1], *self[-1:]))

    def __repr__(self) -> str:
        return f"<Steps {elided(self)}>"

    def _between(self, low: int, high: int) -> Iterator[int]:
        """The steps at positions low <= position < high; whole blocks outside are skipped."""
        for block in self.blocks:
            length = len(block)
            if low < length and high > 0:
                start = max(0, low)
                yield from block[start:high] if isinstance(block, range) else islice(block, start, high)
            low, high = low - length, high - length

    def largest_gap(self) -> int:
        """The longest stretch of training without a checkpoint, in steps.

        The largest distance between neighbours. The start of training counts as a point even if step 0 is not saved,
        so `every:100` has a gap of 100.
        """
        widest, previous = 0, 0
        for block in self.blocks:
            widest = max(widest, _first(block) - previous, _inner_gap(block))
            previous = _last(block)
        return widest


def elided(steps: Sequence[int], room: int = 36) -> str:
    """`0, 25, …, 400`: as many steps from both ends as fit into `room` characters, at least the last."""
    most = min(len(steps), room)
    front, back = list(map(str, steps[:most])), list(map(str, steps[-most:]))
    if len(steps) == most and len(whole := ", ".join(front)) <= room:
        return whole
    best = f"…, {back[-1]}"
    for shown in range(2, most):
        text = ", ".join([*front[: (shown + 1) // 2], "…", *back[-(shown // 2) :]])
        if len(text) > room:
            break
        best = text
    return best


def _first(block: _Block) -> int:
    return block.first if isinstance(block, _Interleaved) else block[0]


def _last(block: _Block) -> int:
    return block.last if isinstance(block, _Interleaved) else block[-1]


def _inner_gap(block: _Block) -> int:
    if isinstance(block, _Interleaved):
        return block.largest_gap()
    return block.step if len(block) > 1 else 0


def _clip(steps: range, low: int, high: int) -> range:
    """The steps of `steps` in low <= step < high."""
    return steps[bisect_left(steps, low) : bisect_left(steps, high)]


def _without_contained(ranges: Iterable[range]) -> list[range]:
    kept: list[range] = []
    for candidate in sorted(ranges, key=len, reverse=True):
        if not any(_contains(longer, candidate) for longer in kept):
            kept.append(candidate)
    return kept


def _contains(outer: range, inner: range) -> bool:
    aligned = len(inner) == 1 or inner.step % outer.step == 0
    return aligned and inner[0] in outer and inner[-1] in outer


def _disjoint(ranges: list[range], single: set[int]) -> Iterator[_Block]:
    """The union, cut at every single step and at both ends of every range, so that no pieces overlap."""
    cuts = {edge for steps in ranges for edge in (steps[0], steps[-1] + 1)}
    cuts |= {edge for step in single for edge in (step, step + 1)}
    for low, high in pairwise(sorted(cuts)):
        if low in single:
            yield range(low, high)
            continue
        crossing = (_clip(steps, low, high) for steps in ranges if steps[0] < high and steps[-1] >= low)
        pieces = _without_contained({piece for piece in crossing if piece})
        if len(pieces) > 1:
            yield _Interleaved(tuple(pieces))
        elif pieces:
            yield pieces[0]
