"""`Ledger`: a record of what left the short-term pool when, which the rules of the published M+ code ask for.

Other memories need none: a vector's row is its age, and what is not in the pool is in the long-term store. The
published code orders its store otherwise and loses part of it (`read_order`, `small_store`, `merge_every` of
`MemoryConfig`). Memories with these settings keep, for every layer,

* the rows that left the pool, in the order of leaving, first those *merged* into the store, then those that *wait*;
* a stamp for each: its age is its stamp plus the clock, which counts the vectors written since the record began;
* a recall frequency for each merged one, from which every merge takes the decay, until it is lost.

Legend:  L layers   n vectors in the pool   X vectors of one layer's list (merging makes them differ by layer)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..config import MemoryConfig
from ..errors import MemoryCorrupt

_LOST = 0.01  # recall frequency at which a vector is lost
_FOLD = 64  # writes after which waiting rows join the list where nothing is merged, so that a write costs the same


class Ledger:
    """What left each layer's pool, when, and for how long it stays.

    Args:
        config: sizes and rules.
        layers: decoder layers, L.
    """

    def __init__(self, config: MemoryConfig, layers: int) -> None:
        self.config = config
        self.clock = 0
        self.writes_waiting = 0  # writes since the last merge
        self.pool_stamps_Ln = torch.zeros(layers, 0, dtype=torch.long)
        self.rows = [torch.zeros(0, dtype=torch.long)] * layers  # merged ones, one tensor [X] a layer
        self.stamps = [torch.zeros(0, dtype=torch.long)] * layers
        self.recall = [torch.zeros(0)] * layers
        self.waiting_rows_Lx = torch.zeros(layers, 0, dtype=torch.long)
        self.waiting_stamps_Lx = torch.zeros(layers, 0, dtype=torch.long)

    # Sizes ------------------------------------------------------------------------------------------------------------

    @property
    def merged(self) -> int:
        """Merged vectors (in the layer that has the fewest)."""
        return min(len(rows) for rows in self.rows)

    @property
    def size(self) -> int:
        """Vectors in the long-term store, merged or waiting (in the layer that has the fewest)."""
        return self.merged + self.waiting_rows_Lx.shape[1]

    @property
    def read_size(self) -> int:
        """Vectors that each layer reads for a question."""
        if self.config.small_store == "repeat":
            return self.config.K0 if self.merged else 0
        return min(self.config.K0, self.size)

    @property
    def first_row(self) -> int:
        """The earliest row in any layer's list; a large number if all are empty."""
        rows = [*self.rows, self.waiting_rows_Lx.flatten()]
        return min((int(r.min()) for r in rows if len(r)), default=torch.iinfo(torch.long).max)

    # Writing ----------------------------------------------------------------------------------------------------------

    def write(self, kept_Ln: Tensor, gone_Lx: Tensor, rows_Lx: Tensor) -> None:
        """Book one write: who stays in the pool, who left it, and K new vectors at its end.

        Args:
            kept_Ln: places in the pool that stay.
            gone_Lx: places that leave.
            rows_Lx: rows of those that leave.
        """
        K, layers = self.config.K, len(self.rows)
        self.clock += K
        stamps_Lx = self.pool_stamps_Ln.gather(1, gone_Lx)
        new = torch.arange(K - 1, -1, -1)
        if self.config.read_order == "left":  # in the pool a stamp is the age itself, which stands still there
            stamps_Lx = stamps_Lx - self.clock
        else:
            new = new - self.clock
        self.pool_stamps_Ln = torch.cat([self.pool_stamps_Ln.gather(1, kept_Ln), new.expand(layers, -1)], 1)
        self.waiting_rows_Lx = torch.cat([self.waiting_rows_Lx, rows_Lx], 1)
        self.waiting_stamps_Lx = torch.cat([self.waiting_stamps_Lx, stamps_Lx], 1)
        self.writes_waiting += 1
        if self.writes_waiting >= (self.config.merge_every or _FOLD):
            self._merge()

    def _merge(self) -> None:
        """Put what waits to what is merged, and lose what has been there for too many merges."""
        entering = torch.full((self.waiting_rows_Lx.shape[1],), float(self.config.recall_start))
        for l in range(len(self.rows)):
            rows = torch.cat([self.rows[l], self.waiting_rows_Lx[l]])
            stamps = torch.cat([self.stamps[l], self.waiting_stamps_Lx[l]])
            recall = torch.cat([self.recall[l], entering])
            if self.config.merge_every is not None:
                stays = recall - self.config.recall_decay > _LOST
                if int(stays.sum()) > self.config.K0:  # else nothing is lost, and nothing decays
                    rows, stamps = rows[stays], stamps[stays]
                    recall = (recall - self.config.recall_decay)[stays]
            self.rows[l], self.stamps[l], self.recall[l] = rows, stamps, recall
        self.waiting_rows_Lx = self.waiting_rows_Lx[:, :0]
        self.waiting_stamps_Lx = self.waiting_stamps_Lx[:, :0]
        self.writes_waiting = 0

    # Reading ----------------------------------------------------------------------------------------------------------

    def listed(self, layer: int) -> Tensor:
        """Rows of a layer's long-term store, in the order in which they left the pool [X]."""
        return torch.cat([self.rows[layer], self.waiting_rows_Lx[layer]])

    def ages(self, layer: int) -> Tensor:
        """Their ages, in vectors written [X]."""
        return torch.cat([self.stamps[layer], self.waiting_stamps_Lx[layer]]) + self.clock

    def best(self, layer: int, scores: Tensor, first_row: int) -> Tensor:
        """Rows of the long-term vectors that a layer reads, in the order of reading [read_size].

        Args:
            layer: index.
            scores: one for every row from `first_row` on.
            first_row: the first row that has a score.
        """
        rows, wanted, merged = self.listed(layer), self.read_size, len(self.rows[layer])
        if self.config.small_store == "repeat" and merged < self.config.K0:  # what waits is not read, either
            times = -(-wanted // max(1, merged))
            chosen = torch.arange(merged).repeat(times)[times * merged - wanted :]
        else:
            chosen = scores[rows - first_row].topk(wanted).indices.sort().values
        if self.config.read_order == "written":
            return rows[chosen].sort().values
        # The published code reverses an ascending sort, so of equal ages the last to leave the pool comes first.
        return rows[chosen[self.ages(layer)[chosen].argsort(stable=True).flip(0)]]

    # As a whole -------------------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that make it whole, with `meta`."""
        return {
            "ledger_pool_stamps": self.pool_stamps_Ln,
            "ledger_sizes": torch.tensor([len(rows) for rows in self.rows]),
            "ledger_rows": torch.cat(self.rows),
            "ledger_stamps": torch.cat(self.stamps),
            "ledger_recall": torch.cat(self.recall),
            "ledger_waiting_rows": self.waiting_rows_Lx,
            "ledger_waiting_stamps": self.waiting_stamps_Lx,
        }

    def meta(self) -> dict[str, Any]:
        """The plain values that make it whole, with `tensors`; JSON-ready."""
        return {"clock": self.clock, "writes_waiting": self.writes_waiting}

    @classmethod
    def from_parts(
        cls, config: MemoryConfig, pool_rows_Ln: Tensor, tensors: dict[str, Tensor], meta: dict[str, Any]
    ) -> Ledger:
        """The inverse of `tensors` and `meta` (under "ledger"). Raises `MemoryCorrupt` if they do not fit together."""
        self = cls(config, len(pool_rows_Ln))
        if missing := self.tensors().keys() - tensors.keys():
            raise MemoryCorrupt(f"the memory lacks its tensors {', '.join(sorted(missing))}; restore it from a copy.")
        sizes = tensors["ledger_sizes"].tolist()
        for name, whole in (("pool_stamps", pool_rows_Ln), ("waiting_stamps", tensors["ledger_waiting_rows"])):
            if tensors[f"ledger_{name}"].shape != whole.shape or len(whole) != len(sizes):
                raise MemoryCorrupt(
                    f"memory tensor 'ledger_{name}' is {tuple(tensors[f'ledger_{name}'].shape)}, expected "
                    f"{(len(sizes), *whole.shape[1:])}."
                )
        for name in ("rows", "stamps", "recall"):
            found = tensors[f"ledger_{name}"]
            if found.shape != (sum(sizes),):
                raise MemoryCorrupt(f"memory tensor 'ledger_{name}' is {tuple(found.shape)}, expected {(sum(sizes),)}.")
            setattr(self, name, list(found.split(sizes)))
        self.pool_stamps_Ln = tensors["ledger_pool_stamps"]
        self.waiting_rows_Lx = tensors["ledger_waiting_rows"]
        self.waiting_stamps_Lx = tensors["ledger_waiting_stamps"]
        self.clock, self.writes_waiting = meta["ledger"]["clock"], meta["ledger"]["writes_waiting"]
        return self
