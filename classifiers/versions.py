"""What is kept of tenants' lists: the last versions of each, for the tenants used last."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from guard.policy import Tenant

Value = TypeVar("Value")
# versions of one tenant's list kept: requests admitted under an old one finish with it
KEPT_VERSIONS = 3
# tenants kept; what is dropped is built again from the encoder's disk cache when it is needed
KEPT_TENANTS = 4096


@dataclass(slots=True)
class _Kept(Generic[Value]):
    index: int
    versions: OrderedDict[Hashable, Value] = field(default_factory=OrderedDict)


class Versions(Generic[Value]):
    """Values by tenant and version; `drop` is called for each that is given up."""

    def __init__(self, drop: Callable[[Value], None], *, tenants: int = KEPT_TENANTS) -> None:
        self._drop = drop
        self._most = max(1, tenants)
        self._tenants: OrderedDict[str, _Kept[Value]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._tenants)

    def use(self, tenant: Tenant, version: Hashable) -> Value | None:
        """The value of a version, which becomes the tenant's newest."""
        kept = self._tenants.get(tenant.name)
        if kept is None or version not in kept.versions:
            return None
        kept.index = tenant.index
        kept.versions.move_to_end(version)
        self._tenants.move_to_end(tenant.name)
        return kept.versions[version]

    def look(self, tenant: Tenant, version: Hashable) -> Value | None:
        """The value of a version, without using it."""
        kept = self._tenants.get(tenant.name)
        return kept.versions.get(version) if kept is not None else None

    def add(self, tenant: Tenant, version: Hashable, value: Value) -> None:
        """Keep a value as the tenant's newest; give up what is too much."""
        kept = self._tenants.setdefault(tenant.name, _Kept(tenant.index))
        kept.index = tenant.index
        kept.versions[version] = value
        self._tenants.move_to_end(tenant.name)
        while len(kept.versions) > KEPT_VERSIONS:
            self._drop(kept.versions.popitem(last=False)[1])
        while len(self._tenants) > self._most:
            self._forget(next(iter(self._tenants)))

    def newest_first(self, tenant: Tenant) -> Iterator[Value]:
        """All values kept of a tenant."""
        kept = self._tenants.get(tenant.name)
        return reversed(kept.versions.values()) if kept is not None else iter(())

    def newest(self) -> Iterator[tuple[int, Value]]:
        """Index and newest value of every tenant."""
        for kept in self._tenants.values():
            yield kept.index, next(reversed(kept.versions.values()))

    def keep_only(self, names: Collection[str]) -> None:
        """Give up all tenants but those of `names`."""
        for name in [name for name in self._tenants if name not in names]:
            self._forget(name)

    def _forget(self, name: str) -> None:
        for value in self._tenants.pop(name).versions.values():
            self._drop(value)
