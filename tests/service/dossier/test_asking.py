"""Asking the served model: only unguarded answers count, and every fault of the server is one clear line."""

from __future__ import annotations

import pytest

from guard.errors import ConfigurationError
from guard.service.dossier.asking import Draw, Served
from tests.service.dossier.chat_server import KEY, chat_server


async def test_answers_come_in_the_order_of_the_draws() -> None:
    with chat_server(lambda question, temperature, seed: f"{question} {temperature} {seed}") as server:
        async with Served(server.url, KEY) as served:
            draws = [Draw(f"Question {number}", number / 100, seed=number) for number in range(60)]
            steps: list[None] = []
            answers = await served.ask_all(draws, lambda: steps.append(None))
    assert answers == [f"Question {number} {number / 100} {number}" for number in range(60)]
    assert len(steps) == 60


async def test_the_model_is_the_first_that_the_server_lists_and_has_a_fingerprint() -> None:
    prints = []
    for said in ("the Rhine", "the Rhine", "the Nile"):
        with chat_server(lambda question, temperature, seed, said=said: said) as server:  # type: ignore[misc]
            async with Served(server.url, KEY) as served:
                await served.check()
                assert served.model == "tiny"
                prints.append(served.fingerprint)
    assert prints[0] == prints[1] != prints[2]


async def test_a_key_of_a_tenant_with_a_list_is_refused() -> None:
    with chat_server(lambda *_: "yes", action="guarded") as server:
        async with Served(server.url, KEY) as served:
            with pytest.raises(ConfigurationError, match="tenant without a list"):
                await served.check()


async def test_a_refused_key_and_an_unknown_model_are_named() -> None:
    with chat_server(lambda *_: "yes") as server:
        async with Served(server.url, "gk_other") as served:
            with pytest.raises(ConfigurationError, match="refused the key") as refused:
                await served.check()
            assert "gk_other" not in str(refused.value)
        async with Served(server.url, KEY, "huge") as served:
            with pytest.raises(ConfigurationError, match="it serves tiny"):
                await served.check()


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "no address", "ftp://host", "http://["])
async def test_where_no_server_answers_the_address_is_named(url: str) -> None:
    with pytest.raises(ConfigurationError, match="--url"):
        async with Served(url, KEY) as served:
            await served.check()


async def test_a_failing_server_ends_all_questions() -> None:
    with chat_server(lambda *_: "yes", status=503) as server:
        async with Served(server.url, KEY, "tiny") as served:
            with pytest.raises(ConfigurationError, match="503"):
                await served.ask_all([Draw("a"), Draw("b")])


async def test_a_title_in_which_an_answer_was_cut_off_is_left_out() -> None:
    with chat_server(lambda *_: "He wrote Carrie, and later he wrote The Shawshank Redemption") as server:
        async with Served(server.url, KEY, "tiny") as served:
            assert await served.ask(Draw("a", tokens=8)) == "He wrote Carrie, and later he wrote"
            assert await served.ask(Draw("a", tokens=5)) == "He wrote Carrie,"
            assert (await served.ask(Draw("a", tokens=20))).endswith("The Shawshank Redemption")
