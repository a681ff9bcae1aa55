"""Model families: which tensor belongs to which component, in every layout."""

from moegraft.families.catalog import FAMILIES
from moegraft.families.spec import COMPONENTS, Family, Key, Piece, Place, Rule

__all__ = ["COMPONENTS", "FAMILIES", "Family", "Key", "Piece", "Place", "Rule"]
