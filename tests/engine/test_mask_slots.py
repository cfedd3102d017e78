"""Which requests refer to an automaton of the logits processor, and when its slot is given back."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from guard.classifiers.automaton import Automaton
from guard.errors import PackError
from guard.ticket import read_key

pytest.importorskip("vllm")

from vllm.v1.sample.logits_processor.interface import MoveDirectionality

from guard.engine.constraints import ConstraintSlots
from guard.engine.logits import GuardLogitsProcessor
from guard.engine.tickets import VerifiedTickets
from tests.engine.masking import PROMPT, Masking, guarded, load, masked, update, wait

pytestmark = pytest.mark.usefixtures("empty_batch")


def test_a_released_automaton_stays_until_the_last_request_has_left(
    processor: GuardLogitsProcessor, slots: ConstraintSlots, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    automaton = Automaton.compile(["Jaime"], processor.vocabulary)
    slot = load(slots, automaton, tmp_path)
    outputs = tokenizer("It was J")["input_ids"]
    processor.update_state(update([(0, guarded(automaton), PROMPT, outputs), (1, guarded(automaton), PROMPT, [])]))
    before = masked(processor)
    slots.release(automaton.digest)
    assert masked(processor) == before and before[0]
    processor.update_state(update(removed=[1]))
    assert slots.slot_of(automaton.digest) == slot
    # a row that another one overwrites leaves as well
    processor.update_state(update([(0, guarded(None), PROMPT, [])]))
    assert slots.slot_of(automaton.digest) is None


def test_a_row_that_a_move_overwrites_gives_its_automaton_back(
    processor: GuardLogitsProcessor, slots: ConstraintSlots, tmp_path: Path
) -> None:
    automaton = Automaton.compile(["Shale"], processor.vocabulary)
    load(slots, automaton, tmp_path)
    processor.update_state(update([(0, guarded(None), PROMPT, []), (1, guarded(automaton), PROMPT, [])]))
    slots.release(automaton.digest)
    processor.update_state(update(moved=[(0, 1, MoveDirectionality.SWAP)]))
    assert slots.slot_of(automaton.digest) is not None
    processor.update_state(update(moved=[(1, 0, MoveDirectionality.UNIDIRECTIONAL)]))
    assert slots.slot_of(automaton.digest) is None


def test_a_damaged_file_is_refused_and_can_be_staged_again(
    slots: ConstraintSlots, processor: GuardLogitsProcessor, tmp_path: Path
) -> None:
    automaton = Automaton.compile(["Granite"], processor.vocabulary)
    path = tmp_path / "list.safetensors"
    automaton.save(path)
    whole = path.read_bytes()
    data = bytearray(whole)
    data[-1] ^= 1
    path.write_bytes(data)
    slots.stage(path, automaton.digest)
    with pytest.raises(PackError):
        wait(slots, automaton.digest)
    path.write_bytes(whole)
    slots.stage(path, automaton.digest)
    wait(slots, automaton.digest)
    assert slots.commit(automaton.digest) > 0
    slots.release(automaton.digest)


def test_on_the_v2_runner_an_ended_request_gives_its_automaton_back_at_once(
    masking: Masking, tmp_path: Path
) -> None:
    state = SimpleNamespace(device=torch.device("cpu"), max_num_reqs=4)
    device = GuardLogitsProcessor(masking.config, state)
    slots = device.connect(VerifiedTickets(read_key()), 3, None)
    automaton = Automaton.compile(["Jaime"], device.vocabulary)
    load(slots, automaton, tmp_path)
    assert device.add_request(2, guarded(automaton))
    slots.release(automaton.digest)
    assert slots.slot_of(automaton.digest) is not None
    device.remove_request(2)
    assert slots.slot_of(automaton.digest) is None
    assert device.bank is not None and not device.bank.any_guarded(np.array([2]))
    # the row's next request is not masked for its predecessor
    assert not device.add_request(2, guarded(None))


def test_a_v2_slot_that_is_used_again_without_an_end_keeps_no_reference(masking: Masking, tmp_path: Path) -> None:
    state = SimpleNamespace(device=torch.device("cpu"), max_num_reqs=4)
    device = GuardLogitsProcessor(masking.config, state)
    slots = device.connect(VerifiedTickets(read_key()), 3, None)
    automaton = Automaton.compile(["Jaime"], device.vocabulary)
    load(slots, automaton, tmp_path)
    device.add_request(1, guarded(automaton))
    device.add_request(1, guarded(automaton))
    slots.release(automaton.digest)
    device.remove_request(1)
    assert slots.slot_of(automaton.digest) is None
