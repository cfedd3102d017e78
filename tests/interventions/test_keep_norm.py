"""Packs of projections that keep the norm, and packs from before there were any."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from guard.errors import PackError
from guard.interventions.edits import edit_rows
from guard.interventions.subspace import save_subspace
from guard.kernels.edit_formula import EditRow, edited
from guard.packs.edit_format import Origin
from guard.packs.format import Pack, PackHeader, content_hash, load_pack
from guard.site import Site

WIDTH, TOKENS = 48, 64
SITE = Site(3, "resid_post")
ORIGIN: Origin = {
    "model_fingerprint": "fp1:" + "a" * 64, "fit_data_digest": "c" * 64, "fit_report": {"score": 0.5}, "licence": "MIT",
}


@pytest.fixture
def random() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def row_of(path: Path) -> EditRow:
    """The only row of a pack read from disk."""
    (row,) = edit_rows(load_pack(path, model_fingerprint=ORIGIN["model_fingerprint"])).values()
    return row


def orthonormal(rank: int, random: torch.Generator) -> Tensor:
    columns: Tensor = torch.linalg.qr(torch.randn(WIDTH, rank, generator=random, dtype=torch.float64))[0]
    return columns.T.float().contiguous()


@pytest.mark.parametrize("with_mean", [False, True])
def test_a_projection_that_keeps_the_norm_is_the_plain_one_rescaled(
    with_mean: bool, random: torch.Generator, tmp_path: Path
) -> None:
    x, mean, basis = (torch.randn(TOKENS, WIDTH, generator=random), torch.randn(WIDTH, generator=random),
                      orthonormal(3, random))
    means = {SITE: mean} if with_mean else None
    for name, keep_norm in (("plain", False), ("kept", True)):
        save_subspace(tmp_path / name, {SITE: basis}, means, keep_norm=keep_norm, **ORIGIN)
    plain = edited(x, row_of(tmp_path / "plain"))
    ratio = x.norm(dim=1, keepdim=True) / plain.norm(dim=1, keepdim=True)
    torch.testing.assert_close(edited(x, row_of(tmp_path / "kept")), plain * ratio, atol=1e-5, rtol=1e-5)
    assert bool((ratio.squeeze(1) - 1.0).abs().min() > 1e-4)
    half = edited(x, row_of(tmp_path / "kept"), 0.5)
    torch.testing.assert_close(half.norm(dim=1), x.norm(dim=1))


def test_only_packs_that_keep_the_norm_say_so_and_others_have_the_hash_that_they_had_before(
    random: torch.Generator, tmp_path: Path
) -> None:
    bases = {SITE: orthonormal(2, random)}
    plain, kept = (save_subspace(tmp_path / f"{keep}", bases, keep_norm=keep, **ORIGIN) for keep in (False, True))
    assert (plain.header.parameters, kept.header.parameters) == ({}, {"keep_norm": True})
    assert plain.content_hash != kept.content_hash
    # as packs were written when there was no such parameter
    before = PackHeader.model_validate({
        "kind": "edit", "method": "subspace", "sites": (str(SITE),), "parameters": {},
        "created_by": plain.header.created_by, **ORIGIN,
    })
    assert content_hash(before, {f"{SITE}/basis": bases[SITE]}) == plain.content_hash
    assert [row_of(tmp_path / f"{keep}").keep_norm for keep in (False, True)] == [False, True]
    for wrong in ({"keep_norm": "perhaps"}, {"keep": True}):
        with pytest.raises(PackError, match="parameters of the method subspace"):
            edit_rows(Pack(plain.header.model_copy(update={"parameters": wrong}), plain.tensors))
