"""Output shares: the blocks of a finished checkpoint compared by several ranks, each of which opens it, and its source, itself.

A rank starts at its first block with what the embedding returns. A block that is not found right elsewhere, for whatever reason
(on another machine the folders may be missing), is left to the first rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from compress.calibrate.gradient_shares import shares_of
from compress.checkpoint.files import sha256_of
from compress.checkpoint.fingerprint import content_fingerprint
from compress.checkpoint.source import Source, open_source
from compress.checkpoint.writer import REPORT
from compress.errors import UserError
from compress.models.skeleton import open_skeleton
from compress.system.orders import Place, answer
from compress.system.ranks import Ranks
from compress.verification import outputs


@dataclass(frozen=True)
class CheckBlocks:
    """The order to compare some blocks of a checkpoint.

    Attributes:
        folder: the checkpoint.
        source: the folder of the source that it was made from.
        trust_remote_code: as the source was opened.
        contents: hashes that say whether these are the folders that the first rank has.
        dtype: what blocks are computed in.
        blocks: their numbers.
    """

    folder: Path
    source: Path
    trust_remote_code: bool
    contents: tuple[str, str]
    dtype: torch.dtype
    blocks: range

    def carry_out(self, place: Place) -> bool:
        """Whether they were compared, and are right."""
        try:
            source = open_source(self.source, trust_remote_code=self.trust_remote_code)
            if _contents(self.folder, source) != self.contents:
                return False
            return outputs.difference(self.folder, source, self.dtype, self.blocks) is None
        except (UserError, OSError):
            return False


def check_with(ranks: Ranks, folder: Path, source: Source) -> None:
    """As :func:`compress.verification.outputs.check_logits`, by all ranks.

    Raises:
        RanksApart: a rank has ended.
        UserError: as there.
    """
    if not _right_by_shares(folder, source, ranks):
        outputs.check_logits(folder, source)


def _right_by_shares(folder: Path, source: Source, ranks: Ranks) -> bool:
    """Whether all ranks together have found every block right."""
    if not _opens_elsewhere(source):
        return False
    skeleton = open_skeleton(source)
    own, *others = shares_of(len(skeleton.blocks), ranks.size)
    where = folder.resolve(), source.path.resolve(), source.trust_remote_code, _contents(folder, source)
    for rank, blocks in enumerate(others, start=1):
        ranks.send(rank, CheckBlocks(*where, skeleton.dtype, blocks))
    try:
        right = outputs.difference(folder, source, skeleton.dtype, own) is None
    except UserError:
        right = False
    found = [answer(ranks, rank) for rank in range(1, len(others) + 1)]
    return right and all(found)


def _opens_elsewhere(source: Source) -> bool:
    """Whether the source is what its folder holds: nothing was left out of it, turned or decoded."""
    edited = source.changes or source.dropped or source.width_pruned or source.unread or source.rotation
    return type(source) is Source and not edited and not source.stored_as and not source.trust_remote_code


def _contents(folder: Path, source: Source) -> tuple[str, str]:
    return sha256_of(folder / REPORT), content_fingerprint(source.files)
