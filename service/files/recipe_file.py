"""Recipe files: YAML text into a validated RecipeFile. Every problem names its line and field."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from guard.errors import TenantFileError
from guard.fit.recipes import Recipe, RecipeFile, recipe_file
from guard.interventions.registry import edit_methods
from guard.service.files.tenant_file import MAX_PROBLEMS
from guard.service.files.yaml_positions import Document, parse_yaml, path_text
from guard.service.files.yaml_positions import Path as FieldPath

_NO_METHOD = ("union_tag_invalid", "union_tag_not_found")


def examine_recipes(text: str, folder: Path) -> tuple[RecipeFile | None, tuple[TenantFileError, ...]]:
    """The validated file, or None and its first problems (at most 20) in the order of their lines.

    `folder` is where the paths of data begin. A problem is a TenantFileError, as of any YAML file of the guard.
    """
    try:
        document = parse_yaml(text)
    except TenantFileError as error:
        return None, (error,)
    if not isinstance(document.value, dict):
        return None, (TenantFileError("a recipe file is a mapping with the keys `version` and `recipes`", line=1),)
    try:
        # strict JSON mode: a number is never taken for text nor text for a number
        file = recipe_file().model_validate_json(json.dumps(document.value), strict=True)
    except ValidationError as error:
        return None, _ordered(_schema_problems(error, document))
    problems = _ordered(_meaning_problems(file, document, folder))
    return (None, problems) if problems else (file, ())


def _ordered(problems: Iterator[TenantFileError]) -> tuple[TenantFileError, ...]:
    return tuple(sorted(problems, key=lambda problem: problem.line)[:MAX_PROBLEMS])


def _problem(message: str, path: FieldPath, document: Document) -> TenantFileError:
    return TenantFileError(message, line=document.line_of(path), field=path_text(path))


def _schema_problems(error: ValidationError, document: Document) -> Iterator[TenantFileError]:
    for detail in error.errors(include_url=False, include_context=False, include_input=False):
        loc = tuple(detail["loc"])
        # the third part is the method by which pydantic chose the schema; it is no key of the file
        method, path = (str(loc[2]), (*loc[:2], *loc[3:])) if len(loc) > 2 else ("", loc)
        message = detail["msg"].removeprefix("Value error, ")
        if detail["type"] == "extra_forbidden":
            message = _unknown_key(path, method)
        elif detail["type"] == "missing":
            message = "this key is required"
        elif detail["type"] in _NO_METHOD:
            path, message = (*path, "method"), f"must be one of {', '.join(edit_methods())}"
        elif detail["type"] == "too_short" and path == ("recipes",):
            if document.value["recipes"]:  # type: ignore[index, call-overload]
                # pydantic calls a list too short when its items are wrong; the items' own problems say more
                continue
            message = "must hold at least one item"
        elif path[-1] == "name" and detail["type"] == "string_pattern_mismatch":
            message = "a recipe's name has 1 to 63 lower-case letters, digits, `-` and `_`"
        yield _problem(message, path, document)


def _unknown_key(path: FieldPath, method: str) -> str:
    known = set(RecipeFile.model_fields)
    if len(path) == 3:
        known = set(Recipe.model_fields)
    elif len(path) > 3:
        config = edit_methods()[method].config
        known = set(config.model_fields) - {"seed"} - config.command_only()
    near = difflib.get_close_matches(str(path[-1]), known, n=1)
    hint = f"did you mean `{near[0]}`?" if near else f"known keys: {', '.join(sorted(known))}"
    return f"unknown key; {hint}"


def _meaning_problems(file: RecipeFile, document: Document, folder: Path) -> Iterator[TenantFileError]:
    seen: dict[str, int] = {}
    for number, recipe in enumerate(file.recipes):
        name: FieldPath = ("recipes", number, "name")
        if recipe.name in seen:
            yield _problem(f"this recipe is already at line {seen[recipe.name]}", name, document)
        seen.setdefault(recipe.name, document.line_of(name))
        if not (folder / recipe.data).is_file():
            message = f"there is no file {recipe.data}; paths begin at the folder of the recipe file"
            yield _problem(message, ("recipes", number, "data"), document)
