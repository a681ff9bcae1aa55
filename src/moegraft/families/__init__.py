"""Model families: which tensor belongs to which component, in every layout."""

from moegraft.families.catalog import FAMILIES
from moegraft.families.find import FamilyMap, Pattern, find_family, load_family_map
from moegraft.families.spec import COMPONENTS, Family, Key, Piece, Place, Rule
from moegraft.families.table import families_table

__all__ = [
    "COMPONENTS",
    "FAMILIES",
    "Family",
    "FamilyMap",
    "Key",
    "Pattern",
    "Piece",
    "Place",
    "Rule",
    "families_table",
    "find_family",
    "load_family_map",
]
