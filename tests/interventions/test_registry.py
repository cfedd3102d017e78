"""The registry: what every method must have, and what may not call itself one."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from guard import interventions
from guard.interventions.fit_config import FitConfig
from guard.interventions.method import FORGET_AND_RETAIN, Fit, Method
from guard.interventions.registry import edit_methods, methods
from guard.packs.format import Pack

HEAD = "from guard.interventions.fit_config import FitConfig\n" \
       "from guard.interventions.method import FORGET_AND_RETAIN, Method\n"
ENTRY = "METHOD = Method(name='{}', config=FitConfig, fit='guard.fit.toy:run', rows=None, paper=(), " \
        "data=FORGET_AND_RETAIN, edit='', command='')\n"


def entry(**changes: Any) -> Method:
    """A method that is none of ours, with `changes`."""
    fields: dict[str, Any] = {
        "name": "toy", "config": FitConfig, "fit": "guard.fit.toy:run", "rows": None, "paper": (),
        "data": FORGET_AND_RETAIN, "edit": "nothing", "command": "Fit nothing.",
    }
    return Method(**(fields | changes))


@pytest.mark.parametrize("name", list(methods()))
def test_the_fit_that_a_method_names_is_there_and_takes_what_commands_and_recipes_give_it(name: str) -> None:
    method = methods()[name]
    fit = method.load_fit()
    wanted, found = inspect.signature(Fit.__call__).parameters, inspect.signature(fit).parameters
    assert list(found) == [parameter for parameter in wanted if parameter != "self"]
    for parameter, told in found.items():
        assert (told.kind, told.default) == (wanted[parameter].kind, wanted[parameter].default)
    assert get_type_hints(fit)["return"] is Pack


@pytest.mark.parametrize("name", list(methods()))
def test_every_setting_has_a_description_and_a_default_within_its_own_bounds(name: str) -> None:
    config = methods()[name].config
    assert [field for field, told in config.model_fields.items() if not told.description] == []
    required = {field: "1.resid_post" for field, told in config.model_fields.items() if told.is_required()}
    defaults = config(**required)  # type: ignore[arg-type]
    # pydantic does not check defaults unless they are given
    assert config(**dict(defaults)) == defaults
    assert sorted(config.own_fields_first()) == sorted(config.model_fields)


def test_a_method_is_a_file_here_and_a_file_in_fit_of_the_same_name() -> None:
    folder = Path(interventions.__file__ or "").parent
    for name, method in methods().items():
        file = name.replace("-", "_")
        assert (folder / f"{file}.py").is_file()
        assert method.fit.startswith(f"guard.fit.{file}:")


def test_edit_methods_are_those_that_make_rows() -> None:
    assert set(methods()) - set(edit_methods()) == {"eco"}
    assert list(methods()) == sorted(methods())


@pytest.mark.parametrize("changes", [
    {"name": "Toy"}, {"name": "../toy"}, {"name": ""}, {"fit": "os:system"}, {"fit": "guard.fit.toy"},
    {"fit": "guard.fit.toy:run.__globals__"}, {"paper": ("arXiv 2503.10679",)},
], ids=str)
def test_a_name_or_reference_of_another_form_is_refused(changes: dict[str, Any]) -> None:
    assert entry().name == "toy"
    with pytest.raises(ValueError, match="is not of the form"):
        entry(**changes)


@pytest.mark.parametrize(("text", "error", "reason"), [
    (HEAD + ENTRY.format("steer"), ValueError, "there is a method steer already"),
    ("METHOD = 'toy'\n", TypeError, "METHOD is no Method"),
])
def test_a_second_method_of_a_name_and_a_method_that_is_none_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, error: type[Exception], reason: str
) -> None:
    before = methods()
    (tmp_path / "unlike.py").write_text(text)
    monkeypatch.setattr(interventions, "__path__", [*interventions.__path__, str(tmp_path)])
    try:
        with pytest.raises(error, match=reason):
            methods()
    finally:
        sys.modules.pop("guard.interventions.unlike", None)
    monkeypatch.undo()
    assert methods() is before


def test_neither_the_command_line_nor_the_registry_imports_a_fit() -> None:
    script = "import sys\nimport guard.service.cli.main\nassert 'torch' not in sys.modules\n" \
             "from guard.interventions.registry import methods\nassert 'steer' in methods()\n" \
             "print([name for name in sys.modules if name.startswith(('guard.fit.', 'transformers'))])"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=300)
    assert result.stdout.strip() == "[]"
