"""How a call is cut into tiles: a small table by head width and dtype, and a few rules that look at shapes only.

Nothing here depends on the contents of a batch, so that a captured graph serves every batch of its shape.
"""

from __future__ import annotations

import attrs

LEAST_LANES = 16
"""Smallest side of a matrix product on tensor cores."""
LEAST_KEYS = 16
"""The other side of one."""
MOST_SPLITS = 64
LEAST_KEYS_PER_SPLIT = 256
"""Below this the second kernel costs more than the first saves."""


@attrs.frozen(kw_only=True)
class Tiles:
    """The shape of one launch.

    A program computes `lanes` pairs of row and query head that share a KV head, `rows * heads` of which are used.

    Attributes:
        lanes: a power of two, at least 16.
        rows, heads: rows of the batch and query heads of a group that a program takes.
        keys: slots that one product takes, a power of two, at least 16.
        warps, stages: of the compiled kernel.
    """

    lanes: int
    rows: int
    heads: int
    keys: int
    warps: int
    stages: int


def choose_tiles(*, rows: int, sequences: int, group: int, head_dim: int, item_bytes: int, shared_bytes: int) -> Tiles:
    """Tiles for a batch.

    As many rows as a sequence has on average, so that a tile seldom has rows of several sequences, and no more than
    registers and shared memory hold.

    Args:
        rows, sequences: of the batch, padding included.
        group: query heads that share a KV head.
        head_dim: of keys and values.
        item_bytes: of their dtype.
        shared_bytes: most shared memory of a program.
    """
    most, keys = _limits(head_dim, item_bytes)
    average = max(1, rows // max(1, sequences))
    lanes = min(most, max(LEAST_LANES, power_of_two(average * group)))
    wanted = _Room(lanes=lanes, keys=keys, stages=_stages(lanes, keys, head_dim, item_bytes))
    room = wanted.fitted(power_of_two(head_dim) * item_bytes, item_bytes, shared_bytes)
    lanes = room.lanes
    heads = min(group, lanes)
    fit = lanes // heads
    # Blocks have a power of two of rows; a tile of another number would straddle two sequences of decoding rows.
    tile_rows = fit if average >= 4 * fit else 1 << (fit.bit_length() - 1)
    return Tiles(
        lanes=lanes,
        rows=tile_rows,
        heads=heads,
        keys=room.keys,
        warps=_warps(lanes, head_dim),
        stages=room.stages,
    )


@attrs.frozen(kw_only=True)
class _Room:
    """What of a tile takes shared memory; all as in `Tiles`."""

    lanes: int
    keys: int
    stages: int

    def fitted(self, row_bytes: int, item_bytes: int, most: int) -> _Room:
        """The largest that fits into `most` bytes, or the smallest of all where none seems to."""
        room = self
        while room.bytes(row_bytes, item_bytes) > most and room != (smaller := room.smaller()):
            room = smaller
        return room

    def bytes(self, row_bytes: int, item_bytes: int) -> int:
        """What a tile takes, or a little more: as compiled for capabilities below 9.0, whose programs have the least.

        Args:
            row_bytes: of a key, padded.
            item_bytes: of its dtype.
        """
        fetched = self.stages // 2 * 2 * self.keys * row_bytes + 8 * self.keys * self.stages
        if item_bytes == 2:
            return fetched + 3 * self.lanes * row_bytes // 2
        # Products of float32 are taken in three parts, of which large and small ones stand side by side.
        return fetched + self.keys * row_bytes + 5 * self.lanes * row_bytes // 2

    def smaller(self) -> _Room:
        """One step smaller, or the same: less waits first, then it is less that is shared, and then less per fetch."""
        if self.stages > 3:
            return attrs.evolve(self, stages=3)
        if self.lanes > 2 * LEAST_LANES:
            return attrs.evolve(self, lanes=self.lanes // 2)
        if self.keys > LEAST_KEYS:
            return attrs.evolve(self, keys=self.keys // 2)
        if self.lanes > LEAST_LANES:
            return attrs.evolve(self, lanes=self.lanes // 2)
        return attrs.evolve(self, stages=1)


def choose_splits(programs: int, processors: int, most_keys: int) -> int:
    """Into how many parts the keys of every tile are divided, so that few tiles over many keys keep a device busy.

    Args:
        programs: tiles times KV heads.
        processors: multiprocessors of the device.
        most_keys: slots of the longest sequence that the page tables have room for.
    """
    wanted = -(-2 * processors // max(1, programs))
    return max(1, min(wanted, most_keys // LEAST_KEYS_PER_SPLIT, MOST_SPLITS))


def power_of_two(number: int) -> int:
    """The smallest power of two that is at least `number`."""
    return 1 << max(0, number - 1).bit_length()


def _warps(lanes: int, head_dim: int) -> int:
    """So many that a thread holds at most 64 sums, and that 128 lanes are two warp groups' worth."""
    return min(8, max(4, lanes * power_of_two(head_dim) // (32 * 64), lanes // 16))


def _limits(head_dim: int, item_bytes: int) -> tuple[int, int]:
    """Most lanes, and keys of a product: what compiles for compute capability 9.0 without spilling registers much."""
    if item_bytes > 2:
        return (32, 32) if head_dim <= 128 else (16, 16)
    if head_dim <= 128:
        return 128, 64
    return (64, 64) if head_dim <= 256 else (32, 32)


def _stages(lanes: int, keys: int, head_dim: int, item_bytes: int) -> int:
    """Depth of the pipeline.

    Page numbers are fetched before keys and values, which takes half of it. Tiles of few lanes wait for memory most.
    """
    if keys * head_dim * item_bytes > 64 * 128 * 2:
        return 2
    return 5 if lanes < 64 else 3
