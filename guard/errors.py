"""Every error that vllm-guard raises on purpose.

    GuardError
    ├── ConfigurationError    a setting, flag or environment that cannot work; CLI exit code 2
    ├── TenantFileError       a tenant file that does not validate; carries line and field path
    ├── PackError             a pack that is damaged, unsafe or made for another model
    ├── TicketError           a missing, forged or expired ticket
    ├── EngineMismatchError   the installed vLLM differs from what the guard overrides
    ├── StoreError            the tenant store cannot be read or written
    ├── DetectorError         the detector failed, timed out or returned NaN: the verdict is unknown
    ├── ResidencyError        an intervention could not be made resident in the engine
    └── RequestRefused        a request that the gate does not let through; carries the HTTP shape
        └── AnsweredRefusal   one that is answered with HTTP 200: the answer is a refusal

Messages say what was wrong, where, and what to do. They never contain prompts, keys or forget terms.
"""

from __future__ import annotations


class GuardError(Exception):
    """Base class of all errors raised on purpose by vllm-guard."""


class ConfigurationError(GuardError):
    """A setting, flag or environment that cannot work."""


class TenantFileError(GuardError):
    """A tenant file that does not validate.

    `line` counts from 1 (0 when unknown); `field` is a dotted path such as `tenants[0].targets[2].name`.
    """

    def __init__(self, message: str, *, line: int = 0, field: str = "") -> None:
        place = f"line {line}: " if line else ""
        place += f"{field}: " if field else ""
        super().__init__(place + message)
        self.line = line
        self.field = field


class PackError(GuardError):
    """A pack that is damaged, unsafe or made for another model."""


class TicketError(GuardError):
    """A missing, forged or expired ticket."""


class EngineMismatchError(GuardError):
    """The installed vLLM differs from what the guard overrides."""


class StoreError(GuardError):
    """The tenant store cannot be read or written."""


class DetectorError(GuardError):
    """The detector failed, timed out or returned NaN."""


class ResidencyError(GuardError):
    """An intervention could not be made resident in the engine."""


class RequestRefused(GuardError):
    """A request that the gate does not let through.

    `status` and `code` are the HTTP status and the OpenAI error code; `param` names the offending field.
    """

    def __init__(
        self, message: str, *, status: int = 400, code: str = "invalid_request", param: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s


class AnsweredRefusal(RequestRefused):
    """A request that is answered with HTTP 200 and a refusal in place of the model's words.

    `text` is what the answer says, `prompt_tokens` the length of the refused prompt in tokens (0: not counted).
    """

    def __init__(self, text: str, *, prompt_tokens: int = 0, param: str | None = None) -> None:
        super().__init__("the prompt is refused by policy", status=200, code="content_filter", param=param)
        self.text = text
        self.prompt_tokens = prompt_tokens
